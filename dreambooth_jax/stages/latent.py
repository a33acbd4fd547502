"""Stages on the latents of a VAE: Stable Diffusion's base stage, and its x4 upscaler as the super-resolution stage.

The VAE never trains, so every image is encoded once, to the moments of its posterior; a step samples a fresh latent
from them. Crops are examples of their own (data.crops), and so are mirrored images: the VAE of a mirrored image is not
the mirrored VAE of the image; they stand behind the others (`with_mirrored`). Noise, target and weights are those
of pixel stages (pixel.py), on latents.

The upscaler differs from pixel super-resolution (super_resolution.py) in what it is given: its low image is as wide
as its latents and needs no enlarging, and its noise level is an index of a table.
Sources: Rombach et al. 2022, section 3.1; diffusers StableDiffusionPipeline, StableDiffusionUpscalePipeline.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dreambooth_jax.data import low_resolution
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.models import vae
from dreambooth_jax.stages.distillation import Distillation
from dreambooth_jax.stages.pixel import Objective, denoise_examples, gather_prompts, read_prompts, streams
from dreambooth_jax.stages.super_resolution import conditioning


def encode_images(apply: Callable, params: Mapping[str, Any], images: np.ndarray, *, batch_size: int = 4) -> np.ndarray:
    """Moments of all images, once and for all.

    Args:
      apply, params: of an AutoencoderKL.
      images: uint8[N, H, W, 3].
      batch_size: images at once.
    Returns: f32[N, h, w, 2 * channels] on the host.
    """

    @jax.jit
    def encode(params, pixels):
        return apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0, method='encode')

    params = jax.device_put(params)
    encoded = []
    with tqdm(total=len(images), unit='image', desc='encoding', dynamic_ncols=True, disable=len(images) <= 8) as bar:
        for first in range(0, len(images), batch_size):
            examples = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
            encoded.append(np.asarray(encode(params, images[examples])))
            bar.update(min(batch_size, len(images) - first))
    return np.concatenate(encoded)[: len(images)]


def low_images(images: np.ndarray, factor: int) -> np.ndarray:
    """What the upscaler is given of each image uint8[N, H, W, 3]: f32[N, H / factor, W / factor, 3] in [-1, 1]."""
    return np.asarray(low_resolution.downsample(jnp.asarray(images, jnp.float32) / 127.5 - 1.0, factor))


def with_mirrored(examples: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [2 N, H, W, C], the mirrored ones behind."""
    return np.concatenate([examples, examples[:, :, ::-1]])


def variant(batch: Mapping[str, jax.Array], count: int, keys: jax.Array, flip: bool) -> jax.Array:
    """i32[B], the examples' places among `count` images, or with `flip` for half of the examples that of the mirrored
    one."""
    if not flip:
        return batch['image']
    return batch['image'] + count * jax.vmap(jax.random.bernoulli)(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStage:
    """Stable Diffusion's base stage; see `stage.Stage`.

    Attributes:
      scaling_factor: of the VAE: latents are multiplied by it before the UNet sees them.
      unet, schedule, encode, objective, teacher: as in PixelStage.
    `frozen` holds moments f32[N or 2 N, h, w, 2C] of `encode_images`; prompt_of, `text` or `tokens` as PixelStage's;
    and, where images have them, masks uint8[N or 2 N, h, w, 1] (data/table.shrink_masks).
    """

    unet: Callable
    schedule: schedules.Schedule
    scaling_factor: float
    encode: Callable | None = None
    objective: Objective = Objective()
    teacher: Distillation | None = None

    def loss(self, params, frozen, batch, keys):
        time_keys, noise_keys, flip_keys, drop_keys, posterior_keys = streams(keys, 5)
        count = len(frozen['prompt_of'])
        index = variant(batch, count, flip_keys, self.objective.random_flip)
        latents = sample_latents(frozen['moments'][index], posterior_keys, self.scaling_factor)
        prompt = gather_prompts(frozen, batch, drop_keys, self.objective.prompt_dropout)
        text = read_prompts(params, frozen, prompt, self.encode)
        network = lambda x_t, t: self.unet(params['unet'], x_t, t, **text)  # noqa: E731
        masks = masks_of(frozen, index)
        lesson = self.teacher and self.teacher.lesson(frozen, batch, prompt)
        return denoise_examples(network, latents, self.schedule, self.objective, time_keys, noise_keys, masks, lesson)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSuperResolutionStage:
    """The x4 upscaler; see `stage.Stage`.

    Attributes:
      noising_schedule: of the low image's noise. noise_level: (lowest, highest) time of it, both included.
      others: as in LatentStage.
    `frozen` holds what LatentStage's does, and low f32[N or 2 N, h, w, 3] of `low_images`.
    """

    unet: Callable
    schedule: schedules.Schedule
    noising_schedule: schedules.Schedule
    scaling_factor: float
    noise_level: tuple[int, int]
    encode: Callable | None = None
    objective: Objective = Objective()
    teacher: Distillation | None = None

    def loss(self, params, frozen, batch, keys):
        time_keys, noise_keys, flip_keys, drop_keys, posterior_keys, level_keys, augment_keys = streams(keys, 7)
        count = len(frozen['prompt_of'])
        index = variant(batch, count, flip_keys, self.objective.random_flip)
        latents = sample_latents(frozen['moments'][index], posterior_keys, self.scaling_factor)
        lowest, highest = self.noise_level
        level = noise_lib.sample_timesteps(level_keys, lowest, highest + 1)
        low = frozen['low'][index]
        condition = conditioning(low, low.shape[1:3], self.noising_schedule, level, augment_keys)
        prompt = gather_prompts(frozen, batch, drop_keys, self.objective.prompt_dropout)
        text = read_prompts(params, frozen, prompt, self.encode)

        def network(x_t, t):
            return self.unet(params['unet'], jnp.concatenate([x_t, condition], axis=-1), t, class_labels=level, **text)

        masks = masks_of(frozen, index)
        lesson = self.teacher and self.teacher.lesson(frozen, batch, prompt, beside=condition, class_labels=level)
        return denoise_examples(network, latents, self.schedule, self.objective, time_keys, noise_keys, masks, lesson)


def masks_of(frozen: Mapping[str, Any], index: jax.Array) -> jax.Array | None:
    """How much each latent of the examples counts, f32[B, h, w, 1] in [0, 1]; None: all alike."""
    return frozen['masks'][index].astype(jnp.float32) / 255.0 if 'masks' in frozen else None


def sample_latents(moments: jax.Array, keys: jax.Array, scaling_factor: float) -> jax.Array:
    """A fresh latent of every example's posterior, f32[B, h, w, C], as the UNet sees it.

    Args:
      moments: f32[B, h, w, 2C], mean and log-variance. keys: example keys [B].
    """
    *shape, channels = moments.shape[1:]
    noise = noise_lib.sample_noise(keys, (*shape, channels // 2))
    return vae.sample_latents(moments, noise, scaling_factor)
