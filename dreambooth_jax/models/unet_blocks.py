"""The residual block of the UNet, and stacks of residual and attention blocks at one resolution.

The published name of a block stands for a type of attention and of resampling (DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS). The
stacks call the functions that they are given to build their layers. So a new type of block needs a new entry of a table
and a new function, but not a new stack. Attributes have the names of the published checkpoints.

Source: diffusers 0.42.1 models/resnet.py (ResnetBlock2D), models/unets/unet_2d_blocks.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models.functional import call
from dreambooth_jax.models.layers import ACTIVATIONS, GroupNorm, average_pool, convolution, nearest_upsample


class BlockKind(NamedTuple):
    """The meaning of a block's published name."""

    attention: str | None  # after each residual block: None, 'added_kv' (AddedKVAttention) or 'transformer'
    resampling: str  # what changes the resolution: a residual block ('resnet') or a separate 'convolution'


DOWN_BLOCKS = {
    'ResnetDownsampleBlock2D': BlockKind(attention=None, resampling='resnet'),
    'SimpleCrossAttnDownBlock2D': BlockKind(attention='added_kv', resampling='resnet'),
    'DownBlock2D': BlockKind(attention=None, resampling='convolution'),
    'CrossAttnDownBlock2D': BlockKind(attention='transformer', resampling='convolution'),
}
MID_BLOCKS = {
    'UNetMidBlock2DSimpleCrossAttn': BlockKind(attention='added_kv', resampling='resnet'),
    'UNetMidBlock2DCrossAttn': BlockKind(attention='transformer', resampling='convolution'),
}
UP_BLOCKS = {
    'ResnetUpsampleBlock2D': BlockKind(attention=None, resampling='resnet'),
    'SimpleCrossAttnUpBlock2D': BlockKind(attention='added_kv', resampling='resnet'),
    'UpBlock2D': BlockKind(attention=None, resampling='convolution'),
    'CrossAttnUpBlock2D': BlockKind(attention='transformer', resampling='convolution'),
}


class ResnetBlock2D(nnx.Module):
    """Residual block: two convolutions, between which the time features act.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      time_features: width of the time features; None if the block has none, as in an autoencoder.
      groups: number of groups of the norms.
      epsilon: epsilon of the norms.
      activation: one of layers.ACTIVATIONS.
      time_scale_shift: with 'scale_shift' the time features scale and shift the second norm's output, with 'default'
        they are added to its input.
      skip_time_act: whether the activation has already been applied to the time features.
      out_scale_factor: the sum of both branches is divided by this.
      resample: None, or average_pool / nearest_upsample, applied to both branches before the first convolution.
      dtype: compute dtype.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_features: int | None,
        groups: int,
        epsilon: float,
        activation: str,
        time_scale_shift: str = 'default',
        skip_time_act: bool = False,
        out_scale_factor: float = 1.0,
        resample: Callable | None = None,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(in_channels, groups, epsilon, dtype=dtype, rngs=rngs)
        self.conv1 = convolution(in_channels, out_channels, dtype=dtype, rngs=rngs)
        self.modulates = time_scale_shift == 'scale_shift'
        time_outputs = 2 * out_channels if self.modulates else out_channels
        self.time_emb_proj = (
            nnx.Linear(time_features, time_outputs, dtype=dtype, rngs=rngs) if time_features is not None else None
        )
        self.norm2 = GroupNorm(out_channels, groups, epsilon, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(out_channels, out_channels, zero=True, dtype=dtype, rngs=rngs)
        self.conv_shortcut = (
            convolution(in_channels, out_channels, 1, dtype=dtype, rngs=rngs) if in_channels != out_channels else None
        )
        self.activation = ACTIVATIONS[activation]
        self.skip_time_act = skip_time_act
        self.out_scale_factor = out_scale_factor
        self.resample = resample

    def __call__(self, x, time=None):
        """Maps x f[B, H, W, in] and time f[B, time_features] (None if the block has none) to f[B, H', W', out]."""
        h = self.activation(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        if self.time_emb_proj is None:
            h = self.norm2(h)
        else:
            time = self.time_emb_proj(time if self.skip_time_act else self.activation(time))[:, None, None, :]
            if self.modulates:
                scale, shift = jnp.split(time, 2, axis=-1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + time)
        h = self.conv2(self.activation(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + h if self.out_scale_factor == 1 else (x + h) / self.out_scale_factor


class Downsample2D(nnx.Module):
    """Halves the resolution by a convolution with stride 2."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x, time=None):
        """Maps f[B, H, W, C] to f[B, H/2, W/2, C]; the time features are not used."""
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles the resolution by repeating pixels, followed by a convolution."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, time=None):
        """Maps f[B, H, W, C] to f[B, 2H, 2W, C]; the time features are not used."""
        return self.conv(nearest_upsample(x))


