"""The image encoders that images are scored with: one vision transformer for DINO, DINOv2 and CLIP's vision tower.

config.json says by `model_type` which of them a network is:

    vit                      DINO: facebook/dino-vits16 and its siblings
    dinov2                   layer scale; the giant model gates its feed-forward layers (SwiGLU)
    dinov2_with_registers    the same with register tokens
    clip_vision_model        a norm before the first layer, no bias in the patches, a projection of the pooled state

Submodules have the names of DINOv2's published files, which have the most parts; weights/aliases.py maps those of DINO
and CLIP to them. The networks are only evaluated here, so their initial parameters have no meaning.

Source: transformers 5.24 models/{vit,dinov2,dinov2_with_registers,clip}; Caron et al. 2021, Oquab et al. 2023, Darcet
et al. 2023, Radford et al. 2021.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration
from dreambooth_jax.models.attention import attend, split_heads
from dreambooth_jax.models.layers import ACTIVATIONS, layer_norm

CLIP = 'clip_vision_model'
_SIZES = {'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12, 'num_channels': 3, 'image_size': 224}
_DINO_V2 = {
    **_SIZES,
    'patch_size': 14,
    'mlp_ratio': 4,
    'use_swiglu_ffn': False,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-6,
    'qkv_bias': True,
}
# Defaults of transformers' configurations for the keys that determine the network. DINO's original code has an epsilon
# of 1e-6; published files of transformers say 1e-12, and what a file says is used. The features differ by about 1e-6.
DEFAULTS: dict[str, dict[str, Any]] = {
    'vit': {
        **_SIZES,
        'patch_size': 16,
        'intermediate_size': 3072,
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-12,
        'qkv_bias': True,
    },
    'dinov2': _DINO_V2,
    'dinov2_with_registers': {**_DINO_V2, 'patch_size': 16, 'num_register_tokens': 4},
    CLIP: {
        **_SIZES,
        'patch_size': 32,
        'intermediate_size': 3072,
        'projection_dim': 512,
        'hidden_act': 'quick_gelu',
        'layer_norm_eps': 1e-5,
    },
}


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the config.json of a vision transformer.

    Returns:
      `model_type`, and all keys of its entry in DEFAULTS. Other keys do not concern the network.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    kind = config.get('model_type')
    if kind not in tuple(DEFAULTS):
        raise configuration.wrong('vit', 'model_type', kind, f'one of {tuple(DEFAULTS)}')
    choices = {'hidden_act': ('gelu', 'quick_gelu')}
    full = configuration.resolve('vit', config, DEFAULTS[kind], choices=choices, fixed=('num_channels',))
    width, heads = full['hidden_size'], full['num_attention_heads']
    if width % heads:
        raise configuration.wrong('vit', 'num_attention_heads', heads, f'a divisor of hidden_size, which is {width}')
    if full['image_size'] < full['patch_size']:
        allowed = f'at least patch_size, which is {full["patch_size"]}'
        raise configuration.wrong('vit', 'image_size', full['image_size'], allowed)
    return {'model_type': kind, **full}


def _dense(in_features, out_features, made, use_bias=True):
    return nnx.Linear(in_features, out_features, use_bias=use_bias, **made)


class QueryKeyValue(nnx.Module):
    """Attention over f[B, L, hidden_size], without the projection of its result."""

    def __init__(self, c, made):
        width, use_bias = c['hidden_size'], c.get('qkv_bias', True)
        self.heads = c['num_attention_heads']
        self.query = _dense(width, width, made, use_bias)
        self.key = _dense(width, width, made, use_bias)
        self.value = _dense(width, width, made, use_bias)

    def __call__(self, x):
        query, key, value = (split_heads(dense(x), self.heads) for dense in (self.query, self.key, self.value))
        return attend(query, key, value, scale=query.shape[-1] ** -0.5).reshape(x.shape)


class Output(nnx.Module):
    """The projection of the attention's result."""

    def __init__(self, c, made):
        self.dense = _dense(c['hidden_size'], c['hidden_size'], made)


class Attention(nnx.Module):
    """Self-attention over f[B, L, hidden_size]."""

    def __init__(self, c, made):
        self.attention = QueryKeyValue(c, made)
        self.output = Output(c, made)

    def __call__(self, x):
        return self.output.dense(self.attention(x))


