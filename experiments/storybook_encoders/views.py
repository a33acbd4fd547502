"""Views of paintings: crops of any size, mirrored or not, some from 32 px, some on another painting, disturbed.

A crop is two matrix products, which say how much of every row and column of the painting is in a row and column of the
view; so is the way down to 32 px and back, which images of the base stage have behind them. CPUs are quick at that.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.evaluation.disturbance import disturb
from dreambooth_jax.models.vit import cubic_weights

LOW = 32  # px, the side of the base stage's images
DISTURBED = dict(blur=0.8, coarse=0.6, noise=0.05)


@dataclasses.dataclass(frozen=True)
class View:
    """How a view is taken.

    Attributes:
      side: of the view, px.
      shares: the smallest and largest side of the crop, as shares of the painting's.
      low: how often the painting has been brought to 32 px.
      pasted: how often the middle of the painting lies on another painting of the batch.
      other: on which one: how many places further it stands in the batch.
    """

    side: int
    shares: tuple[float, float]
    low: float = 0.4
    pasted: float = 0.0
    other: int = 1


def take(images, key, view: View):
    """Returns a view of every painting: uint8[B, S, S, 3] -> f32[B, side, side, 3] in [0, 1]."""
    rows, size = images.shape[:2]
    x = images.astype(jnp.float32) / 255
    keys = jax.random.split(key, 9)
    if view.pasted:
        x = _pasted(x, keys[0], view.pasted, view.other)
    share = jax.random.uniform(keys[1], (rows, 1), minval=view.shares[0], maxval=view.shares[1])
    stretch = jax.random.uniform(keys[2], (rows, 1), minval=0.92, maxval=1.0)
    wider = jax.random.uniform(keys[3], (rows, 1)) < 0.5
    is_low = jax.random.uniform(keys[4], (rows, 1, 1)) < view.low
    down = _crop(keys[5], view.side, size, jnp.where(wider, share, share * stretch))
    right = _crop(keys[6], view.side, size, jnp.where(wider, share * stretch, share))
    right = jnp.where(jax.random.uniform(keys[7], (rows, 1, 1)) < 0.5, right, right[:, ::-1])
    there_and_back = jnp.asarray(_there_and_back(size), jnp.float32)
    down, right = (jnp.where(is_low, axis @ there_and_back, axis) for axis in (down, right))
    x = jnp.matmul(down, x.reshape(rows, size, size * 3)).reshape(rows, view.side, size, 3)
    x = jnp.matmul(right, x.swapaxes(1, 2).reshape(rows, size, view.side * 3)).reshape(rows, view.side, view.side, 3)
    return disturb(x.swapaxes(1, 2), keys[8], **DISTURBED)


def _crop(key, side: int, size: int, share):
    """f32[B, side, size], whose rows sum to 1: a crop anywhere, by a triangular kernel that grows with the step."""
    start = jax.random.uniform(key, share.shape) * (1 - share) * size
    step = share * size / side
    centres = start + (jnp.arange(side) + 0.5) * step  # [B, side]
    distances = jnp.abs(jnp.arange(size) + 0.5 - centres[..., None]) / jnp.maximum(step, 1)[..., None]
    weights = jnp.maximum(1 - distances, 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def _there_and_back(size: int) -> np.ndarray:
    """f64[size, size]: averages of squares that give 32 px, and cubic enlargement."""
    average = np.kron(np.eye(LOW), np.full((1, size // LOW), LOW / size))
    return cubic_weights(LOW, size, antialias=True) @ average


def _pasted(x, key, chance: float, other: int):
    """Lays the middle of some paintings on another one of the batch, so that only the middle tells whose view it is.

    The middle is an ellipse of a third of the area, which holds most of what a painting shows. Nothing is known of the
    painting.
    """
    rows, size = x.shape[:2]
    keys = jax.random.split(key, 3)
    half = jax.random.uniform(keys[0], (rows, 2, 1), minval=0.26, maxval=0.4) * size
    middle = jax.random.uniform(keys[1], (rows, 2, 1), minval=0.46, maxval=0.58) * size
    across = ((jnp.arange(size) + 0.5 - middle) / half) ** 2
    distance = jnp.sqrt(across[:, 0, :, None, None] + across[:, 1, None, :, None])
    mask = jnp.clip((1 - distance) * 12 + 0.5, 0, 1)  # the edge is about 3 px soft
    pasted = mask * x + (1 - mask) * jnp.roll(x, -other, axis=0)
    return jnp.where(jax.random.uniform(keys[2], (rows, 1, 1, 1)) < chance, pasted, x)
