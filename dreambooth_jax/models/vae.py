"""The autoencoder of latent diffusion, which maps images to the distribution of their latents, and latents to images.

The latents that a denoiser takes and predicts are scaled, and those of the autoencoders with 16 channels (Stable
Diffusion 3, FLUX.1, Z-Image) are shifted before. `sample_latents` and `latent_mode` subtract shift_factor(config) and
multiply by scaling_factor(config). Whoever decodes must undo this first, as in diffusers, because `decode` takes
unscaled latents. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/autoencoders/autoencoder_kl.py, vae.py; Rombach et al. 2022.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration
from dreambooth_jax.models.attention import attend
from dreambooth_jax.models.layers import GroupNorm, convolution, nearest_upsample
from dreambooth_jax.models.unet_blocks import ResnetBlock2D

# Defaults in the constructor of diffusers' AutoencoderKL.
DEFAULTS: dict[str, Any] = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ('DownEncoderBlock2D',),
    'up_block_types': ('UpDecoderBlock2D',),
    'block_out_channels': (64,),
    'layers_per_block': 1,
    'act_fn': 'silu',
    'latent_channels': 4,
    'norm_num_groups': 32,
    'sample_size': None,  # used only by diffusers' tiling
    'scaling_factor': 0.18215,
    'shift_factor': None,
    'latents_mean': None,
    'latents_std': None,
    'force_upcast': True,
    'use_quant_conv': True,
    'use_post_quant_conv': True,
    'mid_block_add_attention': True,
}
CHOICES = {'act_fn': ('gelu', 'mish', 'relu', 'silu', 'swish')}
FIXED = ('latents_mean', 'latents_std')
BLOCK_TYPES = {'down_block_types': 'DownEncoderBlock2D', 'up_block_types': 'UpDecoderBlock2D'}
EPSILON = 1e-6  # of all norms; no configuration sets it
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes an autoencoder's config.json.

    Args:
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.

    Returns:
      All keys of DEFAULTS.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    configuration.check_known('vae', config, DEFAULTS)
    full = configuration.resolve('vae', config, DEFAULTS, choices=CHOICES, fixed=FIXED)
    wrong = functools.partial(configuration.wrong, 'vae')
    shift = full['shift_factor']
    if shift is not None and (
        isinstance(shift, bool) or not isinstance(shift, int | float) or not math.isfinite(shift)
    ):
        raise wrong('shift_factor', shift, 'a number or None')
    for key in ('block_out_channels', *BLOCK_TYPES):
        if not isinstance(full[key], list | tuple) or not full[key]:
            raise wrong(key, full[key], 'a list with one entry per block')
    widths, groups = full['block_out_channels'], full['norm_num_groups']
    for index, width in enumerate(widths):
        if not configuration.is_positive(width, int) or width % groups:
            allowed = f'a positive multiple of norm_num_groups, which is {groups}'
            raise wrong(f'block_out_channels[{index}]', width, allowed)
    for key, implemented in BLOCK_TYPES.items():
        for index, name in enumerate(full[key]):
            if name != implemented:
                raise wrong(f'{key}[{index}]', name, f'{implemented!r}: no other block is implemented')
        if len(full[key]) != len(widths):
            raise wrong(key, full[key], f'a list of {len(widths)} entries, one per entry of block_out_channels')
    return full


def scaling_factor(config: Mapping[str, Any]) -> float:
    """Returns the factor by which an autoencoder's latents are multiplied for the UNet, from its config.json.

    It is 0.18215 if the file does not say it (Stable Diffusion 1.x and 2.x), 0.13025 for XL and 0.08333 for the x4
    upscaler.
    """
    return float(resolve(config)['scaling_factor'])


def shift_factor(config: Mapping[str, Any]) -> float:
    """Returns what is subtracted from an autoencoder's latents before they are scaled, from its config.json.

    It is 0 if the file does not say it, 0.0609 for Stable Diffusion 3 and 0.1159 for FLUX.1 and Z-Image.
    """
    return float(resolve(config)['shift_factor'] or 0.0)


def size_divisor(config: Mapping[str, Any]) -> int:
    """Returns the side of an image divided by that of its latents: 8 for Stable Diffusion, 4 for the x4 upscaler."""
    return 2 ** (len(resolve(config)['block_out_channels']) - 1)


def sample_latents(moments, noise, scaling_factor: float, shift_factor: float = 0.0):
    """Samples from the distribution of an image's latents and scales the sample for the denoiser.

    Args:
      moments: f[..., 2 * latent_channels] from `encode`, the mean and then the log-variance, which is clipped to
        LOG_VARIANCE_RANGE.
      noise: f[..., latent_channels], standard normal.
      scaling_factor: the result of scaling_factor(config).
      shift_factor: the result of shift_factor(config).

    Returns:
      f32[..., latent_channels].
    """
    mean, log_variance = jnp.split(jnp.asarray(moments, jnp.float32), 2, axis=-1)
    deviation = jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE_RANGE))
    return (mean + deviation * jnp.asarray(noise, jnp.float32) - shift_factor) * scaling_factor


def latent_mode(moments, scaling_factor: float, shift_factor: float = 0.0):
    """Returns the most likely latents of an image, scaled for the denoiser; for the rest see `sample_latents`."""
    mean, _ = jnp.split(jnp.asarray(moments, jnp.float32), 2, axis=-1)
    return (mean - shift_factor) * scaling_factor


def decode_in_tiles(decode: Callable[[jax.Array], jax.Array], latents, *, scale: int, tile: int):
    """Decodes large images in overlapping tiles, one after the other, so that memory does not grow with the image.

    Neighbouring tiles overlap by at least a quarter. There the weight of one falls linearly while that of the other
    rises, as with enable_tiling in diffusers. The result is close to that of `decode`, but not equal: attention and the
    statistics of norms are those of a tile. Images of one tile are decoded as they are.

    Args:
      decode: function from f[B, h, w, C] to f32[B, h * scale, w * scale, 3], for sides of at most `tile`.
      latents: f[B, h, w, C].
      scale: see size_divisor.
      tile: largest side of a tile, in latents.

    Returns:
      f32[B, h * scale, w * scale, 3].
    """
    batch, height, width, channels = latents.shape
    if max(height, width) <= tile:
        return decode(latents)
    (tops, of_rows), (lefts, of_columns) = (_tiles(side, tile, scale) for side in (height, width))
    size = (batch, min(tile, height), min(tile, width), channels)

    def add(image, place):
        row, column = place
        top, left = jnp.array(tops)[row], jnp.array(lefts)[column]
        part = decode(jax.lax.dynamic_slice(latents, (0, top, left, 0), size))
        part = part * jnp.array(of_rows)[row][:, None, None] * jnp.array(of_columns)[column][:, None]
        start = (0, top * scale, left * scale, 0)
        return jax.lax.dynamic_update_slice(image, jax.lax.dynamic_slice(image, start, part.shape) + part, start), None

    places = np.stack(np.meshgrid(np.arange(len(tops)), np.arange(len(lefts)), indexing='ij'), -1).reshape(-1, 2)
    image = jax.eval_shape(decode, jax.ShapeDtypeStruct(size, latents.dtype))
    empty = jnp.zeros((batch, height * scale, width * scale, image.shape[-1]), image.dtype)
    return jax.lax.scan(add, empty, jnp.array(places))[0]


def _tiles(side: int, tile: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a side into equal tiles; returns their first latents i32[N] and the weights f32[N, pixels of a tile]."""
    size = min(side, tile)
    count = 1 + math.ceil((side - size) / (0.75 * size))
    starts = np.round(np.linspace(0, side - size, count)).astype(np.int32)
    weights = np.zeros((count, side * scale))
    for index, start in enumerate(starts):
        ramp = np.ones(size * scale)
        if index:
            shared = (starts[index - 1] + size - start) * scale
            ramp[:shared] *= np.arange(shared) / shared
        if index < count - 1:
            shared = (start + size - starts[index + 1]) * scale
            ramp[-shared:] *= 1 - np.arange(shared) / shared
        weights[index, start * scale : (start + size) * scale] = ramp
    weights /= weights.sum(axis=0)  # 1 already, except where three tiles meet
    cut = [row[start * scale : (start + size) * scale] for row, start in zip(weights, starts, strict=True)]
    return starts, np.stack(cut).astype(np.float32)


