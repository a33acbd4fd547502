"""The super-resolution stage, trained in the way in which it is used.

An example is a pair of a high-resolution and a low-resolution version of one image. The low-resolution image is
downsampled with antialiasing, enlarged to full size as the pipeline does it, and noised at a level s that is sampled
from the configured range. The network sees the noisy target and that conditioning side by side, with s as its class
label; s is independent of the denoising time t. For fine-tuning the range is lowered (paper, section 3.4: 1e-3 to
1e-5), because otherwise fine detail blurs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreambooth_jax.data import low_resolution
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.stages.distillation import Distillation
from dreambooth_jax.stages.pixel import (
    Objective,
    denoise_examples,
    gather_images,
    gather_masks,
    gather_prompts,
    read_prompts,
    streams,
)


def conditioning(
    low: jax.Array,
    size: int | tuple[int, int],
    noising_schedule: schedules.Schedule,
    level: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Returns the image that the super-resolution network is given, f32[B, height, width, C].

    Args:
      low: f32[B, h, w, C] in [-1, 1], the low-resolution images.
      size: (height, width) of the high-resolution image, or the side of a square.
      noising_schedule: the schedule of the noise augmentation (the pipeline's image_noising_scheduler).
      level: i32[B], the time in that schedule. At 0 no noise is added, so the conditioning is the enlarged
        low-resolution image itself.
      keys: example keys [B].
    Source: diffusers IFSuperResolutionPipeline, except that there level 0 still adds the schedule's first, invisible
      noise.
    """
    upsampled = low_resolution.upsample(low, size)
    noise = noise_lib.sample_noise(keys, upsampled.shape[1:])
    noised = noising_schedule.add_noise(upsampled, noise, level)
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
class SuperResolutionStage:
    """The second stage of a pixel cascade; see `stage.Stage`.

    `frozen` holds what it holds for PixelStage; its images are the high-resolution ones.

    Attributes:
      unet: (params, concat(x_t, conditioning), t, class_labels=level, **text) -> prediction.
      schedule, noising_schedule: the schedule of the target and that of the conditioning.
      factor: side of the high-resolution image / side of the low-resolution image.
      noise_level: (lowest, highest) augmentation level, both included, as times of `noising_schedule`.
      crop: train on random crops of this side (a multiple of `factor`); None: on whole images.
      encode, objective, teacher: as in PixelStage.
    """

    unet: Callable
    schedule: schedules.Schedule
    noising_schedule: schedules.Schedule
    factor: int
    noise_level: tuple[int, int]
    crop: int | None = None
    encode: Callable | None = None
    objective: Objective = Objective()
    teacher: Distillation | None = None

    def loss(self, params, frozen, batch, keys):
        time_keys, noise_keys, flip_keys, drop_keys, level_keys, augment_keys, crop_keys = streams(keys, 7)
        high = gather_images(frozen, batch, flip_keys, self.objective.random_flip)
        masks = gather_masks(frozen, batch, flip_keys, self.objective.random_flip)
        if self.crop is not None:
            high = crop_examples(high, self.crop, self.factor, crop_keys)
            masks = None if masks is None else crop_examples(masks, self.crop, self.factor, crop_keys)
        low = low_resolution.downsample(high, self.factor)
        lowest, highest = self.noise_level
        level = noise_lib.sample_timesteps(level_keys, lowest, highest + 1)
        condition = conditioning(low, high.shape[1:3], self.noising_schedule, level, augment_keys)
        prompt = gather_prompts(frozen, batch, drop_keys, self.objective.prompt_dropout)
        text = read_prompts(params, frozen, prompt, self.encode)

        def network(x_t, t):
            return self.unet(params['unet'], jnp.concatenate([x_t, condition], axis=-1), t, class_labels=level, **text)

        lesson = self.teacher and self.teacher.lesson(frozen, batch, prompt, beside=condition, class_labels=level)
        return denoise_examples(network, high, self.schedule, self.objective, time_keys, noise_keys, masks, lesson)
