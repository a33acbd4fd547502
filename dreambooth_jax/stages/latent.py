"""Stages on the latents of a VAE: Stable Diffusion's base stage, and its x4 upscaler as the super-resolution stage.

The VAE never trains, so every image is encoded once, to the moments of its posterior, and each step samples a fresh
latent from them. Crops are images of their own (data.crops). So are mirrored images, because the VAE's encoding of a
mirrored image is not the mirrored encoding of the image; they follow the unmirrored ones (`with_mirrored`). Noise,
target and weights are those of the pixel stages (pixel.py), applied to latents.

The upscaler has other inputs than pixel super-resolution (super_resolution.py): its low-resolution image has the size
of its latents and needs no enlarging, and its noise level is an index into a table.

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
    """Returns the moments of all images, f32[N, h, w, 2 * channels] on the host.

    Args:
      apply, params: of an AutoencoderKL.
      images: uint8[N, H, W, 3].
      batch_size: how many images are encoded at once.
    """

    @jax.jit
    def encode(params, pixels):
        return apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0, method='encode')

    params = jax.device_put(params)
    encoded = []
    with tqdm(total=len(images), unit='image', desc='encoding', dynamic_ncols=True, disable=len(images) <= 8) as bar:
        for first in range(0, len(images), batch_size):
            # The last batch repeats the last image, so that one shape is compiled.
            indices = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
            encoded.append(np.asarray(encode(params, images[indices])))
            bar.update(min(batch_size, len(images) - first))
    return np.concatenate(encoded)[: len(images)]


def low_images(images: np.ndarray, factor: int) -> np.ndarray:
    """Returns the low-resolution images that the upscaler is given, f32[N, H / factor, W / factor, 3] in [-1, 1].

    Args:
      images: uint8[N, H, W, 3].
      factor: side of an image / side of its low-resolution image.
    """
    return np.asarray(low_resolution.downsample(jnp.asarray(images, jnp.float32) / 127.5 - 1.0, factor))


def with_mirrored(examples: np.ndarray) -> np.ndarray:
    """Appends the mirrored examples: [N, H, W, C] -> [2 N, H, W, C]."""
    return np.concatenate([examples, examples[:, :, ::-1]])


def variant(batch: Mapping[str, jax.Array], count: int, keys: jax.Array, flip: bool) -> jax.Array:
    """Returns the index i32[B] of each example's image among `count` images.

    With `flip`, half of the examples get the index of the mirrored image instead, which is `count` higher.
    """
    if not flip:
        return batch['image']
    return batch['image'] + count * jax.vmap(jax.random.bernoulli)(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStage:
    """Stable Diffusion's base stage; see `stage.Stage`.

    `frozen` holds: moments f32[N or 2 N, h, w, 2C] of `encode_images`; prompt_of and `text` or `tokens` as for
    PixelStage; and, if images have masks, masks uint8[N or 2 N, h, w, 1] (data/table.shrink_masks).

    Attributes:
      scaling_factor: of the VAE; latents are multiplied by it before the UNet sees them.
      unet, schedule, encode, objective, teacher: as in PixelStage.
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

    `frozen` holds what it holds for LatentStage, and low f32[N or 2 N, h, w, 3] of `low_images`.

    Attributes:
      noising_schedule: the schedule of the noise that is added to the low-resolution image.
      noise_level: (lowest, highest) time of that noise, both included.
      unet, schedule, scaling_factor, encode, objective, teacher: as in LatentStage.
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
    """Returns how much each latent of the examples counts, f32[B, h, w, 1] in [0, 1].

    None means that all count alike.
    """
    return frozen['masks'][index].astype(jnp.float32) / 255.0 if 'masks' in frozen else None


def sample_latents(moments: jax.Array, keys: jax.Array, scaling_factor: float) -> jax.Array:
    """Samples a latent from every example's posterior, f32[B, h, w, C], scaled as the UNet sees it.

    Args:
      moments: f32[B, h, w, 2C], mean and log-variance.
      keys: example keys [B].
      scaling_factor: as in LatentStage.
    """
    *shape, channels = moments.shape[1:]
    noise = noise_lib.sample_noise(keys, (*shape, channels // 2))
    return vae.sample_latents(moments, noise, scaling_factor)
