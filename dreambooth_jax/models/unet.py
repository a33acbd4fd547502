"""The conditional UNet of diffusers' text-to-image models: it reads a noisy picture, a time and text states.

Built today: the DeepFloyd IF family (pixel base stages and super-resolution stages). Children are named as in the
published checkpoints. Source: diffusers 0.42.1 models/unets/unet_2d_condition.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import unet_config
from dreambooth_jax.models.attention import AddedKVAttention, TextTimeEmbedding
from dreambooth_jax.models.layers import ACTIVATIONS, GroupNorm, TimestepEmbedding, convolution, sinusoidal_embedding
from dreambooth_jax.models.unet_blocks import (
    DOWN_BLOCKS,
    MID_BLOCKS,
    UP_BLOCKS,
    DownBlock,
    MidBlock,
    ResnetBlock2D,
    UpBlock,
    residual_downsampler,
    residual_upsampler,
)


class UNet2DConditionModel(nnx.Module):
    """Denoising network.

    Args of the constructor:
      config: the dictionary of a diffusers config.json; missing keys take diffusers' defaults.
      dtype: compute dtype; parameters are f32.
      rngs: source of the initial parameters. Residual branches and the output start at zero, as guided-diffusion's.
    Raises: ValueError, one sentence, for a configuration that is not supported (unet_config.resolve).
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs):
        c = unet_config.resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        channels = c['block_out_channels']
        features = c['time_embedding_dim'] or 4 * channels[0]
        text_width = c['encoder_hid_dim'] or c['cross_attention_dim'][0]

        self.conv_in = convolution(c['in_channels'], channels[0], c['conv_in_kernel'], **made)
        self.time_embedding = TimestepEmbedding(channels[0], features, c['act_fn'], **made)
        self.encoder_hid_proj = (
            nnx.Linear(text_width, c['cross_attention_dim'][0], **made) if c['encoder_hid_dim_type'] else None
        )
        self.class_embedding = (
            TimestepEmbedding(channels[0], features, c['act_fn'], **made) if c['class_embed_type'] else None
        )
        self.add_embedding = (
            TextTimeEmbedding(text_width, features, c['addition_embed_type_num_heads'], **made)
            if c['addition_embed_type']
            else None
        )
        down, middle, up = _blocks(c, features, made)
        self.down_blocks = nnx.List(down)
        self.mid_block = middle
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(channels[0], c['norm_num_groups'], c['norm_eps'], **made)
        self.conv_out = convolution(channels[0], c['out_channels'], c['conv_out_kernel'], zero=True, **made)

        self.dtype = dtype
        self.activation = ACTIVATIONS[c['act_fn']]
        self.time_activation = ACTIVATIONS[c['time_embedding_act_fn']] if c['time_embedding_act_fn'] else None
        self.center_input_sample = c['center_input_sample']
        self.sinusoids = functools.partial(
            sinusoidal_embedding,
            width=channels[0],
            flip_sin_to_cos=c['flip_sin_to_cos'],
            freq_shift=c['freq_shift'],
        )
        self.in_channels = c['in_channels']
        self.size_divisor = 2 ** (len(channels) - 1)

    def __call__(self, sample, timesteps, encoder_hidden_states, *, class_labels=None):
        """Predicts noise (and, with out_channels = 2 * channels, the variance).

        Args:
          sample: f[B, H, W, in_channels]; H and W multiples of 2 ** (blocks - 1).
          timesteps: int or float [B], or one for all.
          encoder_hidden_states: f[B, L, encoder_hid_dim or cross_attention_dim].
          class_labels: int or float [B], the noise level of the low-resolution picture; exactly if the network has
            class_embed_type 'timestep'.
        Returns: f32[B, H, W, out_channels].
        Raises: ValueError for a shape or label that does not fit.
        """
        self._check(sample, class_labels)
        batch = sample.shape[0]
        text = encoder_hidden_states.astype(self.dtype)
        x = sample.astype(self.dtype)
        if self.center_input_sample:
            x = 2 * x - 1

        time = self.time_embedding(self.sinusoids(jnp.broadcast_to(timesteps, (batch,))))
        if self.class_embedding is not None:
            time = time + self.class_embedding(self.sinusoids(jnp.broadcast_to(class_labels, (batch,))))
        if self.add_embedding is not None:
            time = time + self.add_embedding(text)
        if self.time_activation is not None:
            time = self.time_activation(time)
        if self.encoder_hid_proj is not None:
            text = self.encoder_hid_proj(text)

        x = self.conv_in(x)
        states = [x]
        for block in self.down_blocks:
            x, more = block(x, time, text)
            states += more
        x = self.mid_block(x, time, text)
        for block in self.up_blocks:
            x = block(x, time, text, states)
        x = self.conv_out(self.activation(self.conv_norm_out(x)))
        return x.astype(jnp.float32)

    def _check(self, sample, class_labels):
        if (
            sample.ndim != 4
            or sample.shape[-1] != self.in_channels
            or any(side % self.size_divisor for side in sample.shape[1:3])
        ):
            wanted = f'[B, H, W, {self.in_channels}] with H and W multiples of {self.size_divisor}'
            raise ValueError(f'unet: sample has shape {sample.shape} but must be {wanted}')
        if (class_labels is None) != (self.class_embedding is None):
            found, wanted = ('missing', 'given') if class_labels is None else ('given', 'left out')
            raise ValueError(f'unet: class_labels are {found} but must be {wanted} for this class_embed_type')


