"""The conditional UNet of diffusers' text-to-image models. Its inputs are a noisy image, a time and text states.

Two families have this structure. DeepFloyd IF works on pixels, changes the resolution inside residual blocks and uses
attention with added keys and values. Stable Diffusion 1.x, 2.x, XL and the x4 upscaler work on latents, change the
resolution by convolutions and use transformers. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/unets/unet_2d_condition.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import unet_config
from dreambooth_jax.models.attention import AddedKVAttention, TextTimeEmbedding
from dreambooth_jax.models.layers import ACTIVATIONS, GroupNorm, TimestepEmbedding, convolution, sinusoidal_embedding
from dreambooth_jax.models.transformer import Transformer2DModel
from dreambooth_jax.models.unet_blocks import (
    DOWN_BLOCKS,
    MID_BLOCKS,
    UP_BLOCKS,
    DownBlock,
    Downsample2D,
    MidBlock,
    ResnetBlock2D,
    UpBlock,
    Upsample2D,
    residual_downsampler,
    residual_upsampler,
)


class UNet2DConditionModel(nnx.Module):
    """The conditional UNet.

    Args:
      config: contents of a diffusers config.json; missing keys have diffusers' defaults.
      dtype: compute dtype; parameters are f32.
      remat: whether every residual, attention and transformer block is computed again in the backward pass. Values and
        gradients stay the same; it needs less memory and about a third more time.
      rngs: source of the initial parameters. Residual branches and the output start at zero, as in guided-diffusion.

    Raises:
      ValueError: one sentence, if the configuration is not supported (unet_config.resolve).
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs):
        c = unet_config.resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        channels = c['block_out_channels']
        features = c['time_embedding_dim'] or 4 * channels[0]
        text_width = c['encoder_hid_dim'] or c['cross_attention_dim'][0]

        # Submodules must keep this order: it determines which random key each parameter is initialised with.
        self.conv_in = convolution(c['in_channels'], channels[0], c['conv_in_kernel'], **made)
        self.time_embedding = TimestepEmbedding(channels[0], features, c['act_fn'], **made)
        self.encoder_hid_proj = (
            nnx.Linear(text_width, c['cross_attention_dim'][0], **made) if c['encoder_hid_dim_type'] else None
        )
        self.class_embedding = _class_embedding(c, features, made)
        self.add_embedding = _added_embedding(c, text_width, features, made)
        down, middle, up = _blocks(c, features, remat, made)
        self.down_blocks = nnx.List(down)
        self.mid_block = middle
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(channels[0], c['norm_num_groups'], c['norm_eps'], **made)
        self.conv_out = convolution(channels[0], c['out_channels'], c['conv_out_kernel'], zero=True, **made)

        # The rest is not part of the checkpoint: functions and constants for __call__.
        self.dtype = dtype
        self.activation = ACTIVATIONS[c['act_fn']]
        self.time_activation = ACTIVATIONS[c['time_embedding_act_fn']] if c['time_embedding_act_fn'] else None
        self.center_input_sample = c['center_input_sample']
        options = {'flip_sin_to_cos': c['flip_sin_to_cos'], 'freq_shift': c['freq_shift']}
        self.sinusoids = functools.partial(sinusoidal_embedding, width=channels[0], **options)
        self.added_sinusoids = (
            functools.partial(sinusoidal_embedding, width=c['addition_time_embed_dim'], **options)
            if c['addition_embed_type'] == 'text_time'
            else None
        )
        self.in_channels = c['in_channels']
        self.size_divisor = 2 ** (len(channels) - 1)

    def __call__(self, sample, timesteps, encoder_hidden_states, *, class_labels=None, added_cond=None):
        """Predicts the target of the scheduler's prediction_type and, with twice the output channels, the variance.

        Args:
          sample: f[B, H, W, in_channels]; H and W are multiples of 2 ** (blocks - 1).
          timesteps: int or float [B], or a scalar for all examples.
          encoder_hidden_states: text states f[B, L, encoder_hid_dim or cross_attention_dim].
          class_labels: noise level of the low-resolution image. It must be given exactly if the network has
            class_embed_type 'timestep' (then int or float [B]) or num_class_embeds (then int [B], table indices).
          added_cond: {'text_embeds': pooled text f[B, D], 'time_ids': f[B, 6] sizes and crop in pixels}. It must be
            given exactly if addition_embed_type is 'text_time'. Both together, with the sinusoids of each number, have
            projection_class_embeddings_input_dim features.

        Returns:
          f32[B, H, W, out_channels].

        Raises:
          ValueError: if a shape or label does not fit.
        """
        self._check(sample, class_labels, added_cond)
        batch = sample.shape[0]
        text = encoder_hidden_states.astype(self.dtype)
        x = sample.astype(self.dtype)
        if self.center_input_sample:
            x = 2 * x - 1

        # All conditions except the text states are added to the time features.
        time = self.time_embedding(self.sinusoids(jnp.broadcast_to(timesteps, (batch,))))
        if self.class_embedding is not None:
            labels = jnp.broadcast_to(class_labels, (batch,))
            indexed = isinstance(self.class_embedding, nnx.Embed)
            time = time + self.class_embedding(labels if indexed else self.sinusoids(labels))
        if self.add_embedding is not None:
            time = time + self.add_embedding(text if self.added_sinusoids is None else self._added(added_cond))
        if self.time_activation is not None:
            time = self.time_activation(time)
        if self.encoder_hid_proj is not None:
            text = self.encoder_hid_proj(text)

        # Each up block takes the states of the down blocks from the end of the list, the last one first.
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

    def _added(self, added_cond):
        """Joins the pooled text and the sinusoids of sizes and crop: f32[B, projection_class_embeddings_input_dim]."""
        pooled, numbers = added_cond['text_embeds'], added_cond['time_ids']
        sinusoids = self.added_sinusoids(numbers.reshape(-1)).reshape(numbers.shape[0], -1)
        joined = jnp.concatenate([pooled.astype(jnp.float32), sinusoids], axis=-1)
        width = self.add_embedding.linear_1.in_features
        if joined.shape[-1] != width:
            raise ValueError(
                f'unet: added_cond of shapes {pooled.shape} and {numbers.shape} makes {joined.shape[-1]} features but '
                f'must make {width} (projection_class_embeddings_input_dim), {numbers.shape[-1]} numbers of '
                f'{sinusoids.shape[-1] // numbers.shape[-1]} features each included'
            )
        return joined

    def _check(self, sample, class_labels, added_cond):
        if (
            sample.ndim != 4
            or sample.shape[-1] != self.in_channels
            or any(side % self.size_divisor for side in sample.shape[1:3])
        ):
            wanted = f'[B, H, W, {self.in_channels}] with H and W multiples of {self.size_divisor}'
            raise ValueError(f'unet: sample has shape {sample.shape} but must be {wanted}')
        if (class_labels is None) != (self.class_embedding is None):
            found, wanted = ('missing', 'given') if class_labels is None else ('given', 'left out')
            raise ValueError(
                f'unet: class_labels are {found} but must be {wanted} for this class_embed_type and num_class_embeds'
            )
        if isinstance(self.class_embedding, nnx.Embed):
            kind = jnp.result_type(class_labels)
            if not jnp.issubdtype(kind, jnp.integer):
                raise ValueError(f'unet: class_labels are {kind} but must be integers, indices below num_class_embeds')
        if (added_cond is None) != (self.added_sinusoids is None):
            found, wanted = ('missing', 'given') if added_cond is None else ('given', 'left out')
            raise ValueError(f'unet: added_cond is {found} but must be {wanted} for this addition_embed_type')
        if added_cond is not None and set(added_cond) != {'text_embeds', 'time_ids'}:
            raise ValueError(f"unet: added_cond has {sorted(added_cond)} but must have ['text_embeds', 'time_ids']")