class DownBlock(nnx.Module):
    """Residual blocks, each followed by attention if there is any, at one resolution, and then a downsampler.

    Args:
      channels: (in, out) of each residual block.
      resnet: function (in, out) -> residual block.
      attention: function channels -> attention block, or None.
      downsampler: function channels -> layer that halves the resolution, or None.
      remat: whether each residual block is computed again in the backward pass; attention blocks have their own option.
    """

    def __init__(
        self, channels: Sequence[tuple[int, int]], *, resnet, attention=None, downsampler=None, remat: bool = False
    ):
        out_channels = channels[-1][1]
        self.attentions = nnx.List([attention(out) for _, out in channels] if attention else [])
        self.resnets = nnx.List([resnet(*pair) for pair in channels])
        self.downsamplers = nnx.List([downsampler(out_channels)] if downsampler else [])
        self.remat = remat

    def __call__(self, x, time, text):
        """Maps x f[B, H, W, in] to (f[B, H/2, W/2, out], list of the states after each layer, for the up blocks)."""
        states = []
        for index, resnet in enumerate(self.resnets):
            x = call(resnet, x, time, remat=self.remat)
            if self.attentions:
                x = self.attentions[index](x, text)
            states.append(x)
        for downsampler in self.downsamplers:
            x = call(downsampler, x, time, remat=self.remat)
            states.append(x)
        return x, states


class MidBlock(nnx.Module):
    """Residual block, attention and residual block at the lowest resolution; for the arguments see DownBlock."""

    def __init__(self, channels: int, *, resnet, attention, remat: bool = False):
        self.attentions = nnx.List([attention(channels)])
        self.resnets = nnx.List([resnet(channels, channels) for _ in range(2)])
        self.remat = remat

    def __call__(self, x, time, text):
        """Maps x f[B, H, W, channels] to the same shape."""
        x = call(self.resnets[0], x, time, remat=self.remat)
        x = self.attentions[0](x, text)
        return call(self.resnets[1], x, time, remat=self.remat)


class UpBlock(nnx.Module):
    """Residual blocks, each of which also takes one state of the down blocks, followed by an upsampler.

    Args:
      channels: (in, out) of each residual block; `in` includes the channels of the state.
      resnet: function (in, out) -> residual block.
      attention: function channels -> attention block, or None.
      upsampler: function channels -> layer that doubles the resolution, or None.
      remat: as in DownBlock.
    """

    def __init__(
        self, channels: Sequence[tuple[int, int]], *, resnet, attention=None, upsampler=None, remat: bool = False
    ):
        out_channels = channels[-1][1]
        self.attentions = nnx.List([attention(out) for _, out in channels] if attention else [])
        self.resnets = nnx.List([resnet(*pair) for pair in channels])
        self.upsamplers = nnx.List([upsampler(out_channels)] if upsampler else [])
        self.remat = remat

    def __call__(self, x, time, text, states):
        """Maps x f[B, H, W, in] to f[B, 2H, 2W, out].

        Each residual block takes, and removes, the last state of the list `states`.
        """
        for index, resnet in enumerate(self.resnets):
            # remat also recomputes the joined tensor, since its two parts are stored anyway.
            joined = functools.partial(_join, resnet)
            x = call(joined, x, states.pop(), time, remat=self.remat)
            if self.attentions:
                x = self.attentions[index](x, text)
        for upsampler in self.upsamplers:
            x = call(upsampler, x, time, remat=self.remat)
        return x


def _join(resnet, x, state, time):
    return resnet(jnp.concatenate([x, state], axis=-1), time)


def residual_downsampler(resnet):
    """Turns a function that makes residual blocks into one that makes residual blocks halving the resolution."""
    return lambda channels: resnet(channels, channels, resample=average_pool)


def residual_upsampler(resnet):
    """Turns a function that makes residual blocks into one that makes residual blocks doubling the resolution."""
    return lambda channels: resnet(channels, channels, resample=nearest_upsample)
