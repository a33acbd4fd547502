"""The autoencoder of FLUX.2, whose latents are packed and normalised by stored statistics instead of being scaled.

It is the autoencoder of vae.py with 32 channels. For the transformer, each 2 x 2 square of latents becomes one position
of 128 channels (`pack`), and every channel is normalised with the running mean and variance of a batch norm, which
training the autoencoder left behind (`normalise`). The statistics are parameters here, `bn.running_mean` and
`bn.running_var`, so that they are read, placed and written like all others; nothing trains an autoencoder.

Source: diffusers 0.42.1 models/autoencoders/autoencoder_kl_flux2.py; pipelines/flux2/pipeline_flux2_klein.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import configuration, vae

# Defaults in the constructor of diffusers' AutoencoderKLFlux2 for the keys that its autoencoder has in common with
# AutoencoderKL, and for those that are its own. The class has no scaling factor.
_COMMON: dict[str, Any] = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': 4 * ('DownEncoderBlock2D',),
    'up_block_types': 4 * ('UpDecoderBlock2D',),
    'block_out_channels': (128, 256, 512, 512),
    'layers_per_block': 2,
    'act_fn': 'silu',
    'latent_channels': 32,
    'norm_num_groups': 32,
    'sample_size': 1024,
    'use_quant_conv': True,
    'use_post_quant_conv': True,
    'mid_block_add_attention': True,
}
_OWN: dict[str, Any] = {
    'decoder_block_out_channels': None,
    'batch_norm_eps': 1e-4,
    'batch_norm_momentum': 0.1,  # of a training that is long over
    'patch_size': (2, 2),
}
DEFAULTS = {**_COMMON, **_OWN}
_UNUSED = ('force_upcast',)  # in the published file, but no argument of the class
PATCH = 2  # side of the square of latents that becomes one position


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the config.json of FLUX.2's autoencoder.

    Args:
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.

    Returns:
      All keys of DEFAULTS.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    configuration.check_known('vae', config, (*DEFAULTS, *_UNUSED), told=DEFAULTS)
    own = configuration.resolve('vae', config, _OWN, choices={}, fixed=('decoder_block_out_channels',))
    if tuple(own['patch_size']) != (PATCH, PATCH):
        raise configuration.wrong('vae', 'patch_size', own['patch_size'], f'{[PATCH, PATCH]}')
    full = vae.resolve(_common(config))
    return {key: full[key] for key in _COMMON} | own


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json of an AutoencoderKL with the same encoder and decoder."""
    return {key: config.get(key, default) for key, default in _COMMON.items()}


def size_divisor(config: Mapping[str, Any]) -> int:
    """Returns the side of an image divided by that of its packed latents: 16 for FLUX.2."""
    return PATCH * vae.size_divisor(_common(config))


def pack(latents):
    """Makes one position of each square of latents: f[B, h, w, C] -> f[B, h / 2, w / 2, 4 C].

    The channel 4 c + 2 row + column is channel c at this place of the square. h and w are even.
    """
    batch, height, width, channels = latents.shape
    squares = latents.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // PATCH, width // PATCH, -1)


def unpack(packed):
    """Undoes `pack`: f[B, h, w, 4 C] -> f[B, 2 h, 2 w, C]."""
    batch, height, width, channels = packed.shape
    squares = packed.reshape(batch, height, width, channels // PATCH**2, PATCH, PATCH)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(batch, PATCH * height, PATCH * width, -1)


class Statistics(nnx.Module):
    """The running mean and variance of a batch norm without learned scale, which start as 0 and 1."""

    def __init__(self, features: int):
        self.running_mean = nnx.Param(jnp.zeros(features, jnp.float32))
        self.running_var = nnx.Param(jnp.ones(features, jnp.float32))


class AutoencoderKLFlux2(vae.AutoencoderKL):
    """The autoencoder of FLUX.2: `encode` and `decode` as in AutoencoderKL, without scale or shift, and the statistics.

    Args:
      config: contents of a diffusers config.json; missing keys have diffusers' defaults.
      dtype: compute dtype; parameters are f32. float16 is replaced by float32, as in AutoencoderKL.
      rngs: source of the initial parameters.

    Raises:
      ValueError: one sentence, if the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype=jnp.float32, rngs: nnx.Rngs):
        c = resolve(config)
        super().__init__(_common(config), dtype=dtype, rngs=rngs)
        self.bn = Statistics(math.prod(c['patch_size']) * c['latent_channels'])
        self.epsilon = float(c['batch_norm_eps'])

    def normalise(self, packed):
        """Normalises packed latents f[..., 4 * latent_channels] for the transformer; returns f32 of the same shape."""
        return (packed.astype(jnp.float32) - self.bn.running_mean[...]) / self._deviation()

    def denormalise(self, normalised):
        """Undoes `normalise`."""
        return normalised.astype(jnp.float32) * self._deviation() + self.bn.running_mean[...]

    def _deviation(self):
        return jnp.sqrt(self.bn.running_var[...] + self.epsilon)
