"""The latents of FLUX.2: those of its autoencoder, 2 x 2 packed into one position and normalised by its statistics.

Source: diffusers 0.42.1 pipelines/flux2/pipeline_flux2_klein.py and examples/dreambooth/train_dreambooth_lora_flux2.py.
"""

import dataclasses

import jax.numpy as jnp

from dreambooth_jax.families.image_space import decode_images
from dreambooth_jax.families.mode_latents import ModeLatents
from dreambooth_jax.models import vae_flux2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Flux2Latents(ModeLatents):
    """The packed latents f32[N, h, w, 4 C] of an AutoencoderKLFlux2; see ImageSpace and ModeLatents.

    Attributes:
      channels: 4 C, those of the packed latents.
      scale: side of an image divided by the side of its packed latents.
    """

    scaling_factor: float = 1.0  # the statistics take its place
    scale: int = 16

    def of_moments(self, encoder, moments):
        packed = vae_flux2.pack(jnp.asarray(moments[..., : self.channels // vae_flux2.PATCH**2]))
        return encoder.apply(encoder.params, packed, method='normalise')

    def decode(self, params, x, devices=1):
        latents = vae_flux2.unpack(self.vae.apply(params, x, method='denormalise'))
        return decode_images(self.vae.apply, params, latents, scale=self.scale // vae_flux2.PATCH, devices=devices)
