"""What is kept of images and what a step gets of it: pixels as they are, latents by the moments of a VAE."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreambooth_jax.data import low_resolution
from dreambooth_jax.families import image_space
from dreambooth_jax.families.image_space import LatentSpace, PixelSpace, with_mirrored
from dreambooth_jax.models import vae
from dreambooth_jax.weights.pipeline import in_float32
from tests.support import small_stages as small
from tests.support import smallest_pipelines, tiny_pipelines

_RNG = np.random.default_rng(0)
IMAGES = _RNG.integers(0, 256, (small.IMAGES, 8, 8, 3), np.uint8)
MASKS = 255 * _RNG.integers(0, 2, (small.IMAGES, 8, 8, 1), np.uint8)


def latents():
    network = tiny_pipelines.random_network('vae', smallest_pipelines.VAE, 0)
    return LatentSpace(vae=network, scaling_factor=0.5, scale=vae.size_divisor(network.config))


def test_pixels_are_kept_and_mirrored_together_with_their_masks():
    space = PixelSpace(side=8, halvings=1)
    kept = space.prepare(IMAGES, MASKS, flip=True, pairs=True)
    assert kept['images'] is IMAGES and kept['masks'] is MASKS
    assert space.prepare(IMAGES, None).keys() == {'images'}
    keys = small.keys(40)
    batch = {'image': np.arange(40) % small.IMAGES}
    images, masks, index = space.sample(jax.tree.map(jnp.asarray, kept), batch, keys, None, flip=True)
    np.testing.assert_array_equal(index, batch['image'])
    mirrored = np.asarray(jax.vmap(jax.random.bernoulli)(keys))
    assert 8 < mirrored.sum() < 32
    for found, given in ((images, IMAGES / 127.5 - 1), (masks, MASKS / 255)):
        expected = np.where(mirrored[:, None, None, None], given[batch['image']][:, :, ::-1], given[batch['image']])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_low_image_of_pixels_is_made_of_what_the_step_sees():
    x = jnp.asarray(IMAGES[:2, :4, :4], jnp.float32)
    low, size = PixelSpace().low_images({}, None, x, 2)
    np.testing.assert_array_equal(low, low_resolution.downsample(x, 2))
    assert size == (4, 4)
    assert PixelSpace().decode(None, x) is x


@pytest.mark.parametrize('flip', [False, True])
def test_latents_are_encoded_once_mirrored_images_by_themselves(flip):
    space = latents()
    kept = space.prepare(IMAGES, MASKS, flip=flip, pairs=True)
    count = small.IMAGES * (2 if flip else 1)
    assert {name: value.shape for name, value in kept.items()} == {
        'moments': (count, 4, 4, 8),
        'masks': (count, 4, 4, 1),
        'low': (count, 4, 4, 3),
    }
    images = with_mirrored(IMAGES) if flip else IMAGES
    exact = in_float32('vae', space.vae)
    moments = exact.apply(exact.params, images[-1:].astype(np.float32) / 127.5 - 1, method='encode')
    np.testing.assert_allclose(kept['moments'][-1:], moments, atol=1e-5)
    np.testing.assert_allclose(kept['low'][-1:], low_resolution.downsample(images[-1:] / 127.5 - 1, 2), atol=1e-6)
    assert space.prepare(IMAGES, None, flip=flip, pairs=False).keys() == {'moments'}


def test_a_step_samples_the_posterior_and_decoding_undoes_the_scale():
    space = latents()
    kept = {**space.prepare(IMAGES, None), 'prompt_of': np.zeros(small.IMAGES, np.int32)}
    x, masks, index = space.sample(jax.tree.map(jnp.asarray, kept), small.batch(), small.keys(), small.keys(seed=1))
    mean, log_variance = np.split(kept['moments'][index], 2, axis=-1)
    noise = (np.asarray(x) / space.scaling_factor - mean) / np.exp(log_variance / 2)
    assert masks is None and abs(noise.mean()) < 0.2 and 0.7 < noise.std() < 1.3
    images = space.decode(space.vae.params, x)
    plain = space.vae.apply(space.vae.params, x / space.scaling_factor, method='decode')
    np.testing.assert_allclose(images, np.clip(plain, -1, 1), atol=1e-6)
    assert images.shape == (6, 8, 8, 3)


@pytest.mark.parametrize('at_once', [1, 2, 3])
def test_large_images_are_decoded_a_few_of_every_device_at_a_time(at_once, monkeypatch):
    space, seen = latents(), []
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4, 4, 4)), jnp.float32)
    whole = space.decode(space.vae.params, x)
    monkeypatch.setattr(image_space, 'PIXELS_AT_ONCE', at_once * 8 * 8)
    apply = space.vae.apply

    def noted(params, latents, method):
        seen.append(len(latents))
        return apply(params, latents, method=method)

    space = dataclasses.replace(space, vae=dataclasses.replace(space.vae, apply=noted))
    mesh = Mesh(np.array(jax.devices()[:2]), ('data',))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    images = jax.jit(functools.partial(space.decode, devices=2))(space.vae.params, split)
    np.testing.assert_allclose(images, whole, atol=1e-5)
    assert set(seen) == {2 * min(at_once, 2)}  # of four images of each device, 3 at once is no equal part


@pytest.mark.slow
def test_images_above_a_size_are_decoded_in_tiles(monkeypatch):
    space = latents()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 32, 30, 4)), jnp.float32)
    whole = space.decode(space.vae.params, x)
    monkeypatch.setattr(image_space, '_TILE', 64)
    np.testing.assert_array_equal(space.decode(space.vae.params, x), whole)  # one tile
    monkeypatch.setattr(image_space, '_TILE', 48)
    tiled = space.decode(space.vae.params, x)
    assert tiled.shape == whole.shape == (1, 64, 60, 3)
    # Not equal, because norms see a tile; with the white noise that is decoded here 8 % apart.
    assert 0 < np.abs(tiled - whole).mean() < 0.15 * np.abs(whole).mean()


@pytest.mark.parametrize(
    ('size', 'count'), [((64, 64), 4), ((256, 256), 4), ((320, 320), 2), ((512, 512), 1), ((1024, 1024), 1)]
)
def test_fewer_large_images_are_encoded_at_once(size, count):
    assert image_space.images_at_once(size) == count
