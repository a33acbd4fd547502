"""The transformer of FLUX.1, which predicts the velocity noise - x0 of packed latents.

Text and image are two streams with weights of their own in the first blocks (`transformer_blocks`), where each attends
to both, and one stream in the others (`single_transformer_blocks`), whose attention and feed-forward layer work on the
same input. Every block has modulations of its own. There is no mask: padding of the text is attended to. The text has
no positions. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/transformers/transformer_flux.py; Black Forest Labs 2024 (FLUX.1).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import dit, rotary, scanned
from dreambooth_jax.models.dit import (
    EXPANSION,
    ZERO,
    FeedForward,
    HeadNorms,
    JointAttention,
    JointBlock,
    ModulatedNorm,
    Modulation,
    TimeTextEmbedding,
    modulated,
    rotate_and_attend,
    within_range,
)

# Defaults in the constructor of diffusers' FluxTransformer2DModel.
DEFAULTS: dict[str, Any] = {
    'patch_size': 1,
    'in_channels': 64,
    'out_channels': None,
    'num_layers': 19,
    'num_single_layers': 38,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'pooled_projection_dim': 768,
    'guidance_embeds': False,
    'axes_dims_rope': (16, 56, 56),
}
AXES = 3  # of a position: unused, row, column
THETA = 10000.0
TIME_SCALE = 1000.0  # times and guidance are multiplied by it before they are embedded
EPSILON = 1e-6


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the transformer's config.json; returns and raises as dit.resolve."""
    return dit.resolve('flux', config, DEFAULTS, axes=AXES)


def positions(text_length: int, height: int, width: int) -> np.ndarray:
    """Returns the positions i64[text_length + height * width, 3] of all tokens: zeros of the text, then the image."""
    image = np.pad(rotary.grid(height, width), ((0, 0), (1, 0)))
    return np.concatenate([np.zeros((text_length, AXES), np.int64), image])


class DoubleBlock(JointBlock):
    """Joint attention and a feed-forward layer for each stream, with modulations of its own."""

    def __init__(self, c, made):
        width = _width(c)
        self.norm1 = Modulation(width, 6, use_bias=True, **made)
        self.norm1_context = Modulation(width, 6, use_bias=True, **made)
        self.attn = JointAttention(c['num_attention_heads'], c['attention_head_dim'], EPSILON, use_bias=True, **made)
        self.ff = FeedForward(width, **made)
        self.ff_context = FeedForward(width, **made)

    def __call__(self, streams, time, rotation):
        """Maps the streams (JointBlock.update), with time features f[B, width], to two arrays of their shapes."""
        return self.update(streams, self.norm1(time), self.norm1_context(time), rotation, EPSILON)


class SelfAttention(HeadNorms):
    """Self-attention over f[B, L, width] without a projection of its result."""

    def __init__(self, c, made):
        super().__init__(c['num_attention_heads'], c['attention_head_dim'], EPSILON, **made)
        width = _width(c)
        self.to_q, self.to_k, self.to_v = (nnx.Linear(width, width, **made) for _ in range(3))

    def __call__(self, x, rotation):
        return rotate_and_attend(*self.split(self.to_q(x), self.to_k(x), self.to_v(x)), rotation)


class SingleBlock(nnx.Module):
    """Self-attention and a feed-forward layer of the same input, of text and image in one stream."""

    def __init__(self, c, made):
        width = _width(c)
        self.norm = Modulation(width, 3, use_bias=True, **made)
        self.proj_mlp = nnx.Linear(width, EXPANSION * width, **made)
        self.proj_out = nnx.Linear((1 + EXPANSION) * width, width, **made)
        self.attn = SelfAttention(c, made)

    def __call__(self, x, time, rotation):
        """Maps x f[B, L + N, width], with time features f[B, width], to the same shape."""
        shift, scale, gate = self.norm(time)
        seen = modulated(x, shift, scale, EPSILON)
        hidden = jax.nn.gelu(self.proj_mlp(seen), approximate=True)
        joined = jnp.concatenate([self.attn(seen, rotation), hidden], axis=-1)
        return within_range(x + gate * self.proj_out(joined))


def _width(c) -> int:
    """Returns the width of a stream of a resolved configuration."""
    return c['num_attention_heads'] * c['attention_head_dim']


class FluxTransformer2DModel(nnx.Module):
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
        width = _width(c)
        self.time_text_embed = TimeTextEmbedding(width, c['pooled_projection_dim'], guided=c['guidance_embeds'], **made)
        self.context_embedder = nnx.Linear(c['joint_attention_dim'], width, **made)
        self.x_embedder = nnx.Linear(c['in_channels'], width, **made)
        self.transformer_blocks = nnx.List([DoubleBlock(c, made) for _ in range(c['num_layers'])])
        self.single_transformer_blocks = nnx.List([SingleBlock(c, made) for _ in range(c['num_single_layers'])])
        self.norm_out = ModulatedNorm(width, EPSILON, use_bias=True, **made)
        self.proj_out = nnx.Linear(width, c['out_channels'], kernel_init=ZERO, **made)

        self.dtype, self.remat, self.scan = dtype, remat, scan
        self.axes = tuple(c['axes_dims_rope'])
        self.in_channels, self.text_width = c['in_channels'], c['joint_attention_dim']
        self.pooled_width = c['pooled_projection_dim']

    def __call__(self, sample, timesteps, encoder_hidden_states, pooled, *, guidance=None):
        """Predicts the velocity noise - x0.

        Args:
          sample: noisy packed latents f[B, h, w, in_channels] (vae_flux2.pack).
          timesteps: f32[B] in 0..1, the share of noise, or a scalar for all examples.
          encoder_hidden_states: text states f[B, L, joint_attention_dim]; all of them are attended to.
          pooled: pooled text state f[B, pooled_projection_dim].
          guidance: f32[B] or a scalar, given exactly if the network has guidance_embeds.

        Returns:
          f32[B, h, w, out_channels].

        Raises:
          ValueError: if a shape does not fit, or if the guidance is missing or not taken.
        """
        self._check(sample, encoder_hidden_states, pooled, guidance)
        batch, height, width, _ = sample.shape
        length = encoder_hidden_states.shape[1]
        time, guidance = (
            None if value is None else TIME_SCALE * jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))
            for value in (timesteps, guidance)
        )
        features = self.time_text_embed(time, pooled, guidance)
        rotation = rotary.of_heads(rotary.axes_angles(positions(length, height, width), self.axes, THETA))

        x = self.x_embedder(sample.astype(self.dtype).reshape(batch, height * width, -1))
        text = self.context_embedder(encoder_hidden_states.astype(self.dtype))
        how = {'remat': self.remat, 'scan': self.scan}
        x, text = scanned.run(self.transformer_blocks, (x, text), features, rotation, **how)
        x = scanned.run(self.single_transformer_blocks, jnp.concatenate([text, x], axis=1), features, rotation, **how)
        predicted = self.proj_out(self.norm_out(x[:, length:], features))
        return predicted.astype(jnp.float32).reshape(batch, height, width, -1)

    def _check(self, sample, text, pooled, guidance):
        dit.check_inputs('flux', sample, text, channels=self.in_channels, text_width=self.text_width)
        if pooled.ndim != 2 or pooled.shape[-1] != self.pooled_width:
            raise ValueError(f'flux: pooled has shape {pooled.shape} but must be [B, {self.pooled_width}]')
        if (guidance is not None) != (self.time_text_embed.guidance_embedder is not None):
            has = 'is given' if guidance is not None else 'is missing'
            raise ValueError(f'flux: guidance {has}, but guidance_embeds is {guidance is None}')
