"""The text encoder of CLIP: token ids in, one state per token and one for the whole text out. Stable Diffusion reads
its prompts with it: OpenAI's L/14 (1.x, XL), OpenCLIP's H/14 (2.x, upscaler) and bigG/14 with its projection (XL).

Children are named as in the published checkpoints; transformers 5 leaves `text_model.` out of the names of a model
without projection when it writes (weights/aliases.py). Which states a pipeline takes:

    StableDiffusionPipeline.encode_prompt, clip_skip=None or n    skip=n or 0, final_norm=True
    StableDiffusionXLPipeline.encode_prompt, clip_skip=None or n  skip=n + 1 or 1, final_norm=False, of both encoders,
                                                                  side by side; `pooled` of the one with projection

Source: transformers 5.23 models/clip/modeling_clip.py; Radford et al. 2021.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import configuration
from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.layers import ACTIVATIONS, layer_norm

# Constructor defaults of transformers' CLIPTextConfig, of the keys that shape the network.
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
    'model_type': ('clip_text_model',),  # the config.json of a whole CLIP nests the text encoder's: defaults would do
    'hidden_act': ('gelu', 'quick_gelu'),
}
# In published files, which were written before transformers knew the tokenizer's id: the text ends at its highest id.
END_IS_HIGHEST_ID = 2


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the config.json of a CLIP text encoder and completes it.

    Returns: the keys of DEFAULTS; other keys do not concern the network and are left out.
    Raises: ValueError, one sentence with the key, the value found and the values allowed.
    """
    full = configuration.resolve('clip', config, DEFAULTS, choices=CHOICES)
    width, heads = full['hidden_size'], full['num_attention_heads']
    if width % heads:
        allowed = f'a divisor of hidden_size, which is {width}'
        raise configuration.wrong('clip', 'num_attention_heads', heads, allowed)
    return full


class SelfAttention(nnx.Module):
    """Self-attention of f[B, L, hidden_size]."""

    def __init__(self, c, made):
        width, depth = c['hidden_size'], c['num_hidden_layers']
        self.heads = c['num_attention_heads']
        inwards = width**-0.5 * (2 * depth) ** -0.5
        self.q_proj = _dense(width, width, inwards, c, made)
        self.k_proj = _dense(width, width, inwards, c, made)
        self.v_proj = _dense(width, width, inwards, c, made)
        self.out_proj = _dense(width, width, width**-0.5, c, made)

    def __call__(self, x, bias):
        """x f[B, L, hidden_size], bias f32 broadcastable to [B, heads, L, L] -> f[B, L, hidden_size]."""
        query, key, value = (split_heads(dense(x), self.heads) for dense in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(query, key, value, scale=query.shape[-1] ** -0.5, bias=bias).reshape(x.shape))


class FeedForward(nnx.Module):
    """fc2(activation(fc1 x))."""

    def __init__(self, c, made):
        width, hidden, depth = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers']
        self.fc1 = _dense(width, hidden, (2 * width) ** -0.5, c, made)
        self.fc2 = _dense(hidden, width, width**-0.5 * (2 * depth) ** -0.5, c, made)
        self.activation = ACTIVATIONS[c['hidden_act']]

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nnx.Module):
    """One transformer layer, norms first."""

    def __init__(self, c, made):
        self.self_attn = SelfAttention(c, made)
        self.layer_norm1 = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)
        self.mlp = FeedForward(c, made)
        self.layer_norm2 = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)

    def __call__(self, x, bias):
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """What each token and each place says: i32[B, L] -> f[B, L, hidden_size]."""

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
    """The layers."""

    def __init__(self, c, made):
        self.layers = nnx.List([Layer(c, made) for _ in range(c['num_hidden_layers'])])


class TextTransformer(nnx.Module):
    """Embeddings, layers and the norm after them."""

    def __init__(self, c, made):
        self.embeddings = Embeddings(c, made)
        self.encoder = Encoder(c, made)
        self.final_layer_norm = layer_norm(c['hidden_size'], epsilon=c['layer_norm_eps'], **made)


class CLIPTextModel(nnx.Module):
    """CLIP's text encoder.

    The vocabulary is as large as the table of token embeddings that it is called with: rows behind the table (textual
    inversion) are further tokens.

    Args of the constructor:
      config: the dictionary of a transformers config.json; missing keys take CLIPTextConfig's defaults.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters, distributed as transformers' `_init_weights`.
      projection: with the projection of the pooled state, as transformers' CLIPTextModelWithProjection.
    Raises: ValueError, one sentence, for a configuration that is not supported.
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

        Args:
          input_ids: i32[B, L], 0 <= id < rows of the token table (beyond, the states are NaN); L at most
            max_position_embeddings, 77.
          attention_mask: int or bool [B, L], zero where the token is padding and must not be seen. None as in Stable
            Diffusion's pipelines: a token sees itself and all before it, so padding behind a text sees the text.
          skip: how many layers, from the last, `states` leave out.
          final_norm: whether the final norm is applied to `states`; the pooled state always has it.
        Returns: (states, pooled).
          states: f32[B, L, hidden_size], transformers' hidden_states[-(skip + 1)] before the norm.
          pooled: f32[B, hidden_size], or f32[B, projection_dim] with projection: the last layer's state at the end of
            the text, whatever `skip` is. Under jit it costs nothing if it is not used.
        Raises: ValueError for ids of another shape, or for a `skip` that is not 0..num_hidden_layers.

        The end of the text is where eos_token_id first stands. With eos_token_id 2, as published files have it, it is
        where the highest id stands: so it is in transformers, and there as here a token added behind the table takes
        its place.
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
        """Place of the end of each text, i32[B]."""
        is_end = input_ids if self.eos_token_id == END_IS_HIGHEST_ID else input_ids == self.eos_token_id
        return jnp.argmax(is_end, axis=-1)


def _dense(in_features, out_features, std, c, made, **options):
    start = nnx.initializers.normal(std * c['initializer_factor'])
    return nnx.Linear(in_features, out_features, kernel_init=start, **made, **options)


def _bias(length: int, attention_mask):
    """f32[1 or B, 1, L, L] for the logits: no token sees a later one, or padding."""
    visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if attention_mask is not None:
        visible = visible & (jnp.asarray(attention_mask)[:, None, None, :] != 0)
    return jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)
