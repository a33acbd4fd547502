"""The super-resolution stage, trained in the way in which it is used.

An example is a pair of a high-resolution and a low-resolution version of one image. The low-resolution image is
downsampled with antialiasing, enlarged to full size as the pipeline does it, and noised at a level s that is sampled
from the configured range. The network sees the noisy target and that conditioning side by side, and is told s, which is
independent of the denoising time t. For fine-tuning the range is lowered (paper, section 3.4: 1e-3 to
1e-5), because otherwise fine detail blurs.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dreambooth_jax.data import low_resolution
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.losses.denoising import DenoisingLoss


def noisy_low_image(
    low: jax.Array,
    size: int | tuple[int, int],
    noising_process: NoiseProcess,
    level: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Returns the low-resolution image as the super-resolution network is given it, f32[B, height, width, C].

    Args:
      low: f32[B, h, w, C] in [-1, 1], the low-resolution images.
      size: (height, width) of the high-resolution image, or the side of a square.
      noising_process: the schedule of the noise augmentation (the pipeline's image_noising_processr).
      level: i32[B], the time in that schedule. At 0 no noise is added, so the conditioning is the enlarged
        low-resolution image itself.
      keys: example keys [B].

    Source: diffusers IFSuperResolutionPipeline, except that there level 0 still adds the schedule's first, invisible
      noise.
    """
    upsampled = low_resolution.upsample(low, size)
    noise = noise_lib.sample_noise(keys, upsampled.shape[1:])
    noised = noising_process.add_noise(upsampled, noise, level)
    return jnp.where((level > 0)[:, None, None, None], noised, upsampled)


def crop_examples(images: jax.Array, side: int, multiple: int, keys: jax.Array) -> jax.Array:
    """Returns a random crop of every example, f32[B, side, side, C].

    Its corner is a multiple of `multiple`, so that it lies on the pixel grid of the low-resolution image.
    """

    def crop(image, key):
        cells = (jnp.array(image.shape[:2]) - side) // multiple
        corner = multiple * jax.random.randint(key, (2,), 0, cells + 1)
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, image.shape[-1]))

    return jax.vmap(crop)(images, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionLoss(DenoisingLoss):
    """The loss of a second stage, on pixels and on latents alike; see `stage.Stage`.

    `frozen` holds what it holds for DenoisingLoss, prepared for pairs.

    Attributes:
      noising_process: the noise process of the low-resolution image.
      factor: side of the high-resolution image / side of the low-resolution image.
      noise_level: (lowest, highest) augmentation level, both included, as times of `noising_process`.
      crop: train on random crops of this side in pixels (a multiple of `factor`), if the space allows crops in the
        step; None: on whole images.
    """

    noising_process: NoiseProcess
    factor: int
    noise_level: tuple[int, int]
    crop: int | None = None

    @classmethod
    def of(cls, pipeline, apply, **settings):
        return super().of(pipeline, apply, noising_process=pipeline.family.noising_process(pipeline), **settings)

    def _examples(self, frozen, batch, flip_keys, more_keys):
        level_keys, augment_keys, crop_keys, own_keys = more_keys
        high, masks, index = self.space.sample(frozen, batch, flip_keys, own_keys, flip=self.objective.random_flip)
        if self.crop is not None:
            high = crop_examples(high, self.crop, self.factor, crop_keys)
            masks = None if masks is None else crop_examples(masks, self.crop, self.factor, crop_keys)
        low, size = self.space.low_images(frozen, index, high, self.factor)
        lowest, highest = self.noise_level
        level = noise_lib.sample_timesteps(level_keys, lowest, highest + 1)
        noisy = noisy_low_image(low, size, self.noising_process, level, augment_keys)
        return high, masks, {'low_image': noisy, 'noise_level': level}
