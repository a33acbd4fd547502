"""The transformer of FLUX.2 (Klein), which predicts the velocity noise - x0 of packed latents.

Text and image are two streams with weights of their own in the first blocks (`transformer_blocks`), where each attends
to both, and one stream in the others (`single_transformer_blocks`), whose attention and feed-forward layer work on the
same input. All blocks of a kind share one modulation. Nothing has a bias. There is no mask: padding of the text is
attended to. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/transformers/transformer_flux2.py; Black Forest Labs 2025 (FLUX.2).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import dit, rotary, scanned
from dreambooth_jax.models.dit import (
    ZERO,
    GatedFeedForward,
    HeadNorms,
    JointAttention,
    JointBlock,
    ModulatedNorm,
    Modulation,
    modulated,
    rotate_and_attend,
    silu_gated,
    within_range,
)
from dreambooth_jax.models.layers import TimestepEmbedding, sinusoidal_embedding

# Defaults in the constructor of diffusers' Flux2Transformer2DModel.
DEFAULTS: dict[str, Any] = {
    'patch_size': 1,
    'in_channels': 128,
    'out_channels': None,
    'num_layers': 8,
    'num_single_layers': 48,
    'attention_head_dim': 128,
    'num_attention_heads': 48,
    'joint_attention_dim': 15360,
    'timestep_guidance_channels': 256,
    'mlp_ratio': 3.0,
    'axes_dims_rope': (32, 32, 32, 32),
    'rope_theta': 2000,
    'eps': 1e-6,
    'guidance_embeds': True,
}
AXES = 4  # of a position: reference image, row, column, place in the text
TIME_SCALE = 1000.0  # times and guidance are multiplied by it before they are embedded


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the transformer's config.json.

    Args:
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.

    Returns:
      All keys of DEFAULTS; `out_channels` is a number.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    return dit.resolve('flux2', config, DEFAULTS, axes=AXES)


def positions(text_length: int, height: int, width: int) -> np.ndarray:
    """Returns the positions i64[text_length + height * width, 4] of all tokens: the text, then the image by rows."""
    text = np.zeros((text_length, AXES), np.int64)
    text[:, 3] = np.arange(text_length)
    image = np.zeros((height * width, AXES), np.int64)
    image[:, 1:3] = rotary.grid(height, width)
    return np.concatenate([text, image])


class DoubleBlock(JointBlock):
    """Joint attention and a feed-forward layer for each stream."""

    def __init__(self, c, made):
        width, hidden = _widths(c)
        self.attn = JointAttention(c['num_attention_heads'], c['attention_head_dim'], c['eps'], **made)
        self.ff = GatedFeedForward(width, hidden, **made)
        self.ff_context = GatedFeedForward(width, hidden, **made)
        self.epsilon = c['eps']

    def __call__(self, streams, of_image, of_text, rotation):
        """Maps the streams to two arrays of their shapes; see JointBlock.update."""
        return self.update(streams, of_image, of_text, rotation, self.epsilon)


class ParallelAttention(HeadNorms):
    """Self-attention and a gated feed-forward layer of the same input, with one projection in and one out."""

    def __init__(self, c, made):
        super().__init__(c['num_attention_heads'], c['attention_head_dim'], c['eps'], **made)
        width, hidden = _widths(c)
        self.to_qkv_mlp_proj = nnx.Linear(width, 3 * width + 2 * hidden, use_bias=False, **made)
        self.to_out = nnx.Linear(width + hidden, width, use_bias=False, **made)
        self.width = width

    def __call__(self, x, rotation):
        """Maps f[B, L, width] to the same shape."""
        query, key, value, hidden = jnp.split(
            self.to_qkv_mlp_proj(x), [self.width, 2 * self.width, 3 * self.width], axis=-1
        )
        attended = rotate_and_attend(*self.split(query, key, value), rotation)
        return self.to_out(jnp.concatenate([attended, silu_gated(hidden)], axis=-1))


class SingleBlock(nnx.Module):
    """The residual parallel attention of text and image in one stream."""

    def __init__(self, c, made):
        self.attn = ParallelAttention(c, made)
        self.epsilon = c['eps']

    def __call__(self, x, modulation, rotation):
        """Maps x f[B, L + N, width], with shift, scale and gate f[B, 1, width], to the same shape."""
        shift, scale, gate = modulation
        return within_range(x + gate * self.attn(modulated(x, shift, scale, self.epsilon), rotation))


def _widths(c) -> tuple[int, int]:
    """Returns (width of a stream, hidden width of its feed-forward layers) of a resolved configuration."""
    width = c['num_attention_heads'] * c['attention_head_dim']
    return width, int(width * c['mlp_ratio'])


class TimeGuidanceEmbedding(nnx.Module):
    """Embeds times f32[B] in 0..1 and, if the network has guidance_embeds, the guidance f32[B], as f[B, width]."""

    def __init__(self, c, width: int, *, dtype, rngs: nnx.Rngs):
        self.channels = c['timestep_guidance_channels']

        def embedder():
            return TimestepEmbedding(self.channels, width, 'silu', use_bias=False, dtype=dtype, rngs=rngs)

        self.timestep_embedder = embedder()
        self.guidance_embedder = embedder() if c['guidance_embeds'] else None

    def __call__(self, time, guidance):
        found = self.timestep_embedder(sinusoidal_embedding(TIME_SCALE * time, self.channels))
        if self.guidance_embedder is not None:
            found = found + self.guidance_embedder(sinusoidal_embedding(TIME_SCALE * guidance, self.channels))
        return found


class Flux2Transformer2DModel(nnx.Module):
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
        width, _ = _widths(c)
        self.time_guidance_embed = TimeGuidanceEmbedding(c, width, **made)
        self.double_stream_modulation_img = Modulation(width, 6, **made)
        self.double_stream_modulation_txt = Modulation(width, 6, **made)
        self.single_stream_modulation = Modulation(width, 3, **made)
        self.x_embedder = nnx.Linear(c['in_channels'], width, use_bias=False, **made)
        self.context_embedder = nnx.Linear(c['joint_attention_dim'], width, use_bias=False, **made)
        self.transformer_blocks = nnx.List([DoubleBlock(c, made) for _ in range(c['num_layers'])])
        self.single_transformer_blocks = nnx.List([SingleBlock(c, made) for _ in range(c['num_single_layers'])])
        self.norm_out = ModulatedNorm(width, c['eps'], **made)
        self.proj_out = nnx.Linear(width, c['out_channels'], use_bias=False, kernel_init=ZERO, **made)

        self.dtype, self.remat, self.scan = dtype, remat, scan
        self.axes, self.theta = tuple(c['axes_dims_rope']), float(c['rope_theta'])
        self.in_channels, self.text_width = c['in_channels'], c['joint_attention_dim']

    def __call__(self, sample, timesteps, encoder_hidden_states, *, guidance=None):
        """Predicts the velocity noise - x0.

        Args:
          sample: noisy packed and normalised latents f[B, h, w, in_channels] (vae_flux2.py).
          timesteps: f32[B] in 0..1, the share of noise, or a scalar for all examples.
          encoder_hidden_states: text states f[B, L, joint_attention_dim]; all of them are attended to.
          guidance: f32[B] or a scalar, given exactly if the network has guidance_embeds.

        Returns:
          f32[B, h, w, out_channels].

        Raises:
          ValueError: if a shape does not fit, or if the guidance is missing or not taken.
        """
        self._check(sample, encoder_hidden_states, guidance)
        batch, height, width, _ = sample.shape
        length = encoder_hidden_states.shape[1]
        time, guidance = (
            None if value is None else jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))
            for value in (timesteps, guidance)
        )
        features = self.time_guidance_embed(time, guidance)
        of_image, of_text = self.double_stream_modulation_img(features), self.double_stream_modulation_txt(features)
        of_both = self.single_stream_modulation(features)
        rotation = rotary.of_heads(rotary.axes_angles(positions(length, height, width), self.axes, self.theta))

        x = self.x_embedder(sample.astype(self.dtype).reshape(batch, height * width, -1))
        text = self.context_embedder(encoder_hidden_states.astype(self.dtype))
        how = {'remat': self.remat, 'scan': self.scan}
        x, text = scanned.run(self.transformer_blocks, (x, text), of_image, of_text, rotation, **how)
        x = scanned.run(self.single_transformer_blocks, jnp.concatenate([text, x], axis=1), of_both, rotation, **how)
        predicted = self.proj_out(self.norm_out(x[:, length:], features))
        return predicted.astype(jnp.float32).reshape(batch, height, width, -1)

    def _check(self, sample, text, guidance):
        dit.check_inputs('flux2', sample, text, channels=self.in_channels, text_width=self.text_width)
        if (guidance is not None) != (self.time_guidance_embed.guidance_embedder is not None):
            has = 'is given' if guidance is not None else 'is missing'
            raise ValueError(f'flux2: guidance {has}, but guidance_embeds is {guidance is None}')
