"""The packed latents of FLUX.2: what a stage keeps of its images, and how latents become images again."""

import functools

import jax.numpy as jnp
import numpy as np
import torch

from dreambooth_jax.families.reading import read_pipeline
from tests.support import tiny_klein
from tests.support.torch_reference import assert_near

SIDE = tiny_klein.SIZE // 4
IMAGES = np.random.default_rng(0).integers(0, 256, (2, tiny_klein.SIZE, tiny_klein.SIZE, 3), np.uint8)
MASKS = np.zeros((2, tiny_klein.SIZE, tiny_klein.SIZE, 1), np.uint8)
MASKS[:, :16] = 255


@functools.cache
def space():
    """Of a pipeline of which only the autoencoder was read."""
    return read_pipeline(tiny_klein.folder(), components=('vae',)).space


def test_what_is_kept_has_the_shapes_that_were_said():
    assert (space().channels, space().scale, space().decoder, space().bounded) == (16, 4, 'vae', False)
    kept = space().prepare(IMAGES, MASKS, flip=True, pairs=False)
    said = space().prepared_shapes(IMAGES, MASKS, flip=True, pairs=False)
    assert {name: (value.shape, value.dtype) for name, value in kept.items()} == {
        name: (value.shape, value.dtype) for name, value in said.items()
    }
    # Mirrored images follow the others, and are encoded for themselves.
    mirrored = space().prepare(IMAGES[:, :, ::-1], None, flip=False, pairs=False)
    assert_near(kept['latents'][2:], mirrored['latents'], 3e-6)
    np.testing.assert_array_equal(kept['masks'][:, :4], 255)
    np.testing.assert_array_equal(kept['masks'][:, 5:], 0)


def test_decoding_undoes_the_statistics_and_the_packing():
    """Against diffusers; parts and tiles are those of every space of latents."""
    vae = tiny_klein.torch_pipeline().vae
    x = np.random.default_rng(1).standard_normal((2, SIDE, SIDE, 16)).astype(np.float32)
    with torch.no_grad():
        channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        latents = channels_first * std + vae.bn.running_mean.view(1, -1, 1, 1)
        pixels = vae.decode(tiny_klein.torch_pipeline()._unpatchify_latents(latents)).sample
    found = space().decode(space().vae.params, jnp.asarray(x))
    assert_near(found, pixels.permute(0, 2, 3, 1).clip(-1, 1), 2e-5)
