"""Small layers that every network shares: activations, norms, convolutions, time embeddings, resampling.

Conventions: feature maps are f[B, H, W, C]; parameters are f32; `dtype` is the compute dtype; statistics of norms are
f32 whatever `dtype` is. Attribute names are those of the published checkpoints.
Source: diffusers 0.42.1 models/{activations,embeddings,downsampling,upsampling}.py.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models.convolution import convolve


def _exact_gelu(x):
    # In f32 by erf; jax.nn.gelu goes through erfc, which takes XLA's CPU backend four times as long.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': _exact_gelu,  # torch's nn.GELU() is the exact one; jax's default is the tanh approximation
    'mish': jax.nn.mish,
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # of OpenAI's CLIP
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}


class GroupNorm(nnx.GroupNorm):
    """Group normalisation of f[B, ..., C] over all axes but the first and over the channels of a group.

    The same parameters as nnx.GroupNorm, but the sums over space are taken per channel and only then gathered into
    groups, and the result is one multiplication and addition per element: on XLA's CPU backend several times faster.
    Statistics are f32; the variance is taken from differences to the mean, as torch does.
    """

    def __init__(self, channels: int, groups: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        super().__init__(channels, num_groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        batch, channels = x.shape[0], x.shape[-1]
        space = tuple(range(1, x.ndim - 1))

        def per_group(values):  # f32[B, ..., C] -> the mean of its group, for every channel: f32[B, C]
            grouped = jnp.mean(values, axis=space).reshape(batch, self.num_groups, -1)
            return jnp.broadcast_to(jnp.mean(grouped, axis=-1, keepdims=True), grouped.shape).reshape(batch, channels)

        x = x.astype(jnp.float32)
        mean = per_group(x)
        wide = (batch, *(1 for _ in space), channels)
        variance = per_group(jnp.square(x - mean.reshape(wide)))
        scale = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        shift = self.bias[...] - mean * scale
        return (x * scale.reshape(wide) + shift.reshape(wide)).astype(self.dtype)


def layer_norm(features: int, *, epsilon: float = 1e-5, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with torch's epsilon and with the variance taken from differences to the mean."""
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def convolution(
    in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, zero: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square convolution with torch's padding.

    Args:
      kernel: odd side of the window.
      zero: start at zero, for the last convolution of a residual branch (guided-diffusion's zero_module).
    Returns: nnx.Conv from f[B, H, W, in] to f[B, H / stride, W / stride, out].
    """
    # Padding on both sides, as torch does; SAME with a stride would pad (0, 1) and shift every feature map.
    padding = ((kernel // 2, kernel // 2),) * 2
    start = {'kernel_init': nnx.initializers.zeros_init()} if zero else {}
    shape = (kernel, kernel)
    return nnx.Conv(
        in_channels,
        out_channels,
        shape,
        stride,
        padding=padding,
        dtype=dtype,
        rngs=rngs,
        conv_general_dilated=convolve,
        **start,
    )


def average_pool(x):
    """f[B, H, W, C] -> f[B, H/2, W/2, C], the mean of each 2 x 2 square; H and W even."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def nearest_upsample(x):
    """f[B, H, W, C] -> f[B, 2H, 2W, C], every pixel repeated in a 2 x 2 square."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def sinusoidal_embedding(values, width: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0):
    """Sines and cosines of times (or noise levels) at geometric frequencies.

    Args:
      values: int or float [B], usually 0..999.
      width: number of features, even or odd (an odd one ends in a zero).
      flip_sin_to_cos: cosines first.
      freq_shift: makes the last frequency 1e-4 exactly when 1.
    Returns: f32[B, width].
    Source: diffusers embeddings.get_timestep_embedding.
    """
    half = width // 2
    # In NumPy: an accelerator's fast exp would move the phase at t = 999 visibly.
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0)) / np.float32(half - freq_shift)
    phases = jnp.asarray(values, jnp.float32)[:, None] * np.exp(exponents)
    parts = [jnp.cos(phases), jnp.sin(phases)] if flip_sin_to_cos else [jnp.sin(phases), jnp.cos(phases)]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, width % 2)))


class TimestepEmbedding(nnx.Module):
    """Two dense layers from sinusoids (or another vector) f[B, in_features] to the time features f[B, features]."""

    def __init__(self, in_features: int, features: int, activation: str, *, dtype, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(in_features, features, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(features, features, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))