class FeedForward(nnx.Module):
    """Computes fc2(activation(fc1(x)))."""

    def __init__(self, c, made):
        width = c['hidden_size']
        hidden = c['intermediate_size'] if 'intermediate_size' in c else width * c['mlp_ratio']
        self.fc1 = _dense(width, hidden, made)
        self.fc2 = _dense(hidden, width, made)
        self.activation = ACTIVATIONS[c['hidden_act']]

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class GatedFeedForward(nnx.Module):
    """Computes weights_out(silu(gate) * x), where `weights_in` computes both factors (SwiGLU)."""

    def __init__(self, c, made):
        width = c['hidden_size']
        # Two thirds of the usual width, so that the three matrices have as many parameters as the usual two.
        hidden = (width * c['mlp_ratio'] * 2 // 3 + 7) // 8 * 8
        self.weights_in = _dense(width, 2 * hidden, made)
        self.weights_out = _dense(hidden, width, made)

    def __call__(self, x):
        gate, x = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * x)


class LayerScale(nnx.Module):
    """A learned factor on every channel of a residual branch."""

    def __init__(self, features: int):
        self.lambda1 = nnx.Param(jnp.ones(features))

    def __call__(self, x):
        return x * self.lambda1[...].astype(x.dtype)


class Layer(nnx.Module):
    """One transformer layer, in which each norm precedes its sublayer."""

    def __init__(self, c, made):
        width, epsilon = c['hidden_size'], c['layer_norm_eps']
        has_scale = 'mlp_ratio' in c  # of DINOv2 alone
        self.norm1 = layer_norm(width, epsilon=epsilon, **made)
        self.attention = Attention(c, made)
        self.layer_scale1 = LayerScale(width) if has_scale else None
        self.norm2 = layer_norm(width, epsilon=epsilon, **made)
        self.mlp = (GatedFeedForward if c.get('use_swiglu_ffn') else FeedForward)(c, made)
        self.layer_scale2 = LayerScale(width) if has_scale else None

    def __call__(self, x):
        for norm, sublayer, scale in (
            (self.norm1, self.attention, self.layer_scale1),
            (self.norm2, self.mlp, self.layer_scale2),
        ):
            branch = sublayer(norm(x))
            x = x + (branch if scale is None else scale(branch))
        return x


