"""Qwen3, the language model whose hidden states FLUX.2 Klein and Z-Image read prompts with.

Only the layers that are read are built and computed: of the 36 layers of Qwen3-4B and -8B, Klein reads the states after
9, 18 and 27, and Z-Image those after 35. There is no head for the next token. Submodules have the names of
transformers' Qwen3Model; files of Qwen3ForCausalLM have the prefix `model.` (weights/aliases.py).

Source: transformers 5.24 models/qwen3/modeling_qwen3.py; Yang et al. 2025 (Qwen3 Technical Report).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration, rotary
from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.functional import call

# Defaults of transformers' Qwen3Config for the keys that determine the states. `rope_theta` is a key of its own in
# published files; transformers 5 writes it into `rope_parameters`.
DEFAULTS: dict[str, Any] = {
    'model_type': 'qwen3',
    'vocab_size': 151936,
    'hidden_size': 4096,
    'intermediate_size': 22016,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
    'head_dim': 128,
    'hidden_act': 'silu',
    'max_position_embeddings': 32768,
    'initializer_range': 0.02,
    'rms_norm_eps': 1e-6,
    'rope_theta': 10000.0,
    'rope_scaling': None,
    'attention_bias': False,
    'use_sliding_window': False,
}
CHOICES = {'model_type': ('qwen3',), 'hidden_act': ('silu',)}
# An entry that a family adds to the configuration in memory (pipeline.Layout.reading): a key of READINGS.
STATES_READ = 'states_read'
FIXED = ('rope_scaling', 'attention_bias', 'use_sliding_window')


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the config.json of a Qwen3.

    Returns:
      All keys of DEFAULTS. Other keys do not concern the states and are left out.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    rope = config.get('rope_parameters') or {}
    if not isinstance(rope, Mapping) or rope.get('rope_type', 'default') != 'default':
        raise configuration.wrong('qwen3', 'rope_parameters', rope, "an object with rope_type 'default'")
    if 'rope_theta' in rope:
        config = {**config, 'rope_theta': rope['rope_theta']}
    if config.get('num_key_value_heads', 0) is None:
        config = {**config, 'num_key_value_heads': config.get('num_attention_heads', DEFAULTS['num_attention_heads'])}
    full = configuration.resolve('qwen3', config, DEFAULTS, choices=CHOICES, fixed=FIXED)
    heads, shared = full['num_attention_heads'], full['num_key_value_heads']
    if heads % shared:
        allowed = f'a divisor of num_attention_heads, which is {heads}'
        raise configuration.wrong('qwen3', 'num_key_value_heads', shared, allowed)
    if full['head_dim'] % 2:
        raise configuration.wrong('qwen3', 'head_dim', full['head_dim'], 'even')
    return full


def quarter_states(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the states at a quarter, half and three quarters of the depth: (9, 18, 27) for 36 layers, as Klein reads.

    Raises:
      ValueError: one sentence, if the number of layers is no multiple of 4.
    """
    layers = resolve(config)['num_hidden_layers']
    if layers % 4:
        raise configuration.wrong('qwen3', 'num_hidden_layers', layers, 'a multiple of 4')
    return tuple(layers * quarter // 4 for quarter in (1, 2, 3))


def last_but_one_state(config: Mapping[str, Any]) -> tuple[int]:
    """Returns the state before the last layer, without the final norm: (35,) for 36 layers, as Z-Image reads.

    Raises:
      ValueError: one sentence, if there is no layer.
    """
    return (resolve(config)['num_hidden_layers'] - 1,)


READINGS = {'quarters': quarter_states, 'last_but_one': last_but_one_state}


def states_read(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns which states are read, by the entry STATES_READ of a configuration; None without it, the last one."""
    return READINGS[config[STATES_READ]](config) if STATES_READ in config else None


def _dense(in_features, out_features, c, made):
    start = nnx.initializers.normal(c['initializer_range'])
    return nnx.Linear(in_features, out_features, use_bias=False, kernel_init=start, **made)


def _rms_norm(features, c, made):
    return nnx.RMSNorm(features, epsilon=c['rms_norm_eps'], **made)


class SelfAttention(nnx.Module):
    """Causal self-attention in which several heads of queries share one head of keys and values."""

    def __init__(self, c, made):
        width, head = c['hidden_size'], c['head_dim']
        self.heads, self.shared_heads = c['num_attention_heads'], c['num_key_value_heads']
        self.q_proj = _dense(width, self.heads * head, c, made)
        self.k_proj = _dense(width, self.shared_heads * head, c, made)
        self.v_proj = _dense(width, self.shared_heads * head, c, made)
        self.o_proj = _dense(self.heads * head, width, c, made)
        self.q_norm = _rms_norm(head, c, made)
        self.k_norm = _rms_norm(head, c, made)

    def __call__(self, x, rotation, bias):
        """Maps x f[B, L, hidden_size], with bias f32[B, 1, L, L], to f[B, L, hidden_size]."""
        query = rotary.rotate_halves(self.q_norm(split_heads(self.q_proj(x), self.heads)), *rotation)
        key = rotary.rotate_halves(self.k_norm(split_heads(self.k_proj(x), self.shared_heads)), *rotation)
        value = split_heads(self.v_proj(x), self.shared_heads)
        key, value = (jnp.repeat(part, self.heads // self.shared_heads, axis=2) for part in (key, value))
        attended = attend(query, key, value, scale=query.shape[-1] ** -0.5, bias=bias)
        return self.o_proj(attended.reshape(*x.shape[:-1], -1))


class FeedForward(nnx.Module):
    """Computes down(silu(gate x) * up x)."""

    def __init__(self, c, made):
        width, hidden = c['hidden_size'], c['intermediate_size']
        self.gate_proj = _dense(width, hidden, c, made)
        self.up_proj = _dense(width, hidden, c, made)
        self.down_proj = _dense(hidden, width, c, made)

    def __call__(self, x):
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Residual self-attention and residual feed-forward layer, each after a norm."""

    def __init__(self, c, made):
        self.self_attn = SelfAttention(c, made)
        self.mlp = FeedForward(c, made)
        self.input_layernorm = _rms_norm(c['hidden_size'], c, made)
        self.post_attention_layernorm = _rms_norm(c['hidden_size'], c, made)

    def __call__(self, x, rotation, bias):
        x = x + self.self_attn(self.input_layernorm(x), rotation, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Model(nnx.Module):
    """The layers of a Qwen3 up to the last one that is read.

    Args:
      config: contents of a transformers config.json; missing keys have the defaults of Qwen3Config.
      states: which of transformers' hidden_states are returned: state k is the one after k layers, and 0 the token
        embedding. The last, num_hidden_layers, includes the final norm. Layers behind the largest are not built. None
        means (num_hidden_layers,).
      dtype: compute dtype; parameters are f32.
      remat: whether each layer is computed again in the backward pass.
      rngs: source of the initial parameters, which have the distributions of transformers' `_init_weights`.

    Raises:
      ValueError: one sentence, if the configuration is not supported or `states` does not fit it.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        states: Sequence[int] | None = None,
        dtype=jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        c = resolve(config)
        depth = c['num_hidden_layers']
        states = (depth,) if states is None else tuple(states)
        if not states or not all(isinstance(state, int) and 0 <= state <= depth for state in states):
            raise ValueError(f'qwen3: states is {states!r} but must be some of 0..{depth}, the number of layers')
        made = {'dtype': dtype, 'rngs': rngs}
        start = nnx.initializers.normal(c['initializer_range'])
        self.embed_tokens = nnx.Embed(c['vocab_size'], c['hidden_size'], embedding_init=start, **made)
        self.layers = nnx.List([Layer(c, made) for _ in range(max(states))])
        self.norm = _rms_norm(c['hidden_size'], c, made) if depth in states else None
        self.states, self.remat = states, remat
        self.head_dim, self.theta = c['head_dim'], float(c['rope_theta'])
        self.longest = c['max_position_embeddings']

    def __call__(self, input_ids, attention_mask=None):
        """Encodes token ids.

        Args:
          input_ids: i32[B, L] with 0 <= id < vocab_size and L at most max_position_embeddings.
          attention_mask: int or bool [B, L], zero for padding tokens, which are not attended to; None if there are
            none. Padding comes after the text. Its states depend on the text, and Klein's transformer reads them.

        Returns:
          f32[B, L, len(states) * hidden_size], the states of a token joined in the order of `states`.

        Raises:
          ValueError: if the texts are too long.
        """
        length = input_ids.shape[1]
        if length > self.longest:
            raise ValueError(f'qwen3: texts have {length} tokens but must have at most {self.longest}')
        rotation = rotary.of_heads(rotary.angles(np.arange(length), self.head_dim, self.theta))
        visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if attention_mask is not None:
            visible = visible & (jnp.asarray(attention_mask)[:, None, None, :] != 0)
        bias = jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)

        x = self.embed_tokens(input_ids)
        found = {0: x}
        for index, layer in enumerate(self.layers, 1):
            x = call(layer, x, rotation, bias, remat=self.remat)
            found[index] = x
        if self.norm is not None:
            found[len(self.layers)] = self.norm(x)
        return jnp.concatenate([found[state].astype(jnp.float32) for state in self.states], axis=-1)
