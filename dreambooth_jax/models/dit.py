"""Parts of diffusion transformers: norms whose scale and shift depend on the time, and attention of joined streams.

Modulation and output layers start at zero, so a new network starts as the identity with a zero output (adaLN-Zero).
Attributes have the names of the published checkpoints.

Source: Peebles & Xie 2023 (DiT); Esser et al. 2024 (Stable Diffusion 3, joint attention and QK norm); diffusers 0.42.1
models/normalization.py, models/attention.py (FeedForward), models/transformers/transformer_flux.py and
transformer_flux2.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import configuration, rotary
from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.layers import TimestepEmbedding, sinusoidal_embedding

ZERO = nnx.initializers.zeros_init()
SINUSOIDS = 256  # features of a time before it is embedded
EXPANSION = 4  # hidden width of a FeedForward, divided by the width of its input


def resolve(network: str, config: Mapping[str, Any], defaults: Mapping[str, Any], *, axes: int) -> dict[str, Any]:
    """Checks and completes the config.json of a transformer whose tokens are rotated by positions with several axes.

    Args:
      network: name of the network for an error.
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.
      defaults: {key: default in the constructor of diffusers}; patch_size may have no other value.
      axes: the number of axes of a position.

    Returns:
      All keys of `defaults`; `out_channels` is a number.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    configuration.check_known(network, config, defaults)
    full = configuration.resolve(network, config, defaults, choices={}, fixed=('patch_size',))
    if full['out_channels'] is None:
        full['out_channels'] = full['in_channels']
    elif not configuration.is_positive(full['out_channels'], int):
        raise configuration.wrong(network, 'out_channels', full['out_channels'], 'a positive integer or None')
    widths, head = full['axes_dims_rope'], full['attention_head_dim']
    is_list = isinstance(widths, list | tuple) and all(configuration.is_positive(width, int) for width in widths)
    if not is_list or len(widths) != axes or any(width % 2 for width in widths) or sum(widths) != head:
        allowed = f'a list of {axes} even integers with the sum attention_head_dim, which is {head}'
        raise configuration.wrong(network, 'axes_dims_rope', widths, allowed)
    return full


def check_inputs(network: str, sample, text, *, channels: int, text_width: int) -> None:
    """Raises ValueError, one sentence, unless sample is [B, h, w, channels] and the text states [B, L, text_width]."""
    if sample.ndim != 4 or sample.shape[-1] != channels:
        raise ValueError(f'{network}: sample has shape {sample.shape} but must be [B, h, w, {channels}]')
    if text.ndim != 3 or text.shape[-1] != text_width:
        raise ValueError(f'{network}: encoder_hidden_states have shape {text.shape} but must be [B, L, {text_width}]')


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

    def __init__(self, width: int, count: int, *, use_bias: bool = False, dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, count * width, use_bias=use_bias, kernel_init=ZERO, dtype=dtype, rngs=rngs)
        self.count = count

    def __call__(self, time):
        return jnp.split(self.linear(jax.nn.silu(time))[:, None, :], self.count, axis=-1)


class ModulatedNorm(nnx.Module):
    """The last norm, f[B, L, width] with time features f[B, width]; here, the scale comes before the shift."""

    def __init__(self, width: int, epsilon: float, *, use_bias: bool = False, dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, 2 * width, use_bias=use_bias, kernel_init=ZERO, dtype=dtype, rngs=rngs)
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


class GELU(nnx.Module):
    """A dense layer and gelu in its tanh approximation: f[..., width] -> f[..., hidden]."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.proj = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return jax.nn.gelu(self.proj(x), approximate=True)


class FeedForward(nnx.Module):
    """Two dense layers with a gelu between them: f[..., width] -> f[..., width]."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        made = {'dtype': dtype, 'rngs': rngs}
        hidden = EXPANSION * width
        # In the published network net.1 is a dropout layer. It has no weights but takes an index.
        self.net = nnx.List([GELU(width, hidden, **made), None, nnx.Linear(hidden, width, **made)])

    def __call__(self, x):
        return self.net[2](self.net[0](x))


class TimeTextEmbedding(nnx.Module):
    """Sum of the embedded times f32[B], pooled text f[B, P] and, if it is embedded, guidance f32[B].

    Times and guidance are embedded as they are, so they are multiplied by 1000 before.
    """

    def __init__(self, width: int, pooled_width: int, *, guided: bool = False, dtype, rngs: nnx.Rngs):
        def embedder(features):
            return TimestepEmbedding(features, width, 'silu', dtype=dtype, rngs=rngs)

        self.timestep_embedder = embedder(SINUSOIDS)
        self.guidance_embedder = embedder(SINUSOIDS) if guided else None
        self.text_embedder = embedder(pooled_width)

    def __call__(self, time, pooled, guidance=None):
        found = self.timestep_embedder(sinusoidal_embedding(time, SINUSOIDS))
        if self.guidance_embedder is not None:
            found = found + self.guidance_embedder(sinusoidal_embedding(guidance, SINUSOIDS))
        return found + self.text_embedder(pooled)


