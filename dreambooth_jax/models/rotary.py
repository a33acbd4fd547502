"""Rotary position embedding: pairs of channels of queries and keys are rotated by angles that grow with the position.

The angle of pair i of D / 2 at position p is p * theta ** (-2 i / D), so a product of a query and a key depends on the
difference of their positions only. Angles are computed in f64 on the host and rotations in f32.

Source: Su et al. 2021 (RoFormer); diffusers 0.42.1 models/embeddings.py (get_1d_rotary_pos_embed, apply_rotary_emb);
transformers 5.24 models/qwen3/modeling_qwen3.py (rotate_half).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np


def angles(positions, width: int, theta: float) -> np.ndarray:
    """Computes the angle of every pair of channels.

    Args:
      positions: int or float [...], known when the program is traced.
      width: D, the number of rotated channels, which is even.
      theta: base of the geometric series of frequencies.

    Returns:
      f64[..., width / 2].
    """
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return np.asarray(positions, np.float64)[..., None] * frequencies


def axes_angles(positions, widths: Sequence[int], theta: float) -> np.ndarray:
    """Computes angles for positions with several axes, each of which has channels of its own.

    Args:
      positions: int or float [L, axes].
      widths: number of rotated channels of each axis.
      theta: as in `angles`.

    Returns:
      f64[L, sum(widths) / 2], the axes one after the other.
    """
    positions = np.asarray(positions)
    return np.concatenate([angles(positions[:, axis], width, theta) for axis, width in enumerate(widths)], axis=-1)


def grid(height: int, width: int) -> np.ndarray:
    """Returns i64[height * width, 2], the (row, column) of every token of an image, row by row."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing='ij'), axis=-1).reshape(-1, 2)


def rotate_neighbours(x, cosines, sines):
    """Rotates the pairs of channels (0, 1), (2, 3), ... as the image transformers do.

    Args:
      x: f[B, L, heads, D].
      cosines: f32, broadcastable to [B, L, heads, D / 2]; of the angles.
      sines: likewise.

    Returns:
      f[B, L, heads, D] with the dtype of `x`.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = _rotate(pairs[..., 0], pairs[..., 1], cosines, sines)
    return jnp.stack([first, second], axis=-1).reshape(x.shape).astype(x.dtype)


def rotate_halves(x, cosines, sines):
    """Rotates the pairs of channels (0, D / 2), (1, D / 2 + 1), ... as language models do; see rotate_neighbours."""
    halves = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_rotate(*halves, cosines, sines), axis=-1).astype(x.dtype)


def _rotate(first, second, cosines, sines):
    return first * cosines - second * sines, second * cosines + first * sines


def of_heads(angle) -> tuple[np.ndarray, np.ndarray]:
    """Returns (cosines, sines) f32[L, 1, D / 2] of angles f64[L, D / 2], which are the same for all heads."""
    return tuple(function(angle).astype(np.float32)[:, None, :] for function in (np.cos, np.sin))
