"""Noise and times are functions of each example's key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import noise

KEYS = jax.random.split(jax.random.key(3), 5)
SHAPE = (16, 16, 3)


@pytest.mark.parametrize('offset', [0.0, 0.1])
def test_an_example_has_the_same_noise_whatever_its_neighbours(offset):
    together = noise.sample_noise(KEYS, SHAPE, offset=offset)
    assert together.shape == (5, *SHAPE) and together.dtype == jnp.float32
    alone = noise.sample_noise(KEYS[3:4], SHAPE, offset=offset)
    np.testing.assert_array_equal(together[3], alone[0])
    np.testing.assert_array_equal(noise.sample_noise(KEYS[::-1], SHAPE, offset=offset)[1], alone[0])


def test_examples_differ_and_are_standard_normal():
    sampled = np.asarray(noise.sample_noise(KEYS, (64, 64, 3)))
    assert abs(sampled.mean()) < 0.02 and abs(sampled.std() - 1) < 0.02
    assert abs(np.corrcoef(sampled[0].ravel(), sampled[1].ravel())[0, 1]) < 0.05


def test_offset_adds_one_number_per_example_and_channel():
    difference = noise.sample_noise(KEYS, SHAPE, offset=0.5) - noise.sample_noise(KEYS, SHAPE)
    channels = difference[:, :1, :1, :]
    np.testing.assert_allclose(difference, jnp.broadcast_to(channels, difference.shape), atol=1e-6)
    assert len(np.unique(np.round(np.asarray(channels), 5))) == 15


def test_older_uint32_keys_work():
    old = jax.random.key_data(KEYS)
    np.testing.assert_array_equal(noise.sample_noise(old, (2, 2, 1)), noise.sample_noise(KEYS, (2, 2, 1)))


def test_times_cover_their_range_example_by_example():
    keys = jax.random.split(jax.random.key(0), 400)
    t = noise.sample_timesteps(keys, 2, 6)
    assert t.dtype == jnp.int32 and t.shape == (400,)
    assert set(np.asarray(t)) == {2, 3, 4, 5}
    np.testing.assert_array_equal(noise.sample_timesteps(keys[7:9], 2, 6), t[7:9])


def test_empty_range_of_times_is_refused():
    with pytest.raises(ValueError, match=r'\[5, 5\)'):
        noise.sample_timesteps(KEYS, 5, 5)