class PixelAttention(nnx.Module):
    """Residual attention of every position of a feature map to all positions, with a single head of all channels.

    Its logits f32[B, H * W, H * W] would take 64 MiB for an image of 512 x 512 px and 1 GiB for one of 1024 x 1024, so
    attention.attend computes them in parts.
    """

    def __init__(self, channels: int, *, groups: int, made):
        def dense():
            return nnx.Linear(channels, channels, **made)

        self.group_norm = GroupNorm(channels, groups, EPSILON, **made)
        self.to_q = dense()
        self.to_k = dense()
        self.to_v = dense()
        self.to_out = nnx.List([dense()])

    def __call__(self, x):
        """Maps f[B, H, W, channels] to the same shape."""
        pixels = self.group_norm(x.reshape(x.shape[0], -1, x.shape[-1]))
        query, key, value = (dense(pixels)[:, :, None, :] for dense in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](attend(query, key, value, scale=x.shape[-1] ** -0.5).reshape(x.shape))


class Downsample(nnx.Module):
    """Halves the resolution by a convolution: f[B, H, W, C] -> f[B, H/2, W/2, C]."""

    def __init__(self, channels: int, *, made):
        # Padding is only at the end, as in diffusers' encoder; its UNets pad both sides.
        self.conv = nnx.Conv(channels, channels, (3, 3), 2, padding=((0, 1), (0, 1)), **made)

    def __call__(self, x):
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the resolution by repeating pixels, then convolves: f[B, H, W, C] -> f[B, 2H, 2W, C]."""

    def __init__(self, channels: int, *, made):
        self.conv = convolution(channels, channels, **made)

    def __call__(self, x):
        return self.conv(nearest_upsample(x))


class Block(nnx.Module):
    """Residual blocks at one resolution and then a resampler: DownEncoderBlock2D and UpDecoderBlock2D of diffusers.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      layers: number of residual blocks.
      resnet: function (in, out) -> residual block.
      downsampler: function channels -> layer that halves the resolution, or None.
      upsampler: function channels -> layer that doubles the resolution, or None.
    """

    def __init__(self, in_channels: int, out_channels: int, layers: int, *, resnet, downsampler=None, upsampler=None):
        inputs = [in_channels] + (layers - 1) * [out_channels]
        self.resnets = nnx.List([resnet(width, out_channels) for width in inputs])
        self.downsamplers = nnx.List([downsampler(out_channels)] if downsampler else [])
        self.upsamplers = nnx.List([upsampler(out_channels)] if upsampler else [])

    def __call__(self, x):
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    """Residual block, attention (or none) and residual block at the lowest resolution."""

    def __init__(self, channels: int, *, resnet, attention=None):
        self.attentions = nnx.List([attention(channels)] if attention else [])
        self.resnets = nnx.List([resnet(channels, channels) for _ in range(2)])

    def __call__(self, x):
        first, second = self.resnets
        for layer in (first, *self.attentions, second):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Maps f[B, H, W, in_channels] to f[B, h, w, 2 * latent_channels]; `c` is the resolved configuration."""

    def __init__(self, c: Mapping[str, Any], made):
        widths, groups = c['block_out_channels'], c['norm_num_groups']
        resnet, attention = _layers(c, made)
        downsampler = functools.partial(Downsample, made=made)
        self.conv_in = convolution(c['in_channels'], widths[0], **made)
        self.down_blocks = nnx.List(
            [
                Block(
                    widths[max(level - 1, 0)],
                    width,
                    c['layers_per_block'],
                    resnet=resnet,
                    downsampler=downsampler if level < len(widths) - 1 else None,
                )
                for level, width in enumerate(widths)
            ]
        )
        self.mid_block = MidBlock(widths[-1], resnet=resnet, attention=attention)
        self.conv_norm_out = GroupNorm(widths[-1], groups, EPSILON, **made)
        self.conv_out = convolution(widths[-1], 2 * c['latent_channels'], **made)

    def __call__(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        # The activation here is always SiLU, whatever act_fn says.
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Maps f[B, h, w, latent_channels] to f[B, H, W, out_channels]; `c` is the resolved configuration."""

    def __init__(self, c: Mapping[str, Any], made):
        widths, groups = c['block_out_channels'][::-1], c['norm_num_groups']
        resnet, attention = _layers(c, made)
        upsampler = functools.partial(Upsample, made=made)
        self.conv_in = convolution(c['latent_channels'], widths[0], **made)
        self.mid_block = MidBlock(widths[0], resnet=resnet, attention=attention)
        self.up_blocks = nnx.List(
            [
                Block(
                    widths[max(index - 1, 0)],
                    width,
                    c['layers_per_block'] + 1,
                    resnet=resnet,
                    upsampler=upsampler if index < len(widths) - 1 else None,
                )
                for index, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, EPSILON, **made)
        self.conv_out = convolution(widths[-1], c['out_channels'], **made)

    def __call__(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def _layers(c, made):
    """Returns ((in, out) -> residual block, channels -> attention block, or None) for a resolved configuration."""
    groups = c['norm_num_groups']
    resnet = functools.partial(
        ResnetBlock2D, time_features=None, groups=groups, epsilon=EPSILON, activation=c['act_fn'], **made
    )
    attention = functools.partial(PixelAttention, groups=groups, made=made)
    return resnet, attention if c['mid_block_add_attention'] else None


class AutoencoderKL(nnx.Module):
    """Variational autoencoder with the two functions `encode` and `decode`; see `method` in functional.split.

    Args:
      config: contents of a diffusers config.json; missing keys have diffusers' defaults.
      dtype: compute dtype; parameters are f32. With force_upcast, which is diffusers' default, float16 is replaced by
        float32, because activations overflow in float16. bfloat16 has the range of float32 and is kept.
      rngs: source of the initial parameters.

    Raises:
      ValueError: one sentence, if the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs):
        c = resolve(config)
        if c['force_upcast'] and jnp.dtype(dtype) == jnp.float16:
            dtype = jnp.float32
        made = {'dtype': dtype, 'rngs': rngs}
        latent = c['latent_channels']
        self.encoder = Encoder(c, made)
        self.decoder = Decoder(c, made)
        self.quant_conv = convolution(2 * latent, 2 * latent, 1, **made) if c['use_quant_conv'] else None
        self.post_quant_conv = convolution(latent, latent, 1, **made) if c['use_post_quant_conv'] else None
        self.dtype = dtype
        self.in_channels, self.latent_channels = c['in_channels'], latent
        self.size_divisor = size_divisor(config)

    def encode(self, pixels):
        """Encodes images to the distributions of their latents.

        Args:
          pixels: f[B, H, W, in_channels] in [-1, 1]; H and W are multiples of `size_divisor`.

        Returns:
          f32[B, H / size_divisor, W / size_divisor, 2 * latent_channels], the mean and then the log-variance, which is
          not clipped. sample_latents and latent_mode compute latents from it.

        Raises:
          ValueError: if the shape is wrong.
        """
        self._check('pixels', pixels, self.in_channels, self.size_divisor)
        moments = self.encoder(pixels.astype(self.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return moments.astype(jnp.float32)

    def decode(self, latents):
        """Decodes latents to images.

        Args:
          latents: f[B, h, w, latent_channels], unscaled: what a denoiser predicts, divided by scaling_factor(config),
            plus shift_factor(config).

        Returns:
          f32[B, h * size_divisor, w * size_divisor, out_channels], about in [-1, 1] but not clipped.

        Raises:
          ValueError: if the shape is wrong.
        """
        self._check('latents', latents, self.latent_channels, 1)
        latents = latents.astype(self.dtype)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def _check(self, noun, x, channels, divisor):
        if x.ndim != 4 or x.shape[-1] != channels or any(side % divisor for side in x.shape[1:3]):
            multiples = f' with H and W multiples of {divisor}' if divisor > 1 else ''
            raise ValueError(f'vae: {noun} have shape {x.shape} but must be [B, H, W, {channels}]{multiples}')