def _class_embedding(c: Mapping[str, Any], features: int, made: Mapping[str, Any]):
    if c['class_embed_type'] == 'timestep':
        return TimestepEmbedding(c['block_out_channels'][0], features, c['act_fn'], **made)
    if c['num_class_embeds'] is not None:
        # This is torch's initial distribution of an embedding, with which the upscaler's training started.
        return nnx.Embed(c['num_class_embeds'], features, embedding_init=nnx.initializers.normal(1.0), **made)
    return None


def _added_embedding(c: Mapping[str, Any], text_width: int, features: int, made: Mapping[str, Any]):
    if c['addition_embed_type'] == 'text':
        return TextTimeEmbedding(text_width, features, c['addition_embed_type_num_heads'], **made)
    if c['addition_embed_type'] == 'text_time':
        return TimestepEmbedding(c['projection_class_embeddings_input_dim'], features, 'silu', **made)
    return None


def _blocks(c: Mapping[str, Any], features: int, remat: bool, made: Mapping[str, Any]):
    """Builds (down blocks, mid block, up blocks) for a resolved configuration and the width of the time features."""
    channels, layers = c['block_out_channels'], c['layers_per_block']
    last = len(channels) - 1

    def resnet(kind, out_scale_factor):
        """Returns (in, out) -> residual block; resnet_skip_time_act has an effect only on IF's residual blocks."""
        return functools.partial(
            ResnetBlock2D,
            time_features=features,
            groups=c['norm_num_groups'],
            epsilon=c['norm_eps'],
            activation=c['act_fn'],
            time_scale_shift=c['resnet_time_scale_shift'],
            skip_time_act=c['resnet_skip_time_act'] and kind.resampling == 'resnet',
            out_scale_factor=out_scale_factor,
            **made,
        )

    def side_resnet(kind):
        return resnet(kind, c['resnet_out_scale_factor'] if kind.resampling == 'resnet' else 1.0)

    def attention(kind, index, level, only_cross_attention):
        """Returns channels -> attention block, or None; `index` is the block's position in its list of block types."""
        if kind.attention is None:
            return None
        options = {'only_cross_attention': only_cross_attention, 'groups': c['norm_num_groups'], 'remat': remat, **made}
        text_width = c['cross_attention_dim'][level]
        if kind.attention == 'transformer':
            return lambda width: Transformer2DModel(
                width,
                c['attention_head_dim'][level],  # the number of heads; diffusers named the key wrongly
                text_width,
                layers=c['transformer_layers_per_block'][level],
                linear_projection=c['use_linear_projection'],
                **options,
            )
        return lambda width: AddedKVAttention(
            width,
            # diffusers reverses every per-block list for the up blocks, except this one if it is a width.
            c['attention_head_dim'][index],
            text_width,
            epsilon=c['norm_eps'],
            cross_norm=c['cross_attention_norm'],
            **options,
        )

    def resampler(kind, residual, convolutional):
        """Returns channels -> layer that changes the resolution."""
        if kind.resampling == 'resnet':
            return residual(side_resnet(kind))
        return functools.partial(convolutional, **made)

    down, before = [], channels[0]
    for level, name in enumerate(c['down_block_types']):
        kind, width = DOWN_BLOCKS[name], channels[level]
        down.append(
            DownBlock(
                [(before if layer == 0 else width, width) for layer in range(layers[level])],
                resnet=side_resnet(kind),
                attention=attention(kind, level, level, c['only_cross_attention'][level]),
                downsampler=resampler(kind, residual_downsampler, Downsample2D) if level < last else None,
                remat=remat,
            )
        )
        before = width

    kind = MID_BLOCKS[c['mid_block_type']]
    # The transformer of the mid block always has self-attention, whatever only_cross_attention says.
    only_cross_attention = c['mid_block_only_cross_attention'] and kind.attention == 'added_kv'
    middle = MidBlock(
        channels[last],
        resnet=resnet(kind, c['mid_block_scale_factor']),
        attention=attention(kind, last, last, only_cross_attention),
        remat=remat,
    )

    up, before = [], channels[last]
    for index, name in enumerate(c['up_block_types']):
        kind, level = UP_BLOCKS[name], last - index
        width, below = channels[level], channels[max(level - 1, 0)]
        skips = [width] * layers[level] + [below]  # the last state is from the downsampler above, or conv_in
        inputs = [before] + [width] * layers[level]
        up.append(
            UpBlock(
                [(main + skip, width) for main, skip in zip(inputs, skips, strict=True)],
                resnet=side_resnet(kind),
                attention=attention(kind, index, level, c['only_cross_attention'][level]),
                upsampler=resampler(kind, residual_upsampler, Upsample2D) if level > 0 else None,
                remat=remat,
            )
        )
        before = width
    return down, middle, up
