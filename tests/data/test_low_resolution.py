"""Down and up between the resolutions of a cascade, against Pillow and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dreambooth_jax.data.low_resolution import downsample, upsample


def noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def to_torch(images):
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)


def from_torch(images):
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_downsample_equals_torch_area(factor):
    high = noise(2, 16, 24, 3)
    expected = from_torch(F.interpolate(to_torch(high), scale_factor=1 / factor, mode='area'))
    low = jax.jit(downsample, static_argnums=1)(high, factor)
    assert low.shape == (2, 16 // factor, 24 // factor, 3) and low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, atol=2e-7)


def test_downsample_equals_pil_box():
    high = noise(1, 32, 32, 1)  # floating point: on bytes Pillow rounds after each of its two passes
    expected = np.asarray(Image.fromarray(high[0, ..., 0]).resize((8, 8), Image.Resampling.BOX))
    np.testing.assert_allclose(downsample(high, 4)[0, ..., 0], expected, atol=2e-7)


def test_downsample_is_antialiased():
    board = (np.indices((16, 16)).sum(axis=0) % 2)[None, ..., None].astype(np.float32)
    np.testing.assert_array_equal(downsample(board, 4), np.full((1, 4, 4, 1), 0.5))


@pytest.mark.parametrize('factor', [0, 3, 5])
def test_downsample_refuses_a_factor_that_does_not_divide(factor):
    with pytest.raises(ValueError) as error:
        downsample(np.zeros((1, 16, 16, 3)), factor)
    assert str(error.value) == f'16 x 16 pixels cannot be downsampled by {factor}; it must divide both sides'


@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ((8, 8), 32),
        ((32, 32), 128),
        ((64, 64), 256),
        ((7, 9), 33),
        ((5, 6), (11, 40)),
        ((8, 8), 8),
        ((8, 8), 5),
        ((1, 1), 4),
        ((4, 4), 1),
    ],
)
def test_upsample_equals_torch_bilinear_with_aligned_corners(shape, size):
    low = noise(2, *shape, 3)
    expected = from_torch(F.interpolate(to_torch(low), size, mode='bilinear', align_corners=True))
    high = jax.jit(upsample, static_argnums=1)(low, size)
    assert high.dtype == jnp.float32
    np.testing.assert_allclose(high, expected, atol=1e-6)


def test_upsample_keeps_corners_and_constants():
    low = noise(1, 8, 8, 3)
    high = upsample(low, 32)
    np.testing.assert_array_equal(high[:, ::31, ::31], low[:, ::7, ::7])
    np.testing.assert_allclose(upsample(np.full((1, 8, 8, 3), 0.7, np.float32), 32), 0.7, atol=1e-6)


def test_upsample_keeps_the_dtype():
    assert upsample(jnp.zeros((1, 4, 4, 3), jnp.bfloat16), 8).dtype == jnp.bfloat16
