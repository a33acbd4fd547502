"""Picture files as uint8 RGB arrays of a given size, mostly square.

What a photo may be is decided here: turned by its EXIF tag, CMYK, grey, 16 bits deep, with a palette, transparent
(shown on white), animated (the first frame counts). Colour profiles are not applied. Resizing is antialiased (Lanczos)
and never enlarges. A mask, which weighs the loss of each pixel, is any such file, resized and cropped as its picture.
"""

import io
import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dreambooth_jax.data.buckets import Size, nearest

# Formats of photos and drawings. Pillow opens others too, but those carry no photos, or run other programs (EPS).
FORMATS = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'GIF', 'TIFF', 'BMP', 'JPEG2000', 'PPM')
READABLE = 'JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP'  # as errors name them
MAX_ZOOM = 1.25  # of random crops
_REPLACE = 'replace it or take it out of its folder'


class PictureError(ValueError):
    """A picture file, or a folder of them, that cannot be used: one sentence that names it and what to do."""


def read_picture(
    path: str | os.PathLike,
    resolution: int,
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> np.ndarray:
    """Reads a picture file as a square: shorter side resized, longer side cropped.

    Args:
      resolution: side of the square in pixels.
      crop: 'center', or 'random': the shorter side becomes up to max_zoom * resolution, as far as the picture has the
        pixels, and the square lies anywhere.
      rng: needed by 'random'.
    Returns: uint8[resolution, resolution, 3], RGB.
    Raises: PictureError if the file cannot be read, is no picture, is damaged or is smaller than the resolution;
      ValueError for another crop.
    """
    return read_masked_picture(path, None, [(resolution, resolution)], crop=crop, rng=rng, max_zoom=max_zoom)[0]


def read_masked_picture(
    path: str | os.PathLike,
    mask: str | os.PathLike | None,
    sizes: Sequence[Size],
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a picture and the file that says what of it counts, both brought to size in the same way.

    Args:
      mask: white counts, black does not, grey and colours by their brightness; transparent is black. None: all counts.
      sizes: (height, width) pairs; the one whose ratio is nearest to the picture's is taken.
      others: of `read_picture`.
    Returns: the picture, uint8[height, width, 3], and its mask, uint8[height, width, 1], each value the mean over the
      area of its pixel.
    Raises: as `read_picture`, for both files; PictureError if they differ in size or nothing that counts is kept.
    """
    if crop not in ('center', 'random'):
        raise ValueError(f"crop must be 'center' or 'random', got {crop!r}")
    image = decode_picture(path)
    frame = _frame(path, image.size, nearest(*image.size, sizes), rng if crop == 'random' else None, max_zoom)
    picture = frame.apply(image, Image.Resampling.LANCZOS)
    if mask is None:
        return picture, np.full((*picture.shape[:2], 1), 255, np.uint8)
    weights = decode_picture(mask, background='black').convert('L')
    if weights.size != image.size:
        raise PictureError(
            f'the mask {mask} is {weights.width} x {weights.height} pixels but its picture {path} {image.width} x '
            f'{image.height}, both as they are shown upright; make the mask as large as its picture'
        )
    # A mean over areas, since Lanczos would put light echoes of a white edge into the black beside it.
    kept = frame.apply(weights, Image.Resampling.BOX)[..., None]
    if not kept.any():
        raise PictureError(
            f'the mask {mask} is black all over what is kept of {path}, so nothing of that picture would be learned; '
            f'paint white what counts, or take both out of their folder'
        )
    return picture, kept


class _Frame(NamedTuple):
    """How a picture is brought to size: resized as a whole, then cut."""

    resized: tuple[int, int]  # width, height
    box: tuple[int, int, int, int]  # left, top, right, bottom

    def apply(self, image: Image.Image, resampling: Image.Resampling) -> np.ndarray:
        return np.array(image.resize(self.resized, resampling).crop(self.box))


def _frame(
    path: str | os.PathLike, size: tuple[int, int], target: Size, rng: np.random.Generator | None, max_zoom: float
) -> _Frame:
    """The frame in the middle, or with `rng` a random one, of a picture of that (width, height)."""
    (width, height), (wanted_height, wanted_width) = size, target
    by_width = width * wanted_height <= height * wanted_width  # the side that is not cropped
    there, side = (width, wanted_width) if by_width else (height, wanted_height)
    if there < side:
        square = wanted_height == wanted_width
        wanted = f'resolution {side}' if square else f'{wanted_width} x {wanted_height} of its aspect bucket'
        raise PictureError(
            f'{path} is {width} x {height} pixels, smaller than the {wanted}; use a larger picture or a lower '
            f'resolution'
        )
    if rng is not None:
        side = int(rng.uniform(side, min(max_zoom * side, there) + 1))
    # Rounded down, as torchvision's Resize does, so that other trainers' pixels are met.
    width, height = (side, side * height // width) if by_width else (side * width // height, side)
    spare = width - wanted_width, height - wanted_height
    left, top = (round(s / 2) for s in spare) if rng is None else (int(rng.integers(s + 1)) for s in spare)
    return _Frame((width, height), (left, top, left + wanted_width, top + wanted_height))


def fit(images: np.ndarray, size: Size) -> np.ndarray:
    """Pictures in memory brought to another size, resized until they cover it and cropped in the middle.

    Args:
      images: uint8[N, H, W, 3]. Unlike files they may be enlarged: class pictures are drawn as squares, and the longer
        side of a bucket with their area is up to sqrt(MAX_RATIO) times theirs.
      size: (height, width).
    Returns: uint8[N, height, width, 3]; `images` itself if that is their size.
    Raises: ValueError if they are smaller than that both ways.
    """
    (_, height, width, _), (wanted_height, wanted_width) = images.shape, size
    if (height, width) == (wanted_height, wanted_width):
        return images
    if height < wanted_height and width < wanted_width:
        raise ValueError(f'pictures of {width} x {height} pixels are too small for {wanted_width} x {wanted_height}')
    fitted = (ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS) for image in images)
    return np.stack([np.asarray(image) for image in fitted])


def decode_picture(path: str | os.PathLike, *, background: str = 'white') -> Image.Image:
    """The whole picture, upright, as an RGB image of Pillow; raises PictureError as `read_picture` does."""
    try:
        with open(path, 'rb') as file:
            data = io.BytesIO(file.read())
    except OSError as error:
        raise PictureError(f'{path} cannot be read: {error.strerror}') from None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns of large pictures, odd EXIF blocks and palettes: all harmless
        try:
            image = Image.open(data, formats=FORMATS)
        except Exception:  # a broken header makes Pillow raise nearly anything, as broken data does below
            raise PictureError(f'{path} is {why_not_a_picture(path)}; {_REPLACE}') from None
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), background)
        except PictureError as error:
            raise PictureError(f'{path} {error}') from None
        except Exception:  # damaged files make Pillow's decoders raise nearly anything
            raise PictureError(f'{path} is truncated or damaged; {_REPLACE}') from None


def why_not_a_picture(path: str | os.PathLike) -> str | None:
    """None if the file starts like a picture that can be read, else what it is, to be put behind 'is'."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path, formats=FORMATS):
                return None
    except Image.DecompressionBombError:
        return f'a picture of more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels'
    except Exception as error:
        if os.path.isdir(path):
            return 'a folder'
        if isinstance(error, OSError) and error.errno is not None:
            return f'not readable ({error.strerror})'
        if os.path.getsize(path) == 0:
            return 'an empty file'
        return f'not a picture ({READABLE})'


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode == 'F':
        raise PictureError('holds floating-point values; save it with 8 or 16 bits per channel')
    if image.mode.startswith('I'):
        # Pillow would clip 16-bit grey to 255, which turns nearly everything white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError('holds 32-bit values; save it with 8 or 16 bits per channel')
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        behind = Image.new('RGBA', image.size, background)
        return Image.alpha_composite(behind, image).convert('RGB')
    return image.convert('RGB')
