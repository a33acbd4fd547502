"""The text encoder of CLIP, which maps token ids to one state for each token and one for the whole text.

Stable Diffusion reads its prompts with it: OpenAI's L/14 (1.x, XL), OpenCLIP's H/14 (2.x, upscaler), and bigG/14 with
its projection (XL).

Submodules have the names of the published checkpoints. transformers 5 writes a model without projection without
`text_model.` in its names (weights/aliases.py). The pipelines of diffusers use these states:

    StableDiffusionPipeline.encode_prompt, clip_skip=None or n    skip=n or 0, final_norm=True
    StableDiffusionXLPipeline.encode_prompt, clip_skip=None or n  skip=n + 1 or 1, final_norm=False, of both encoders,
                                                                  joined; `pooled` of the encoder with projection

Source: transformers 5.23 models/clip/modeling_clip.py; Radford et al. 2021.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import configuration
from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.layers import ACTIVATIONS, layer_norm

# Defaults of transformers' CLIPTextConfig for the keys that determine the network.
DEFAULTS = {
    'model_type': 'clip_text_model',
    'vocab_size': 49408,
    'hidden_size': 512,
    'intermediate_size': 2048,
    'projection_dim': 512,
    'num_hidden_layers': 12,
    'num_attention_heads': 8,
    'max_position_embeddings': 77,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-5,
    'initializer_factor': 1.0,
    'eos_token_id': 49407,
}
CHOICES = {
    # The config.json of a whole CLIP nests that of its text encoder; read as it is, it would silently give the
    # defaults.
    'model_type': ('clip_text_model',),
    'hidden_act': ('gelu', 'quick_gelu'),
}
# eos_token_id in published files, written before transformers stored the tokenizer's id. Then the end of the text is
# the position of its highest id.
END_IS_HIGHEST_ID = 2


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the config.json of a CLIP text encoder.

    Returns:
      All keys of DEFAULTS. Other keys do not concern the network and are left out.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    full = configuration.resolve('clip', config, DEFAULTS, choices=CHOICES)
    width, heads = full['hidden_size'], full['num_attention_heads']
    if width % heads:
        allowed = f'a divisor of hidden_size, which is {width}'
        raise configuration.wrong('clip', 'num_attention_heads', heads, allowed)
    return full


class SelfAttention(nnx.Module):
    """Self-attention over f[B, L, hidden_size]."""

    def __init__(self, c, made):
        width, depth = c['hidden_size'], c['num_hidden_layers']
        self.heads = c['num_attention_heads']
        inwards = width**-0.5 * (2 * depth) ** -0.5
        self.q_proj = _dense(width, width, inwards, c, made)
        self.k_proj = _dense(width, width, inwards, c, made)
        self.v_proj = _dense(width, width, inwards, c, made)
        self.out_proj = _dense(width, width, width**-0.5, c, made)

    def __call__(self, x, bias):
        """Maps x f[B, L, hidden_size], with bias f32 broadcastable to [B, heads, L, L], to f[B, L, hidden_size]."""
        query, key, value = (split_heads(dense(x), self.heads) for dense in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(query, key, value, scale=query.shape[-1] ** -0.5, bias=bias).reshape(x.shape))


class FeedForward(nnx.Module):
    """Computes fc2(activation(fc1(x)))."""

    def __init__(self, c, made):
        width, hidden, depth = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers']
        self.fc1 = _dense(width, hidden, (2 * width) ** -0.5, c, made)
        self.fc2 = _dense(hidden, width, width**-0.5 * (2 * depth) ** -0.5, c, made)
        self.activation = ACTIVATIONS[c['hidden_act']]

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nnx.Module):
    """One transformer layer, in which each norm precedes its sublayer."""

    def __init__(self, c, made):
        self.self_attn = SelfAttention(c, made)
        self.layer_norm1 = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)
        self.mlp = FeedForward(c, made)
        self.layer_norm2 = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)

    def __call__(self, x, bias):
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """Sum of the token and position embeddings: i32[B, L] -> f[B, L, hidden_size]."""

    def __init__(self, c, made):
        width, start = c['hidden_size'], nnx.initializers.normal(0.02 * c['initializer_factor'])
        self.token_embedding = nnx.Embed(c['vocab_size'], width, embedding_init=start, **made)
        self.position_embedding = nnx.Embed(c['max_position_embeddings'], width, embedding_init=start, **made)

    def __call__(self, input_ids):
        longest = self.position_embedding.embedding.shape[0]
        if input_ids.ndim != 2 or input_ids.shape[1] > longest:
            raise ValueError(f'clip: input_ids have shape {input_ids.shape} but must be [B, L] with L <= {longest}')
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[1]))


class Encoder(nnx.Module):
    """The stack of transformer layers."""

    def __init__(self, c, made):
        self.layers = nnx.List([Layer(c, made) for _ in range(c['num_hidden_layers'])])


class TextTransformer(nnx.Module):
    """The embeddings, the layers and the final norm."""

    def __init__(self, c, made):
        self.embeddings = Embeddings(c, made)
        self.encoder = Encoder(c, made)
        self.final_layer_norm = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)


class CLIPTextModel(nnx.Module):
    """CLIP's text encoder.

    The vocabulary is as large as the token table in the parameters of a call: table rows added at its end (textual
    inversion) are further tokens.

    Args:
      config: contents of a transformers config.json; missing keys have the defaults of CLIPTextConfig.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters, which have the distributions of transformers' `_init_weights`.
      projection: whether the pooled state is projected, as in transformers' CLIPTextModelWithProjection.

    Raises:
      ValueError: one sentence, if the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs, projection: bool = False):
        c = resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        width = c['hidden_size']
        self.text_model = TextTransformer(c, made)
        self.text_projection = (
            _dense(width, c['projection_dim'], width**-0.5, c, made, use_bias=False) if projection else None
        )
        self.eos_token_id = c['eos_token_id']

    def __call__(self, input_ids, attention_mask=None, *, skip: int = 0, final_norm: bool = True):
        """Encodes token ids.

        The end of a text is the first position of eos_token_id. If eos_token_id is 2, as in published files, it is the
        position of the highest id, as in transformers; there and here, a token added at the end of the table then
        counts as the end.

        Args:
          input_ids: i32[B, L] with 0 <= id < number of table rows (the states of a higher id are NaN), and L at most
            max_position_embeddings, 77.
          attention_mask: int or bool [B, L], zero for padding tokens, which are not attended to. With None, as in
            Stable Diffusion's pipelines, a token attends to itself and all tokens before it, so padding after a text
            attends to the text.
          skip: number of layers, counted from the last, that `states` do not pass through.
          final_norm: whether the final norm is applied to `states`. It is always applied to the pooled state.

        Returns:
          (states, pooled). states: f32[B, L, hidden_size], which is transformers' hidden_states[-(skip + 1)] before the
          norm. pooled: f32[B, hidden_size], or f32[B, projection_dim] with projection: the last layer's state at the
          end of the text, independent of `skip`. If it is not used, jit removes its computation.

        Raises:
          ValueError: if input_ids have another shape, or if `skip` is not in 0..num_hidden_layers.
        """
        layers = self.text_model.encoder.layers
        if not 0 <= skip <= len(layers):
            raise ValueError(f'clip: skip is {skip!r} but must be one of 0..{len(layers)}, the number of layers')
        x = self.text_model.embeddings(input_ids)
        bias = _bias(input_ids.shape[1], attention_mask)
        states = x
        for index, layer in enumerate(layers):
            x = layer(x, bias)
            if index == len(layers) - 1 - skip:
                states = x
        if final_norm:
            states = self.text_model.final_layer_norm(states)
        pooled = self.text_model.final_layer_norm(x[jnp.arange(x.shape[0]), self._end(input_ids)])
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return states.astype(jnp.float32), pooled.astype(jnp.float32)

    def _end(self, input_ids):
        """Position of the end of each text, i32[B]."""
        is_end = input_ids if self.eos_token_id == END_IS_HIGHEST_ID else input_ids == self.eos_token_id
        return jnp.argmax(is_end, axis=-1)


def _dense(in_features, out_features, std, c, made, **options):
    start = nnx.initializers.normal(std * c['initializer_factor'])
    return nnx.Linear(in_features, out_features, kernel_init=start, **made, **options)


def _bias(length: int, attention_mask):
    """Bias f32[1 or B, 1, L, L] on the logits, so that no token attends to a later token or to padding."""
    visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if attention_mask is not None:
        visible = visible & (jnp.asarray(attention_mask)[:, None, None, :] != 0)
    return jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)
