"""The loss of a variational autoencoder, which pretraining learns before the denoiser of its latents.

The decoded image is compared with the image itself, in its values and in its differences between neighbours: values
alone would leave thin lines and small textures blurred, since they are a small part of an image. The posterior is held
near the standard normal distribution only as far as latents need a scale. Pixels lie in [-1, 1], channels last.

Source: Rombach et al. 2022, section 3.1 (the reconstruction and the weak Kullback-Leibler term); Mathieu et al. 2016
(differences of neighbours). There is no discriminator and no perceptual loss.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion.noise import sample_noise
from dreambooth_jax.losses.denoising import streams
from dreambooth_jax.losses.super_resolution import crop_examples
from dreambooth_jax.models import vae


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """The loss of an AutoencoderKL; see `stage.Stage`. `frozen` holds images uint8[N, H, W, 3].

    Attributes:
      component: the name of the autoencoder among the parameters.
      apply: its pure function, with the methods 'encode' and 'decode'.
      kl_weight: weight of the Kullback-Leibler divergence from the standard normal distribution, a mean over latents.
      edge_weight: weight of the differences between neighbouring pixels.
      crop: side in pixels of the random crops that are trained on; None: whole images.
    """

    component: str
    apply: Callable
    kl_weight: float
    edge_weight: float
    crop: int | None = None

    def loss(self, params, frozen, batch, keys):
        """Returns the loss f32[B] and its parts 'reconstruction', 'edges' and 'kl', each f32[B]."""
        crop_keys, noise_keys = streams(keys, 2)
        images = frozen['images'][batch['image']].astype(jnp.float32) / 127.5 - 1.0
        if self.crop is not None:
            images = crop_examples(images, self.crop, 1, crop_keys)
        params = params[self.component]
        moments = self.apply(params, images, method='encode')
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        latents = vae.sample_latents(moments, sample_noise(noise_keys, mean.shape[1:]), 1.0)
        error = self.apply(params, latents, method='decode') - images
        log_variance = jnp.clip(log_variance, *vae.LOG_VARIANCE_RANGE)
        parts = {
            'reconstruction': _mean(jnp.abs(error)),
            'edges': sum(_mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2)),
            'kl': 0.5 * _mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance),
        }
        return parts['reconstruction'] + self.edge_weight * parts['edges'] + self.kl_weight * parts['kl'], parts


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=(1, 2, 3))
