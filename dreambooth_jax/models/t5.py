"""The encoder of T5 v1.1: token ids in, one state per token out. It reads the prompts of Imagen-like models.

Children are named as in the published checkpoints; `encoder.embed_tokens` is the same tensor as `shared` there and is
held once, as `shared`. Source: transformers 5.23 models/t5/modeling_t5.py; Raffel et al. 2020, Shazeer 2020 (gated).
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

# Constructor defaults of transformers' T5Config, of the keys that shape the encoder.
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
    """Checks a T5 config.json and completes it.

    Returns: the keys of DEFAULTS; other keys do not concern the encoder and are left out.
    Raises: ValueError, one sentence with the key, the value found and the values allowed.
    """
    full = configuration.resolve('t5', config, DEFAULTS, choices={'feed_forward_proj': ('gated-gelu',)})
    buckets, furthest = 'relative_attention_num_buckets', 'relative_attention_max_distance'
    if full[buckets] < 4:
        raise configuration.wrong('t5', buckets, full[buckets], 'an integer of at least 4')
    if full[furthest] <= full[buckets] // 4:
        raise configuration.wrong('t5', furthest, full[furthest], f'more than a quarter of {buckets}')
    return full


def relative_position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The class of each distance between two tokens: exact when near, logarithmic when far, apart for each direction.

    Args:
      length: number of tokens.
      buckets: number of classes, half of them for keys after the query.
      max_distance: distances from here on share the last class.
    Returns: i32[length, length], row the query and column the key.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    # f32 as torch: a distance of exactly 16, 32, ... must fall on the same side of the boundary.
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
    """Self-attention without scale; the first block's holds the position bias of all."""

    def __init__(self, c, *, has_bias: bool, made):
        model, heads, width = c['d_model'], c['num_heads'], c['d_kv']
        self.heads = heads
        # The logits are not divided by sqrt(d_kv); the query's start makes up for it.
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
        """x f[B, L, d_model], bias f32[B, heads, L, L] -> f[B, L, d_model]."""
        query, key, value = (split_heads(dense(x), self.heads) for dense in (self.q, self.k, self.v))
        return self.o(attend(query, key, value, scale=1.0, bias=bias).reshape(*x.shape[:-1], -1))


class GatedFeedForward(nnx.Module):
    """wo(gelu(wi_0 x) * wi_1 x), with the tanh approximation of gelu ('gelu_new')."""

    def __init__(self, c, made):
        model, hidden = c['d_model'], c['d_ff']
        self.wi_0 = _dense(model, hidden, model**-0.5, c, made)
        self.wi_1 = _dense(model, hidden, model**-0.5, c, made)
        self.wo = _dense(hidden, model, hidden**-0.5, c, made)

    def __call__(self, x):
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class AttentionLayer(nnx.Module):
    """Norm, self-attention, residual sum."""

    def __init__(self, c, *, has_bias: bool, made):
        self.SelfAttention = SelfAttention(c, has_bias=has_bias, made=made)
        self.layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x, bias):
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nnx.Module):
    """Norm, gated feed-forward, residual sum."""

    def __init__(self, c, made):
        self.DenseReluDense = GatedFeedForward(c, made)
        self.layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x):
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One transformer block; `layer.0` attends, `layer.1` feeds forward."""

    def __init__(self, c, *, has_bias: bool, made):
        self.layer = nnx.List([AttentionLayer(c, has_bias=has_bias, made=made), FeedForwardLayer(c, made)])

    def __call__(self, x, bias):
        return self.layer[1](self.layer[0](x, bias))


class Stack(nnx.Module):
    """The blocks and the norm after them."""

    def __init__(self, c, made):
        self.block = nnx.List([Block(c, has_bias=index == 0, made=made) for index in range(c['num_layers'])])
        self.final_layer_norm = _rms_norm(c['d_model'], c, made)

    def __call__(self, x, bias):
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5EncoderModel(nnx.Module):
    """T5 v1.1 encoder.

    Args of the constructor:
      config: the dictionary of a transformers config.json; missing keys take T5Config's defaults.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters, distributed as transformers' `_init_weights`.
    Raises: ValueError, one sentence, for a configuration that is not supported.
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
          input_ids: i32[B, L], 0 <= id < vocab_size.
          attention_mask: int or bool [B, L], zero where the token is padding; None for none.
        Returns: f32[B, L, d_model]; rows of padding hold values of no use.
        """
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        classes = relative_position_buckets(input_ids.shape[1], self.buckets, self.max_distance)
        bias = jnp.transpose(table(classes), (2, 0, 1))[None].astype(jnp.float32)
        if attention_mask is not None:
            masked = jnp.asarray(attention_mask)[:, None, None, :] == 0
            bias = jnp.where(masked, jnp.finfo(jnp.float32).min, bias)
        return self.encoder(self.shared(input_ids), bias).astype(jnp.float32)
