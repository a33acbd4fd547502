"""The latents of a VAE whose images are encoded to the mode of their posterior, as flow models are fine-tuned.

Source: diffusers' examples/dreambooth/train_dreambooth_lora_z_image.py and train_dreambooth_lora_flux2.py, which take
the mode of the posterior and no sample of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.data.table import shrink_masks
from dreambooth_jax.families.image_space import LatentSpace, encode_images, with_mirrored
from dreambooth_jax.models import vae
from dreambooth_jax.weights.pipeline import Network, in_float32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModeLatents(LatentSpace):
    """The modes of the posteriors of a VAE; see ImageSpace.

    `prepare` keeps latents f32[N or 2 N, h, w, C] and, if images have masks, masks uint8[N or 2 N, h, w, 1]. They are
    not random.
    """

    def of_moments(self, encoder: Network, moments: np.ndarray) -> jax.Array:
        """Returns the latents f32[N, h, w, C] of moments f32[N, h', w', 2C'] that `encoder`, the VAE, has made."""
        return vae.latent_mode(moments, self.scaling_factor, self.shift_factor)

    def prepare(self, images, masks, *, flip=False, pairs=False):
        mirrored = with_mirrored if flip else lambda images: images
        encoder = in_float32('vae', self.vae)
        moments = encode_images(encoder.apply, encoder.params, mirrored(images))
        data = {'latents': np.asarray(self.of_moments(encoder, moments))}
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
