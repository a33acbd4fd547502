"""The encoder of T5 v1.1, which maps token ids to one state for each token. Imagen-like models read prompts with it.

Submodules have the names of the published checkpoints. There, `encoder.embed_tokens` is the same tensor as `shared`;
here it is stored once, as `shared`.

Source: transformers 5.23 models/t5/modeling_t5.py; Raffel et al. 2020, Shazeer 2020 (gated activation).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration
from dreambooth_jax.models.attention import attend, split_heads

# Defaults of transformers' T5Config for the keys that determine the encoder.
DEFAULTS = {
    'vocab_size': 32128,
    'd_model': 512,
    'd_kv': 64,
    'd_ff': 2048,
    'num_layers': 6,
    'num_heads': 8,
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'initializer_factor': 1.0,
    'feed_forward_proj': 'relu',
}


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes a T5 config.json.

    Returns:
      All keys of DEFAULTS. Other keys do not concern the encoder and are left out.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    full = configuration.resolve('t5', config, DEFAULTS, choices={'feed_forward_proj': ('gated-gelu',)})
    buckets, furthest = 'relative_attention_num_buckets', 'relative_attention_max_distance'
    if full[buckets] < 4:
        raise configuration.wrong('t5', buckets, full[buckets], 'an integer of at least 4')
    if full[furthest] <= full[buckets] // 4:
        raise configuration.wrong('t5', furthest, full[furthest], f'more than a quarter of {buckets}')
    return full


def relative_position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Assigns each distance between two tokens to a bucket.

    Small distances have a bucket each, larger ones share buckets of logarithmic width. Keys before and after the query
    have different buckets.

    Args:
      length: number of tokens.
      buckets: number of buckets; half of them are for keys after the query.
      max_distance: all distances from this one on share the last bucket.

    Returns:
      i32[length, length] with the query on the first axis and the key on the second.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    # f32 as in torch, so that distances of exactly 16, 32, ... fall on the same side of a boundary.
    steps = np.log(far / np.float32(exact)) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    logarithmic = np.minimum(exact + steps.astype(np.int32), half - 1)
    near = np.abs(distance) < exact
    return (np.where(near, np.abs(distance), logarithmic) + half * (distance > 0)).astype(np.int32)


def _rms_norm(features, c, made):
    scale = nnx.initializers.constant(c['initializer_factor'])
    return nnx.RMSNorm(features, epsilon=c['layer_norm_epsilon'], scale_init=scale, **made)


def _dense(in_features, out_features, std, c, made):
    start = nnx.initializers.normal(std * c['initializer_factor'])
    return nnx.Linear(in_features, out_features, use_bias=False, kernel_init=start, **made)


class SelfAttention(nnx.Module):
    """Self-attention with unscaled logits; the position bias in the first block is used by all blocks."""

    def __init__(self, c, *, has_bias: bool, made):
        model, heads, width = c['d_model'], c['num_heads'], c['d_kv']
        self.heads = heads
        # The logits are not divided by sqrt(d_kv); instead, the initial query projection is smaller by this factor.
        self.q = _dense(model, heads * width, (model * width) ** -0.5, c, made)
        self.k = _dense(model, heads * width, model**-0.5, c, made)
        self.v = _dense(model, heads * width, model**-0.5, c, made)
        self.o = _dense(heads * width, model, (heads * width) ** -0.5, c, made)
        if has_bias:
            start = nnx.initializers.normal(model**-0.5 * c['initializer_factor'])
            self.relative_attention_bias = nnx.Embed(
                c['relative_attention_num_buckets'], heads, embedding_init=start, rngs=made['rngs']
            )

    def __call__(self, x, bias):
        """Maps x f[B, L, d_model], with bias f32[B, heads, L, L], to f[B, L, d_model]."""
        query, key, value = (split_heads(dense(x), self.heads) for dense in (self.q, self.k, self.v))
        return self.o(attend(query, key, value, scale=1.0, bias=bias).reshape(*x.shape[:-1], -1))


class GatedFeedForward(nnx.Module):
    """Computes wo(gelu(wi_0 x) * wi_1 x) with the tanh approximation of gelu ('gelu_new')."""

    def __init__(self, c, made):
        model, hidden = c['d_model'], c['d_ff']
        self.wi_0 = _dense(model, hidden, model**-0.5, c, made)
        self.wi_1 = _dense(model, hidden, model**-0.5, c, made)
        self.wo = _dense(hidden, model, hidden**-0.5, c, made)

    def __call__(self, x):
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class AttentionLayer(nnx.Module):
    """Residual self-attention after a norm."""

    def __init__(self, c, *, has_bias: bool, made):
        self.SelfAttention = SelfAttention(c, has_bias=has_bias, made=made)
        self.layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x, bias):
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nnx.Module):
    """Residual gated feed-forward layer after a norm."""

    def __init__(self, c, made):
        self.DenseReluDense = GatedFeedForward(c, made)
        self.layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x):
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One transformer block: `layer.0` is the self-attention and `layer.1` the feed-forward layer."""

    def __init__(self, c, *, has_bias: bool, made):
        self.layer = nnx.List([AttentionLayer(c, has_bias=has_bias, made=made), FeedForwardLayer(c, made)])

    def __call__(self, x, bias):
        return self.layer[1](self.layer[0](x, bias))


class Stack(nnx.Module):
    """All blocks and the final norm."""

    def __init__(self, c, made):
        self.block = nnx.List([Block(c, has_bias=index == 0, made=made) for index in range(c['num_layers'])])
        self.final_layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x, bias):
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5EncoderModel(nnx.Module):
    """The encoder of T5 v1.1.

    Args:
      config: contents of a transformers config.json; missing keys have the defaults of T5Config.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters, which have the distributions of transformers' `_init_weights`.

    Raises:
      ValueError: one sentence, if the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs):
        c = resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        start = nnx.initializers.normal(c['initializer_factor'])
        self.shared = nnx.Embed(c['vocab_size'], c['d_model'], embedding_init=start, **made)
        self.encoder = Stack(c, made)
        self.buckets = c['relative_attention_num_buckets']
        self.max_distance = c['relative_attention_max_distance']

    def __call__(self, input_ids, attention_mask=None):
        """Encodes token ids.

        Args:
          input_ids: i32[B, L] with 0 <= id < vocab_size.
          attention_mask: int or bool [B, L], zero for padding tokens; None if there is no padding.

        Returns:
          f32[B, L, d_model]; the states of padding tokens must not be used.
        """
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        classes = relative_position_buckets(input_ids.shape[1], self.buckets, self.max_distance)
        bias = jnp.transpose(table(classes), (2, 0, 1))[None].astype(jnp.float32)
        if attention_mask is not None:
            masked = jnp.asarray(attention_mask)[:, None, None, :] == 0
            bias = jnp.where(masked, jnp.finfo(jnp.float32).min, bias)
        return self.encoder(self.shared(input_ids), bias).astype(jnp.float32)
