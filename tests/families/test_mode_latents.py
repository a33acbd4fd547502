"""What a stage keeps of its images when the mode of their posterior is taken; decoding is in test_z_image.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.families.reading import read_pipeline
from tests.support import tiny_z_image

SIZE, SIDE = tiny_z_image.SIZE, tiny_z_image.SIZE // 2
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
MASKS = np.zeros((2, SIZE, SIZE, 1), np.uint8)
MASKS[:, : SIZE // 2] = 255


@functools.cache
def space():
    """Of a pipeline of which only the autoencoder was read."""
    return read_pipeline(tiny_z_image.folder(), components=('vae',)).space


def test_what_is_kept_has_the_shapes_that_were_said():
    kept = space().prepare(IMAGES, MASKS, flip=True, pairs=False)
    said = space().prepared_shapes(IMAGES, MASKS, flip=True, pairs=False)
    assert kept['latents'].shape == (4, SIDE, SIDE, 4)
    assert {name: (value.shape, value.dtype) for name, value in kept.items()} == {
        name: (value.shape, value.dtype) for name, value in said.items()
    }
    # Mirrored images follow the others, and are encoded for themselves.
    mirrored = space().prepare(IMAGES[:, :, ::-1], None, flip=False, pairs=False)
    assert mirrored.keys() == {'latents'}
    np.testing.assert_allclose(kept['latents'][2:], mirrored['latents'], atol=1e-5)
    assert np.abs(kept['latents'][2:] - kept['latents'][:2, :, ::-1]).max() > 1e-3
    np.testing.assert_array_equal(kept['masks'][:, : SIDE // 2 - 1], 255)
    np.testing.assert_array_equal(kept['masks'][:, SIDE // 2 + 1 :], 0)


def test_a_step_sees_the_same_latents_whatever_its_keys():
    latents = np.arange(4 * SIDE * SIDE * 4, dtype=np.float32).reshape(4, SIDE, SIDE, 4)
    frozen = {'latents': jnp.asarray(latents), 'prompt_of': jnp.zeros(2, jnp.int32)}
    keys = jax.random.split(jax.random.key(0), 32)
    batch = {'image': jnp.tile(jnp.arange(2), 16)}
    plain, masks, _ = space().sample(frozen, batch, keys, keys, flip=False)
    assert masks is None
    np.testing.assert_array_equal(plain, latents[np.asarray(batch['image'])])
    flipped, _, index = space().sample(frozen, batch, keys, keys, flip=True)
    np.testing.assert_array_equal(flipped, latents[np.asarray(index)])
    assert set(np.asarray(index)) == {0, 1, 2, 3}
