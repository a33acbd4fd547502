"""What generated images have and painted ones have not: softness, a lower resolution, colours off, noise.

The networks that look at Storybook's images (its classifier, its encoders) are trained on paintings that are disturbed
in this way. Images are f32[B, H, W, 3] in [0, 1]; everything may be traced.
"""

import jax
import jax.numpy as jnp


def disturb(x, key, *, blur: float, coarse: float, noise: float):
    """Disturbs images, each in its own way; every fourth one, the first included, stays as it is.

    Args:
      x: f32[B, H, W, 3] in [0, 1] with even H = W.
      key: jax.random.key.
      blur: how much of a blurred image is mixed in at most; down to -0.3 of that, an image is sharpened.
      coarse: how much of an image of half the resolution is mixed in at most, in [0.2, 1].
      noise: the largest deviation of the noise.

    Returns:
      f32[B, H, W, 3] in [0, 1], multiples of 1/255.
    """
    rows, size = x.shape[0], x.shape[1]
    keys = jax.random.split(key, 8)
    clean = x
    x = x + some(keys[0], rows, 0.6, -0.3 * blur, blur) * (blurred(x) - x)
    low = jax.image.resize(x.reshape(rows, size // 2, 2, size // 2, 2, 3).mean(axis=(2, 4)), x.shape, 'bilinear')
    x = x + some(keys[1], rows, 0.25, 0.2, coarse) * (low - x)
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * (1 + some(keys[2], rows, 0.6, -0.25, 0.25))
    x = 0.5 + (x - 0.5) * (1 + some(keys[3], rows, 0.6, -0.2, 0.2)) + some(keys[4], rows, 0.6, -0.08, 0.08)
    x = x * (1 + jax.random.uniform(keys[5], (rows, 1, 1, 3), minval=-0.06, maxval=0.06))
    x = x + some(keys[6], rows, 0.6, 0.0, noise) * jax.random.normal(keys[7], x.shape)
    x = jnp.where((jnp.arange(rows) % 4 == 0)[:, None, None, None], clean, x)
    return jnp.round(255 * jnp.clip(x, 0, 1)) / 255


def some(key, rows: int, chance: float, low: float, high: float):
    """Returns f32[rows, 1, 1, 1]: uniform in [low, high] with this chance, else 0."""
    first, second = jax.random.split(key)
    amount = jax.random.uniform(first, (rows, 1, 1, 1), minval=low, maxval=high)
    return jnp.where(jax.random.uniform(second, amount.shape) < chance, amount, 0.0)


def blurred(x):
    """Returns f32[B, H, W, C] smoothed by the weights 1/4, 1/2, 1/4 both ways, the edge repeated."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    x = 0.25 * x[:, :-2] + 0.5 * x[:, 1:-1] + 0.25 * x[:, 2:]
    return 0.25 * x[:, :, :-2] + 0.5 * x[:, :, 1:-1] + 0.25 * x[:, :, 2:]
