"""Small layers that all networks use: activations, norms, convolutions, time embeddings and resampling.

Feature maps are f[B, H, W, C], parameters are f32, and `dtype` is the compute dtype. The statistics of norms are f32,
whatever `dtype` is. Attributes have the names of the published checkpoints.

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
    # Computed by erf in f32: jax.nn.gelu uses erfc, for which XLA's CPU backend takes four times as long.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': _exact_gelu,  # torch's nn.GELU() is exact, while JAX's default is the tanh approximation
    'mish': jax.nn.mish,
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # used by OpenAI's CLIP
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}


class GroupNorm(nnx.GroupNorm):
    """Group normalisation of f[B, ..., C], over all positions and over the channels of a group.

    It has the parameters of nnx.GroupNorm but is several times faster on XLA's CPU backend: it first sums over the
    positions for each channel and then over the channels of a group, and needs one multiplication and one addition for
    each element of the result. Statistics are f32. The variance is the mean of squared differences to the mean, as in
    torch.
    """

    def __init__(self, channels: int, groups: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        super().__init__(channels, num_groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        batch, channels = x.shape[0], x.shape[-1]
        space = tuple(range(1, x.ndim - 1))

        def per_group(values):  # f32[B, ..., C] -> f32[B, C], the mean of each channel's group
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
    """Returns a layer norm with torch's epsilon, whose variance is the mean of squared differences to the mean."""
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def convolution(
    in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, zero: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """Returns a convolution with a square kernel and torch's padding.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      kernel: side of the kernel, an odd number.
      stride: the stride in both directions.
      zero: whether the kernel starts at zero, for the last convolution of a residual branch (guided-diffusion's
        zero_module).
      dtype: compute dtype.
      rngs: source of the initial parameters.

    Returns:
      nnx.Conv from f[B, H, W, in_channels] to f[B, H / stride, W / stride, out_channels].
    """
    # Padding is the same on both sides, as in torch. With a stride, SAME would pad (0, 1) and shift the feature map.
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
    """Halves the resolution: f[B, H, W, C] -> f[B, H/2, W/2, C], the mean of each 2 x 2 square; H and W are even."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def nearest_upsample(x):
    """Doubles the resolution: f[B, H, W, C] -> f[B, 2H, 2W, C], where each pixel becomes a 2 x 2 square."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def sinusoidal_embedding(values, width: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0):
    """Embeds times or noise levels as sines and cosines with frequencies in a geometric series.

    Args:
      values: int or float [B], usually 0..999.
      width: number of features. If it is odd, the last feature is zero.
      flip_sin_to_cos: whether the cosines come before the sines.
      freq_shift: with 1, the last frequency is exactly 1e-4.

    Returns:
      f32[B, width].

    Source: diffusers embeddings.get_timestep_embedding.
    """
    half = width // 2
    # The frequencies are computed in NumPy: the fast exp of an accelerator would visibly change the phase at t = 999.
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0)) / np.float32(half - freq_shift)
    phases = jnp.asarray(values, jnp.float32)[:, None] * np.exp(exponents)
    parts = [jnp.cos(phases), jnp.sin(phases)] if flip_sin_to_cos else [jnp.sin(phases), jnp.cos(phases)]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, width % 2)))


class TimestepEmbedding(nnx.Module):
    """Two dense layers that map sinusoids (or another vector) f[B, in_features] to time features f[B, features]."""

    def __init__(
        self, in_features: int, features: int, activation: str, *, use_bias: bool = True, dtype, rngs: nnx.Rngs
    ):
        self.linear_1 = nnx.Linear(in_features, features, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(features, features, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))