class HeadNorms(nnx.Module):
    """Base of attentions that normalise the queries and keys of each head (QK norm) with `norm_q` and `norm_k`.

    Without `qk_norm` there are no such norms, as in the first Stable Diffusion 3.
    """

    def __init__(self, heads: int, head_dim: int, epsilon: float, *, qk_norm: bool = True, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_q = nnx.RMSNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs) if qk_norm else None
        self.norm_k = nnx.RMSNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs) if qk_norm else None

    def split(self, query, key, value):
        """Splits f[B, L, heads * D] each into f[B, L, heads, D], and normalises queries and keys."""
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        return _normed(self.norm_q, query), _normed(self.norm_k, key), value


def _normed(norm, x):
    return x if norm is None else norm(x)


def rotate_and_attend(query, key, value, rotation=None):
    """Rotates queries and keys, and attends: f[B, L, heads, D] each -> f[B, L, heads * D].

    `rotation` holds cosines and sines, f32 broadcastable to [B, L, heads, D / 2] each; with None nothing is rotated.
    """
    if rotation is not None:
        query, key = (rotary.rotate_neighbours(part, *rotation) for part in (query, key))
    return attend(query, key, value, scale=query.shape[-1] ** -0.5).reshape(*query.shape[:2], -1)


class JointAttention(HeadNorms):
    """Attention of text and image to both, with projections of their own.

    Without `text_out` the text has no result: only the image attends.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        epsilon: float,
        *,
        use_bias: bool = False,
        qk_norm: bool = True,
        text_out: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        made = {'dtype': dtype, 'rngs': rngs}
        super().__init__(heads, head_dim, epsilon, qk_norm=qk_norm, **made)
        width = heads * head_dim

        def dense():
            return nnx.Linear(width, width, use_bias=use_bias, **made)

        self.to_q, self.to_k, self.to_v = dense(), dense(), dense()
        self.to_out = nnx.List([dense()])
        self.add_q_proj, self.add_k_proj, self.add_v_proj = dense(), dense(), dense()
        self.norm_added_q = nnx.RMSNorm(head_dim, epsilon=epsilon, **made) if qk_norm else None
        self.norm_added_k = nnx.RMSNorm(head_dim, epsilon=epsilon, **made) if qk_norm else None
        self.to_add_out = dense() if text_out else None

    def __call__(self, x, text, rotation=None):
        """Maps x f[B, N, width] and text f[B, L, width] to two arrays of these shapes; the second may be None."""
        image = self.split(self.to_q(x), self.to_k(x), self.to_v(x))
        query, key, value = (
            projection(text).reshape(*text.shape[:2], self.heads, -1)
            for projection in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        added = _normed(self.norm_added_q, query), _normed(self.norm_added_k, key), value
        joined = (jnp.concatenate(pair, axis=1) for pair in zip(added, image, strict=True))
        attended = rotate_and_attend(*joined, rotation)
        length = text.shape[1]
        of_text = None if self.to_add_out is None else self.to_add_out(attended[:, :length])
        return self.to_out[0](attended[:, length:]), of_text


class JointBlock(nnx.Module):
    """Base of blocks with a joint attention `attn` and a feed-forward layer for each stream, `ff` and `ff_context`."""

    def update(self, streams, of_image, of_text, rotation, epsilon: float):
        """Maps the streams to two arrays of their shapes.

        Args:
          streams: tokens of the image f[B, N, width] and of the text f[B, L, width].
          of_image: shift, scale and gate of the attention and of the feed-forward layer, f[B, 1, width] each.
          of_text: likewise for the text.
          rotation: cosines and sines of all tokens, the text's first.
          epsilon: of the norms.
        """
        x, text = streams
        shift, scale, gate, ff_shift, ff_scale, ff_gate = of_image
        text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = of_text
        attended, text_attended = self.attn(
            modulated(x, shift, scale, epsilon), modulated(text, text_shift, text_scale, epsilon), rotation
        )
        x = x + gate * attended
        x = x + ff_gate * self.ff(modulated(x, ff_shift, ff_scale, epsilon))
        text = text + text_gate * text_attended
        text = text + text_ff_gate * self.ff_context(modulated(text, text_ff_shift, text_ff_scale, epsilon))
        return x, within_range(text)
