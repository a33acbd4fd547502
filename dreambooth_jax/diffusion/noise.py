"""The random numbers of training and sampling: noise and whole times.

There is one key per example. The random numbers of an example depend on its key alone, not on the other examples or on
the batch size, so they stay the same however a batch is split over devices. Keys are jax.random.key arrays [B] (or the
older u32[B, 2]).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def sample_noise(keys: jax.Array, shape: Sequence[int], *, offset: float = 0.0) -> jax.Array:
    """Samples standard normal noise, f32[B, *shape].

    Args:
      keys: key[B], one per example.
      shape: the shape of one example, channels last: (H, W, C).
      offset: the strength of offset noise, usually 0 to 0.1. It adds offset * N(0, 1) to each channel, the same
        number at all pixels, so that the model learns brightness too. The rest of the noise does not depend on it.

    Source: offset noise, https://www.crosslabs.org/blog/diffusion-with-offset-noise
    """
    shape = tuple(shape)

    def sample(key: jax.Array) -> jax.Array:
        pixel_key, channel_key = jax.random.split(key)
        noise = jax.random.normal(pixel_key, shape, jnp.float32)
        if isinstance(offset, (int, float)) and offset == 0:
            return noise
        channels = (1,) * (len(shape) - 1) + shape[-1:]
        return noise + offset * jax.random.normal(channel_key, channels, jnp.float32)

    return jax.vmap(sample)(keys)


def sample_timesteps(keys: jax.Array, low: int, high: int) -> jax.Array:
    """Samples uniform times in [low, high), i32[B], with one key per example, key[B].

    Raises:
      ValueError: unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f'Times are sampled from [{low}, {high}); 0 <= low < high is needed.')
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high, jnp.int32))(keys)
