"""Conversion between the two resolutions of a cascade.

Images are downsampled with antialiasing, and enlarged as the super-resolution pipeline does it.

Images are NHWC, in any linear range ([-1, 1] in training). Both functions can be jitted.
"""

import jax
import jax.numpy as jnp
import numpy as np


def downsample(high: jax.Array, factor: int) -> jax.Array:
    """Returns the mean of every factor x factor box.

    For a whole factor this equals PIL's BOX filter and torch's 'area' interpolation.

    Args:
      high: float[B, H, W, C].
      factor: static, > 0; it divides H and W.

    Returns:
      float[B, H // factor, W // factor, C].

    Raises:
      ValueError: if the factor does not divide a side.
    """
    count, height, width, channels = high.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f'{height} x {width} pixels cannot be downsampled by {factor}; it must divide both sides')
    return high.reshape(count, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))


def upsample(low: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Resizes bilinearly with aligned corners.

    This is exactly how diffusers' IFSuperResolutionPipeline prepares the low-resolution image.

    Args:
      low: float[B, h, w, C].
      size: static, (height, width) or the side of a square; it may also be smaller than the image.

    Returns:
      float[B, height, width, C].

    Source: F.interpolate(mode='bilinear', align_corners=True): the centres of the corner pixels stay in the corners.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return _stretch(_stretch(low, height, axis=1), width, axis=2)


def _stretch(images: jax.Array, size: int, axis: int) -> jax.Array:
    old = images.shape[axis]
    # Positions are in float32, as torch computes them; exact positions would differ by 1e-5 of a pixel.
    position = np.arange(size, dtype=np.float32) * np.float32((old - 1) / max(size - 1, 1))
    before = np.minimum(position.astype(np.int32), old - 1)
    share = jnp.asarray(np.expand_dims(position - before, [d for d in range(4) if d != axis]), images.dtype)
    after = np.minimum(before + 1, old - 1)
    return (1 - share) * jnp.take(images, before, axis=axis) + share * jnp.take(images, after, axis=axis)
