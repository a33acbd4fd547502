"""Images are prepared bit for bit as the references prepare them: made ones always, the paper's photos where given.

The photos: DREAMBOOTH_DATASET=<folder of the paper's dataset> python -m pytest -m slow tests/evaluation
"""

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dreambooth_jax.data.decode import decode_image
from dreambooth_jax.evaluation import preprocessing

DATASET = os.environ.get('DREAMBOOTH_DATASET')
# As published in preprocessor_config.json.
DINO_V2 = {
    'crop_size': {'height': 224, 'width': 224},
    'do_center_crop': True,
    'do_convert_rgb': True,
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
    'resample': 3,
    'rescale_factor': 0.00392156862745098,
    'size': {'shortest_edge': 256},
}
CLIP = {
    'crop_size': 224,
    'do_center_crop': True,
    'do_normalize': True,
    'do_resize': True,
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
    'resample': 3,
    'size': 224,
}
# (height, width): both directions, squares, enlarged, and spare widths of every remainder by 4.
SIZES = [(300, 500), (500, 300), (300, 501), (331, 300), (256, 256), (257, 400), (64, 48), (7, 9), (224, 1000), (1, 3)]


def torchvisions_dino(image, size=224):
    """Resize(256, bicubic), CenterCrop(224), ToTensor, Normalize of torchvision, which works on Pillow images."""
    image = Image.fromarray(image)
    width, height = image.size
    wanted = int(size * 256 / 224)
    short, long = wanted, int(wanted * max(width, height) / min(width, height))
    image = image.resize((short, long) if width <= height else (long, short), Image.BICUBIC)
    top, left = int(round((image.height - size) / 2.0)), int(round((image.width - size) / 2.0))
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))
    tensor = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return tensor.sub_(mean).div_(std).permute(1, 2, 0).numpy()


def by_processor(processor, image):
    return processor(Image.fromarray(image), return_tensors='np').pixel_values[0].transpose(1, 2, 0)


def lpips_im2tensor(image, size=256):
    """What the package does to an image, after its shorter side got the size and its middle was cropped."""
    height, width = (int(size * side / min(image.shape[:2])) for side in image.shape[:2])
    resized = np.array(Image.fromarray(image).resize((width, height), Image.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return torch.Tensor(resized[top : top + size, left : left + size] / (255.0 / 2.0) - 1.0).numpy()


@functools.cache
def references():
    return {
        'dino': torchvisions_dino,
        'dino_v2': functools.partial(by_processor, BitImageProcessorPil(**DINO_V2)),
        'clip': functools.partial(by_processor, CLIPImageProcessorPil(**CLIP)),
        'lpips': lpips_im2tensor,
    }


def assert_equal(name, image):
    ours, theirs = getattr(preprocessing, name)(image), references()[name](image)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def made(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize('name', ['dino', 'dino_v2', 'clip', 'lpips'])
def test_made_images_are_prepared_as_by_the_reference(name):
    for size in SIZES:
        assert_equal(name, made(*size))


@pytest.mark.slow
@pytest.mark.skipif(not DATASET, reason='DREAMBOOTH_DATASET names no folder')
@pytest.mark.parametrize('name', ['dino', 'dino_v2', 'clip', 'lpips'])
def test_photos_are_prepared_as_by_the_reference(name):
    photos = sorted(path for path in Path(DATASET).glob('*/*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    assert photos
    for path in photos:
        assert_equal(name, np.asarray(decode_image(path)))


def test_the_two_ways_to_halve_a_pixel_differ():
    """Otherwise it would not matter that `dino` and `dino_v2` are two functions."""
    image = made(300, 331)  # 282 px wide after resizing: the crop starts at 29 in both
    assert np.abs(preprocessing.dino(image) - preprocessing.dino_v2(image)).max() < 1e-6
    image = made(256, 259)  # 35 px to spare: 18 and 17
    assert np.abs(preprocessing.dino(image) - preprocessing.dino_v2(image)).max() > 0.1


def test_another_size_keeps_the_proportion_of_the_margin():
    image = made(50, 70)
    assert preprocessing.dino(image, 32).shape == (32, 32, 3)
    resized = Image.fromarray(image).resize((50, 36), Image.BICUBIC).crop((9, 2, 41, 34))
    expected = (np.asarray(resized) / np.float32(255) - np.float32(preprocessing.IMAGENET_MEAN)) / np.float32(
        preprocessing.IMAGENET_STD
    )
    np.testing.assert_array_equal(preprocessing.dino(image, 32), expected)
    assert preprocessing.clip(image, 336).shape == (336, 336, 3)


@pytest.mark.parametrize(
    ('image', 'found'),
    [
        (np.zeros((8, 8, 3), np.float32), r'float32\[8, 8, 3\]'),
        (np.zeros((8, 8), np.uint8), r'uint8\[8, 8\]'),
        (np.zeros((8, 8, 4), np.uint8), r'uint8\[8, 8, 4\]'),
        (np.zeros((0, 8, 3), np.uint8), r'uint8\[0, 8, 3\]'),
    ],
)
@pytest.mark.parametrize('name', ['dino', 'dino_v2', 'clip', 'lpips'])
def test_what_is_no_image_is_named_in_one_sentence(name, image, found):
    with pytest.raises(ValueError, match=rf'^an image is {found} but must be uint8\[H, W, 3\]$'):
        getattr(preprocessing, name)(image)


def test_without_its_background_an_image_says_nothing_there():
    image = made(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20], mask[10:20, 20:30] = 255, 51
    bare = preprocessing.without_background(image, mask)
    np.testing.assert_array_equal(bare[10:20, 10:20], image[10:20, 10:20])
    mixed = 0.2 * image[10:20, 20:30] + 0.8 * np.array(preprocessing.NEUTRAL)
    np.testing.assert_allclose(bare[10:20, 20:30], mixed, atol=0.51)
    assert np.unique(bare[20:].reshape(-1, 3), axis=0).tolist() == [list(preprocessing.NEUTRAL)]
    nothing = preprocessing.without_background(image, np.zeros((40, 40), np.uint8))
    for prepare in (preprocessing.dino, preprocessing.dino_v2, preprocessing.clip):
        assert np.abs(prepare(nothing, 32)).max() < 0.02


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r'the mask is \[20, 40\] but its image \[40, 40, 3\]; both must be of one size'
    ):
        preprocessing.without_background(made(40, 40), np.zeros((20, 40), np.uint8))
