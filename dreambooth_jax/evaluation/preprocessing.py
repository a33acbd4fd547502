"""How an image becomes the input of the network that it is scored with: one function for each, fixed for good.

A score is comparable only if its images were prepared alike, and the third digit already depends on who resizes. So
Pillow resizes, with antialiasing, on 8-bit pixels; then the middle is cropped, and NumPy normalises in f32. The results
equal the references bit for bit; the preprocessor_config.json beside a network's weights is not read:

    dino     DINO's evaluation (facebookresearch/dino eval_knn.py with torchvision on Pillow images), as in the
             DreamBooth paper's protocol; not the 0.5 / 0.5 that the preprocessor_config.json of facebook/dino-vits16
             says
    dino_v2  facebook/dinov2-*: transformers' BitImageProcessor (its Pillow backend)
    clip     openai/clip-vit-*: transformers' CLIPImageProcessor (its Pillow backend)
    lpips    the `lpips` package's im2tensor. It compares images of any size, and the paper does not say which: here
             they are brought to 256 x 256 px

All take one image, uint8[H, W, 3] RGB of any size, upright and in sRGB as data/decode.py gives it, and return
f32[size, size, 3]. `size` is the side that the network was trained with.
"""

import numpy as np
from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LPIPS_SIZE = 256
# What stands for no background: ImageNet's mean, which is 0 to DINO and less than 0.02 to CLIP.
NEUTRAL = (124, 116, 104)


def without_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns an image in which all but the subject has the colour NEUTRAL, which says nothing to an encoder.

    Args:
      image: uint8[H, W, 3].
      mask: uint8[H, W], 255 where the subject is; values between mix both.

    Raises:
      ValueError: if they differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f'the mask is {list(mask.shape)} but its image {list(image.shape)}; both must be of one size')
    weight = mask[..., None] / np.float32(255)
    return np.rint(weight * image + (1 - weight) * np.asarray(NEUTRAL, np.float32)).astype(np.uint8)


def dino(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Shorter side to 8/7 of the size (256) by bicubic resizing, centre crop, ImageNet's mean and deviation."""
    # torchvision rounds a corner that would lie half-way between two pixels to the even one.
    pixels = _middle(image, _margin(size), size, corner=lambda spare: round(spare / 2))
    return _normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)


def dino_v2(image: np.ndarray, size: int = 224) -> np.ndarray:
    """As `dino`, but cropped as transformers does it, which rounds the corner down."""
    pixels = _middle(image, _margin(size), size, corner=lambda spare: spare // 2)
    return _normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)


def clip(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Shorter side to the size by bicubic resizing, centre crop, CLIP's own mean and deviation."""
    pixels = _middle(image, size, size, corner=lambda spare: spare // 2)
    return _normalised(pixels, CLIP_MEAN, CLIP_STD)


def lpips(image: np.ndarray, size: int = LPIPS_SIZE) -> np.ndarray:
    """Shorter side to the size by bicubic resizing, centre crop, 0..255 to [-1, 1]."""
    pixels = _middle(image, size, size, corner=lambda spare: spare // 2)
    return (pixels / 127.5 - 1).astype(np.float32)


def _margin(size: int) -> int:
    return size * 256 // 224


def _middle(image: np.ndarray, shorter: int, size: int, corner) -> np.ndarray:
    """Resizes the shorter side to `shorter` px and crops a square of side `size`; `corner` halves what is spare.

    Returns:
      uint8[size, size, 3].

    Raises:
      ValueError: if the image has another shape or dtype.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f'an image is {image.dtype}{list(image.shape)} but must be uint8[H, W, 3]')
    height, width = image.shape[:2]
    # The longer side is rounded down, as torchvision and transformers do.
    height, width = shorter * height // min(height, width), shorter * width // min(height, width)
    left, top = corner(width - size), corner(height - size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _normalised(pixels: np.ndarray, mean, std) -> np.ndarray:
    # The references divide by 255 in f32 or multiply by 1/255 in f64; all 256 values come out alike.
    return (pixels / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
