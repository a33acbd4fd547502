"""The transformer of Stable Diffusion 3 and 3.5 (MMDiT), which predicts the velocity noise - x0 of latents.

Text and image are two streams with weights of their own, and each attends to both; in the last block the text only
gives keys and values. The first blocks of 3.5 medium have a second attention, of the image to itself. Positions are a
table of sinusoids for the largest image, of which the centre is used for a smaller one; checkpoints hold it. There is
no mask: padding of the text is attended to. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/transformers/transformer_sd3.py, models/attention.py (JointTransformerBlock),
models/embeddings.py (PatchEmbed); Esser et al. 2024 (Stable Diffusion 3).
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration, scanned
from dreambooth_jax.models.dit import (
    ZERO,
    FeedForward,
    HeadNorms,
    JointAttention,
    ModulatedNorm,
    Modulation,
    TimeTextEmbedding,
    modulated,
    rotate_and_attend,
    within_range,
)
from dreambooth_jax.models.functional import Constant
from dreambooth_jax.models.z_image import PATCH, from_patches

# Defaults in the constructor of diffusers' SD3Transformer2DModel.
DEFAULTS: dict[str, Any] = {
    'sample_size': 128,
    'patch_size': PATCH,
    'in_channels': 16,
    'num_layers': 18,
    'attention_head_dim': 64,
    'num_attention_heads': 18,
    'joint_attention_dim': 4096,
    'caption_projection_dim': 1152,
    'pooled_projection_dim': 2048,
    'out_channels': 16,
    'pos_embed_max_size': 96,
    'dual_attention_layers': (),
    'qk_norm': None,
}
EPSILON = 1e-6


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the transformer's config.json.

    Args:
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.

    Returns:
      All keys of DEFAULTS; `out_channels` is a number.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    configuration.check_known('sd3', config, DEFAULTS)
    given = dict(config)
    if given.get('out_channels', 0) is None:
        given['out_channels'] = given.get('in_channels', DEFAULTS['in_channels'])
    full = configuration.resolve('sd3', given, DEFAULTS, choices={'qk_norm': (None, 'rms_norm')}, fixed=('patch_size',))
    width = _width(full)
    if width % 4:
        allowed = 'an integer with which num_attention_heads * attention_head_dim is a multiple of 4'
        raise configuration.wrong('sd3', 'attention_head_dim', full['attention_head_dim'], allowed)
    if full['caption_projection_dim'] != width:
        allowed = f'num_attention_heads * attention_head_dim, which is {width}'
        raise configuration.wrong('sd3', 'caption_projection_dim', full['caption_projection_dim'], allowed)
    dual = full['dual_attention_layers']
    if not isinstance(dual, list | tuple) or any(type(n) is not int or not 0 <= n < full['num_layers'] for n in dual):
        allowed = f'a list of integers from 0 to num_layers - 1, which is {full["num_layers"] - 1}'
        raise configuration.wrong('sd3', 'dual_attention_layers', dual, allowed)
    return full


def _width(c) -> int:
    return c['num_attention_heads'] * c['attention_head_dim']


def position_table(size: int, base: int, width: int):
    """Returns the sinusoids f32[1, size * size, width] of all positions, row by row.

    Args:
      size: positions in each direction.
      base: to which they are scaled: the last one is at base * (size - 1) / size.
      width: channels; sines and cosines of the column, then of the row.
    """
    quarter = width // 4
    frequencies = (10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)).astype(np.float32)
    angles = (jnp.arange(size, dtype=jnp.float32) * (base / size))[:, None] * frequencies
    one = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    columns, rows = (jnp.broadcast_to(part, (size, size, width // 2)) for part in (one[None], one[:, None]))
    return jnp.concatenate([columns, rows], axis=-1).reshape(1, size * size, width)


class PatchEmbedding(nnx.Module):
    """A token for each square of latents, with its position: f[B, h, w, C] -> f[B, h / 2 * w / 2, width]."""

    def __init__(self, c, made):
        width, size = _width(c), c['pos_embed_max_size']
        self.proj = nnx.Conv(c['in_channels'], width, (PATCH, PATCH), PATCH, padding='VALID', **made)
        self.pos_embed = Constant(position_table(size, c['sample_size'] // PATCH, width))
        self.size = size

    def __call__(self, sample):
        tokens = self.proj(sample)
        batch, height, width, channels = tokens.shape
        top, left = (self.size - height) // 2, (self.size - width) // 2
        table = self.pos_embed[...].reshape(self.size, self.size, channels)
        seen = table[top : top + height, left : left + width]
        return (tokens.astype(jnp.float32) + seen).astype(tokens.dtype).reshape(batch, height * width, channels)


class SelfAttention(HeadNorms):
    """Self-attention over f[B, L, width]."""

    def __init__(self, c, made):
        heads, head_dim = c['num_attention_heads'], c['attention_head_dim']
        super().__init__(heads, head_dim, EPSILON, qk_norm=c['qk_norm'] is not None, **made)
        width = _width(c)
        self.to_q, self.to_k, self.to_v = (nnx.Linear(width, width, **made) for _ in range(3))
        self.to_out = nnx.List([nnx.Linear(width, width, **made)])

    def __call__(self, x):
        return self.to_out[0](rotate_and_attend(*self.split(self.to_q(x), self.to_k(x), self.to_v(x))))


class Block(nnx.Module):
    """Joint attention and a feed-forward layer for each stream, with modulations of its own.

    Args:
      c: the resolved configuration.
      made: dtype and rngs of the layers.
      is_dual: whether the image also attends to itself alone.
      is_last: whether the text is not needed any more, and stays as it is.
    """

    def __init__(self, c, made, *, is_dual: bool, is_last: bool):
        width = _width(c)
        self.norm1 = Modulation(width, 9 if is_dual else 6, use_bias=True, **made)
        if is_last:
            self.norm1_context = ModulatedNorm(width, EPSILON, use_bias=True, **made)
        else:
            self.norm1_context = Modulation(width, 6, use_bias=True, **made)
        self.attn = JointAttention(
            c['num_attention_heads'],
            c['attention_head_dim'],
            EPSILON,
            use_bias=True,
            qk_norm=c['qk_norm'] is not None,
            text_out=not is_last,
            **made,
        )
        self.attn2 = SelfAttention(c, made) if is_dual else None
        self.ff = FeedForward(width, **made)
        self.ff_context = None if is_last else FeedForward(width, **made)

    def __call__(self, streams, time):
        """Maps the tokens of image f[B, N, width] and text f[B, L, width] to two arrays of their shapes.

        `time` holds the features f[B, width].
        """
        x, text = streams
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *second = self.norm1(time)
        if self.ff_context is None:
            seen = self.norm1_context(text, time)
        else:
            text_shift, text_scale, text_gate, *of_text_ff = self.norm1_context(time)
            seen = modulated(text, text_shift, text_scale, EPSILON)
        attended, text_attended = self.attn(modulated(x, shift, scale, EPSILON), seen)
        added = gate * attended
        if self.attn2 is not None:
            shift, scale, gate = second
            added = added + gate * self.attn2(modulated(x, shift, scale, EPSILON))
        x = x + added
        x = x + ff_gate * self.ff(modulated(x, ff_shift, ff_scale, EPSILON))
        if self.ff_context is None:
            return x, text
        text_ff_shift, text_ff_scale, text_ff_gate = of_text_ff
        text = text + text_gate * text_attended
        text = text + text_ff_gate * self.ff_context(modulated(text, text_ff_shift, text_ff_scale, EPSILON))
        return x, within_range(text)


class SD3Transformer2DModel(nnx.Module):
    """The transformer.

    Args:
      config: contents of a diffusers config.json; missing keys have diffusers' defaults.
      dtype: compute dtype; parameters are f32.
      remat: whether every block is computed again in the backward pass. Values and gradients stay the same; it needs
        less memory and about a third more time.
      scan: whether equal blocks are one loop of the compiled program (scanned.py).
      rngs: source of the initial parameters. Modulations and the output start at zero.

    Raises:
      ValueError: one sentence, if the configuration is not supported (`resolve`).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype=jnp.float32,
        remat: bool = False,
        scan: bool = True,
        rngs: nnx.Rngs,
    ):
        c = resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        width, layers = _width(c), c['num_layers']
        self.pos_embed = PatchEmbedding(c, made)
        self.time_text_embed = TimeTextEmbedding(width, c['pooled_projection_dim'], **made)
        self.context_embedder = nnx.Linear(c['joint_attention_dim'], width, **made)
        self.kinds = tuple((n in c['dual_attention_layers'], n == layers - 1) for n in range(layers))
        self.transformer_blocks = nnx.List(
            [Block(c, made, is_dual=is_dual, is_last=is_last) for is_dual, is_last in self.kinds]
        )
        self.norm_out = ModulatedNorm(width, EPSILON, use_bias=True, **made)
        self.proj_out = nnx.Linear(width, PATCH**2 * c['out_channels'], kernel_init=ZERO, **made)

        self.dtype, self.remat, self.scan = dtype, remat, scan
        self.in_channels, self.text_width = c['in_channels'], c['joint_attention_dim']
        self.pooled_width, self.longest = c['pooled_projection_dim'], c['pos_embed_max_size']

    def __call__(self, sample, timesteps, encoder_hidden_states, pooled):
        """Predicts the velocity noise - x0.

        Args:
          sample: noisy latents f[B, h, w, in_channels], shifted and scaled; h and w are even.
          timesteps: f32[B] in 0..1000, 1000 times the share of noise, or a scalar for all examples.
          encoder_hidden_states: text states f[B, L, joint_attention_dim]; all of them are attended to.
          pooled: pooled text states f[B, pooled_projection_dim].

        Returns:
          f32[B, h, w, out_channels].

        Raises:
          ValueError: if a shape does not fit, or if the image has more tokens in a direction than pos_embed_max_size.
        """
        self._check(sample, encoder_hidden_states, pooled)
        batch, height, width, _ = sample.shape
        time = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32), (batch,))
        features = self.time_text_embed(time, pooled)
        streams = (
            self.pos_embed(sample.astype(self.dtype)),
            self.context_embedder(encoder_hidden_states.astype(self.dtype)),
        )
        blocks = zip(self.transformer_blocks, self.kinds, strict=True)
        for _, alike in itertools.groupby(blocks, key=lambda pair: pair[1]):
            group = [block for block, _ in alike]
            streams = scanned.run(group, streams, features, remat=self.remat, scan=self.scan)
        predicted = self.proj_out(self.norm_out(streams[0], features))
        return from_patches(predicted.astype(jnp.float32), height, width)

    def _check(self, sample, text, pooled):
        if sample.ndim != 4 or sample.shape[-1] != self.in_channels or any(side % PATCH for side in sample.shape[1:3]):
            wanted = f'[B, h, w, {self.in_channels}] with h and w multiples of {PATCH}'
            raise ValueError(f'sd3: sample has shape {sample.shape} but must be {wanted}')
        if text.ndim != 3 or text.shape[-1] != self.text_width:
            raise ValueError(
                f'sd3: encoder_hidden_states have shape {text.shape} but must be [B, L, {self.text_width}]'
            )
        if pooled.ndim != 2 or pooled.shape[-1] != self.pooled_width:
            raise ValueError(f'sd3: pooled has shape {pooled.shape} but must be [B, {self.pooled_width}]')
        sides = tuple(side // PATCH for side in sample.shape[1:3])
        if max(sides) > self.longest:
            raise ValueError(
                f'sd3: an image of {sides[0]} x {sides[1]} tokens exceeds pos_embed_max_size, which is {self.longest}'
            )
