"""Parts of diffusion transformers: norms whose scale and shift depend on the time, and attention of joined streams.

Modulation and output layers start at zero, so a new network starts as the identity with a zero output (adaLN-Zero).
Attributes have the names of the published checkpoints.

Source: Peebles & Xie 2023 (DiT); Esser et al. 2024 (Stable Diffusion 3, joint attention and QK norm); diffusers 0.42.1
models/normalization.py, models/transformers/transformer_flux2.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models.attention import split_heads

ZERO = nnx.initializers.zeros_init()


def normalise(x, epsilon: float):
    """Normalises f[..., C] over the channels, without learned scale and shift; statistics are f32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def modulated(x, shift, scale, epsilon: float):
    """Normalises x f[B, L, C] and gives it the shift and scale f[B, 1, C] of a time."""
    return normalise(x, epsilon) * (1 + scale) + shift


def within_range(x):
    """Keeps float16 from becoming infinite in a residual stream, as diffusers does; other dtypes are returned as is."""
    return jnp.clip(x, -65504, 65504) if x.dtype == jnp.float16 else x


class Modulation(nnx.Module):
    """Maps time features f[B, width] to `count` vectors f[B, 1, width], such as shift, scale and gate."""

    def __init__(self, width: int, count: int, *, dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, count * width, use_bias=False, kernel_init=ZERO, dtype=dtype, rngs=rngs)
        self.count = count

    def __call__(self, time):
        return jnp.split(self.linear(jax.nn.silu(time))[:, None, :], self.count, axis=-1)


class ModulatedNorm(nnx.Module):
    """The last norm, f[B, L, width] with time features f[B, width]; here, the scale comes before the shift."""

    def __init__(self, width: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, 2 * width, use_bias=False, kernel_init=ZERO, dtype=dtype, rngs=rngs)
        self.epsilon = epsilon

    def __call__(self, x, time):
        scale, shift = jnp.split(self.linear(jax.nn.silu(time))[:, None, :], 2, axis=-1)
        return modulated(x, shift, scale, self.epsilon)


def silu_gated(x):
    """Half of the channels times the silu of the other, first half: f[..., 2 C] -> f[..., C]."""
    gate, up = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * up


class GatedFeedForward(nnx.Module):
    """Two dense layers without bias and with a gate between them (SwiGLU): f[..., width] -> f[..., width]."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.linear_in = nnx.Linear(width, 2 * hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.linear_out = nnx.Linear(hidden, width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.linear_out(silu_gated(self.linear_in(x)))


class HeadNorms(nnx.Module):
    """Base of attentions that normalise the queries and keys of each head (QK norm) with `norm_q` and `norm_k`."""

    def __init__(self, heads: int, head_dim: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_q = nnx.RMSNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.norm_k = nnx.RMSNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def split(self, query, key, value):
        """Splits f[B, L, heads * D] each into f[B, L, heads, D], and normalises queries and keys."""
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        return self.norm_q(query), self.norm_k(key), value