class Encoder(nnx.Module):
    """The stack of transformer layers."""

    def __init__(self, c, made):
        self.layer = nnx.List([Layer(c, made) for _ in range(c['num_hidden_layers'])])

    def __call__(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class Patches(nnx.Module):
    """Maps every square of patch_size x patch_size pixels to one token."""

    def __init__(self, c, made):
        side = (c['patch_size'],) * 2
        self.projection = nnx.Conv(
            c['num_channels'],
            c['hidden_size'],
            side,
            side,
            padding='VALID',
            use_bias=c['model_type'] != CLIP,
            **made,
        )


class Embeddings(nnx.Module):
    """f[B, H, W, 3] -> f[B, 1 + registers + patches, hidden_size]: a class token, registers and patches."""

    def __init__(self, c, made):
        width, grid = c['hidden_size'], c['image_size'] // c['patch_size']
        registers = c.get('num_register_tokens')
        one = () if c['model_type'] == CLIP else (1,)  # CLIP's files leave out the axis of the batch
        self.cls_token = nnx.Param(jnp.zeros((*one, *one, width)))
        self.register_tokens = nnx.Param(jnp.zeros((1, registers, width))) if registers else None
        self.patch_embeddings = Patches(c, made)
        self.position_embeddings = nnx.Param(jnp.zeros((*one, 1 + grid**2, width)))

    def __call__(self, images):
        patches = self.patch_embeddings.projection(images)
        batch, *grid, width = patches.shape

        def for_all(token):
            return jnp.broadcast_to(token[...].reshape(1, -1, width), (batch, token.size // width, width))

        # Only the network with registers was trained with antialiased positions.
        positions = self.position_embeddings[...].reshape(-1, width)
        positions = resized_positions(positions, tuple(grid), antialias=self.register_tokens is not None)
        tokens = jnp.concatenate([for_all(self.cls_token), patches.reshape(batch, -1, width)], axis=1) + positions
        if self.register_tokens is not None:
            tokens = jnp.concatenate([tokens[:, :1], for_all(self.register_tokens), tokens[:, 1:]], axis=1)
        return tokens.astype(patches.dtype)


class VisionTransformer(nnx.Module):
    """An image encoder.

    Args:
      config: contents of a transformers config.json; missing keys have transformers' defaults.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters.

    Raises:
      ValueError: one sentence, if the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs):
        c = resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        width, is_clip = c['hidden_size'], c['model_type'] == CLIP
        self.patch_size = c['patch_size']
        self.embeddings = Embeddings(c, made)
        # The name is misspelt in all files of CLIP.
        self.pre_layrnorm = layer_norm(width, epsilon=c['layer_norm_eps'], **made) if is_clip else None
        self.encoder = Encoder(c, made)
        self.layernorm = layer_norm(width, epsilon=c['layer_norm_eps'], **made)
        self.visual_projection = _dense(width, c['projection_dim'], made, use_bias=False) if is_clip else None

    def __call__(self, images):
        """Encodes images.

        Args:
          images: f[B, H, W, 3], normalised as the network was trained (evaluation/preprocessing.py). H and W may be
            any sizes of at least one patch; what is left beyond whole patches is not seen. Where they do not give the
            grid of patches of config.json's image_size, the position embeddings are interpolated.

        Returns:
          (states, pooled). states: f32[B, 1 + registers + patches, hidden_size], transformers' last_hidden_state: after
          the last norm, but for CLIP before it. pooled: f32[B, hidden_size], the class token after the last norm; for
          CLIP f32[B, projection_dim], its projection (image_embeds).

        Raises:
          ValueError: if images have another shape.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < self.patch_size:
            allowed = f'[B, H, W, 3] with H and W of at least {self.patch_size}'
            raise ValueError(f'vit: images have shape {images.shape} but must be {allowed}')
        x = self.embeddings(images)
        if self.pre_layrnorm is None:
            states = self.layernorm(self.encoder(x))
            pooled = states[:, 0]
        else:
            states = self.encoder(self.pre_layrnorm(x))
            pooled = self.visual_projection(self.layernorm(states[:, 0]))
        return states.astype(jnp.float32), pooled.astype(jnp.float32)


def resized_positions(table, grid: tuple[int, int], *, antialias: bool):
    """Interpolates position embeddings to another grid of patches.

    Args:
      table: f32[1 + side * side, width]: the position of the class token, then those of a square grid, row by row.
      grid: rows and columns of the wanted grid.
      antialias: how the interpolation is done; see cubic_weights.

    Returns:
      f32[1 + rows * columns, width]; `table` itself if it has that grid.
    """
    side = round((len(table) - 1) ** 0.5)
    if grid == (side, side):
        return table
    rows, columns = (jnp.asarray(cubic_weights(side, size, antialias=antialias), jnp.float32) for size in grid)
    square = table[1:].reshape(side, side, -1)
    square = jnp.einsum('ri,cj,ijw->rcw', rows, columns, square, precision='highest')
    return jnp.concatenate([table[:1], square.reshape(-1, table.shape[-1])])


def cubic_weights(old: int, new: int, *, antialias: bool) -> np.ndarray:
    """Returns the matrix that resizes `old` values to `new` ones by cubic convolution.

    Args:
      old: number of values.
      new: wanted number of values.
      antialias: whether the kernel grows with the step where values become fewer.

    Returns:
      f64[new, old], whose rows sum to 1.

    Source: torch's interpolate(mode='bicubic', align_corners=False), whose two variants also differ in the kernel's
      free parameter and at the border, where values are repeated or left out.
    """
    centres = (np.arange(new) + 0.5) * old / new
    if antialias:
        distances = (np.arange(old) + 0.5 - centres[:, None]) / max(old / new, 1)
        weights = _cubic(distances, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    taps = np.floor(centres - 0.5).astype(int)[:, None] + np.arange(-1, 3)
    weights = np.zeros((new, old))
    places = np.arange(new)[:, None], np.clip(taps, 0, old - 1)
    np.add.at(weights, places, _cubic(taps + 0.5 - centres[:, None], -0.75))
    return weights


def _cubic(distances: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(distances)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