def _blocks(c: Mapping[str, Any], features: int, made: Mapping[str, Any]):
    """(down blocks, mid block, up blocks) of a resolved configuration; `features` is the width of the time features."""
    channels, layers = c['block_out_channels'], c['layers_per_block']
    count = len(channels)
    norm = {'groups': c['norm_num_groups'], 'epsilon': c['norm_eps']}
    resnet_of_any_scale = functools.partial(
        ResnetBlock2D,
        time_features=features,
        activation=c['act_fn'],
        time_scale_shift=c['resnet_time_scale_shift'],
        skip_time_act=c['resnet_skip_time_act'],
        **norm,
        **made,
    )
    resnet = functools.partial(resnet_of_any_scale, out_scale_factor=c['resnet_out_scale_factor'])

    def attention(kind, head_entry, level, only_cross_attention):
        """channels -> attention block, or None for a block without."""
        if kind.attention is None:
            return None
        return lambda width: AddedKVAttention(
            width,
            c['attention_head_dim'][head_entry],
            c['cross_attention_dim'][level],
            cross_norm=c['cross_attention_norm'],
            only_cross_attention=only_cross_attention,
            **norm,
            **made,
        )

    down, before = [], channels[0]
    for level, name in enumerate(c['down_block_types']):
        width = channels[level]
        down.append(
            DownBlock(
                [(before if layer == 0 else width, width) for layer in range(layers[level])],
                resnet=resnet,
                attention=attention(DOWN_BLOCKS[name], level, level, c['only_cross_attention'][level]),
                downsampler=residual_downsampler(resnet) if level < count - 1 else None,
            )
        )
        before = width

    last = count - 1
    middle = MidBlock(
        channels[last],
        resnet=functools.partial(resnet_of_any_scale, out_scale_factor=c['mid_block_scale_factor']),
        attention=attention(MID_BLOCKS[c['mid_block_type']], last, last, c['mid_block_only_cross_attention']),
    )

    up, before = [], channels[last]
    for index, name in enumerate(c['up_block_types']):
        level = last - index
        width, below = channels[level], channels[max(level - 1, 0)]
        skips = [width] * layers[level] + [below]  # the last state was made at the width of the level above
        inputs = [before] + [width] * layers[level]
        up.append(
            UpBlock(
                [(main + skip, width) for main, skip in zip(inputs, skips, strict=True)],
                resnet=resnet,
                # diffusers reverses every per-block list for the up blocks except attention_head_dim.
                attention=attention(UP_BLOCKS[name], index, level, c['only_cross_attention'][level]),
                upsampler=residual_upsampler(resnet) if level > 0 else None,
            )
        )
        before = width
    return down, middle, up
