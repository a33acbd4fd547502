"""The latents of FLUX.2: those of its autoencoder, 2 x 2 packed into one position and normalised by its statistics.

Source: diffusers 0.42.1 pipelines/flux2/pipeline_flux2_klein.py and examples/dreambooth/train_dreambooth_lora_flux2.py,
which take the mode of the posterior and no sample of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.data.table import shrink_masks
from dreambooth_jax.families.image_space import LatentSpace, decode_images, encode_images, with_mirrored
from dreambooth_jax.models import vae_flux2
from dreambooth_jax.weights.pipeline import in_float32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Flux2Latents(LatentSpace):
    """The packed latents of an AutoencoderKLFlux2; see ImageSpace.

    `prepare` keeps latents f32[N or 2 N, h, w, 4 C] and, if images have masks, masks uint8[N or 2 N, h, w, 1]. They are
    not random, since the mode of each posterior is taken.

    Attributes:
      channels: 4 C, those of the packed latents.
      scale: side of an image divided by the side of its packed latents.
    """

    scaling_factor: float = 1.0  # the statistics take its place
    scale: int = 16

    def prepare(self, images, masks, *, flip=False, pairs=False):
        mirrored = with_mirrored if flip else lambda images: images
        encoder = in_float32('vae', self.vae)
        moments = encode_images(encoder.apply, encoder.params, mirrored(images))
        packed = vae_flux2.pack(jnp.asarray(moments[..., : self.channels // vae_flux2.PATCH**2]))
        data = {'latents': np.asarray(encoder.apply(encoder.params, packed, method='normalise'))}
        if masks is not None:
            data['masks'] = mirrored(shrink_masks(masks, self.scale))
        return data

    def prepared_shapes(self, images, masks, *, flip=False, pairs=False):
        count, height, width, _ = images.shape
        shape = ((1 + flip) * count, height // self.scale, width // self.scale)
        data = {'latents': jax.ShapeDtypeStruct((*shape, self.channels), jnp.float32)}
        if masks is not None:
            data['masks'] = jax.ShapeDtypeStruct((*shape, 1), np.uint8)
        return data

    def latents(self, frozen, index, keys):
        return frozen['latents'][index]

    def decode(self, params, x, devices=1):
        latents = vae_flux2.unpack(self.vae.apply(params, x, method='denormalise'))
        return decode_images(self.vae.apply, params, latents, scale=self.scale // vae_flux2.PATCH, devices=devices)
