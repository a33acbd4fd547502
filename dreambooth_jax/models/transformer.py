"""The transformer of Stable Diffusion's UNet, made of self-attention, attention to the text and a feed-forward layer.

Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/transformers/transformer_2d.py, models/attention.py (BasicTransformerBlock,
FeedForward), models/attention_processor.py (Attention).
"""

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.functional import call
from dreambooth_jax.models.layers import ACTIVATIONS, GroupNorm, convolution, layer_norm

INPUT_NORM_EPSILON = 1e-6  # of Transformer2DModel's group norm, independent of norm_eps
EXPANSION = 4  # hidden width of the feed-forward layer, divided by the width of its input


class Attention(nnx.Module):
    """Attention of f[B, L, channels] to f[B, K, context_channels]; queries, keys and values have no bias.

    Args:
      channels: channels of the queries and of the output.
      heads: number of heads, a divisor of `channels`.
      context_channels: channels of the context, which gives keys and values.
      dtype: compute dtype.
      rngs: source of the initial parameters.
    """

    def __init__(self, channels: int, heads: int, context_channels: int, *, dtype, rngs: nnx.Rngs):
        made = {'dtype': dtype, 'rngs': rngs}
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=False, **made)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=False, **made)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=False, **made)
        self.to_out = nnx.List([nnx.Linear(channels, channels, **made)])

    def __call__(self, x, context):
        """Maps x f[B, L, channels] and context f[B, K, context_channels] to f[B, L, channels]."""
        parts = (self.to_q(x), self.to_k(context), self.to_v(context))
        query, key, value = (split_heads(part, self.heads) for part in parts)
        return self.to_out[0](attend(query, key, value, scale=query.shape[-1] ** -0.5).reshape(x.shape))


class GEGLU(nnx.Module):
    """Half of a dense layer times the gelu of its other half: f[..., in_features] -> f[..., out_features]."""

    def __init__(self, in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs):
        self.proj = nnx.Linear(in_features, 2 * out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * ACTIVATIONS['gelu'](gate)


class FeedForward(nnx.Module):
    """Two dense layers with a gated gelu between them: f[..., channels] -> f[..., channels]."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        made = {'dtype': dtype, 'rngs': rngs}
        hidden = EXPANSION * channels
        # In the published network net.1 is a dropout layer. It has no weights but takes an index.
        self.net = nnx.List([GEGLU(channels, hidden, **made), None, nnx.Linear(hidden, channels, **made)])

    def __call__(self, x):
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Self-attention (attention to the text if only_cross_attention), attention to the text, feed-forward layer."""

    def __init__(
        self, channels: int, heads: int, text_channels: int, *, only_cross_attention: bool, dtype, rngs: nnx.Rngs
    ):
        made = {'dtype': dtype, 'rngs': rngs}
        self.only_cross_attention = only_cross_attention
        self.norm1 = layer_norm(channels, **made)
        self.attn1 = Attention(channels, heads, text_channels if only_cross_attention else channels, **made)
        self.norm2 = layer_norm(channels, **made)
        self.attn2 = Attention(channels, heads, text_channels, **made)
        self.norm3 = layer_norm(channels, **made)
        self.ff = FeedForward(channels, **made)

    def __call__(self, x, text):
        """Maps x f[B, L, channels] and text f[B, K, text_channels] to f[B, L, channels]."""
        h = self.norm1(x)
        x = x + self.attn1(h, text if self.only_cross_attention else h)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the positions of a feature map, in a residual branch that starts at zero.

    Args:
      channels: channels of the feature map.
      heads: number of attention heads, a divisor of `channels`.
      text_channels: width of the text states.
      layers: number of blocks.
      groups: number of groups of the norm at the input.
      linear_projection: whether `proj_in` and `proj_out` are dense layers or 1x1 convolutions. They compute the same
        but are stored differently.
      only_cross_attention: whether the first attention of each block also attends to the text.
      remat: whether each block is computed again in the backward pass.
      dtype: compute dtype.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        text_channels: int,
        *,
        layers: int,
        groups: int,
        linear_projection: bool,
        only_cross_attention: bool,
        remat: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        made = {'dtype': dtype, 'rngs': rngs}
        self.norm = GroupNorm(channels, groups, INPUT_NORM_EPSILON, **made)
        self.proj_in = (
            nnx.Linear(channels, channels, **made) if linear_projection else convolution(channels, channels, 1, **made)
        )
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(channels, heads, text_channels, only_cross_attention=only_cross_attention, **made)
                for _ in range(layers)
            ]
        )
        self.proj_out = (
            nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros_init(), **made)
            if linear_projection
            else convolution(channels, channels, 1, zero=True, **made)
        )
        self.remat = remat

    def __call__(self, x, text):
        """x f[B, H, W, channels], text f[B, L, text_channels] -> f[B, H, W, channels]."""
        batch, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            h = call(block, h, text, remat=self.remat)
        return x + self.proj_out(h.reshape(x.shape))
