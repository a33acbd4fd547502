"""The compiled sampler of one stage: a denoiser with classifier-free guidance.

An image depends only on the weights, the prompt, the seed and its image number: every example has its own key, so the
batch size and the other examples do not matter.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import guidance, samplers
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.families.prompts import Conditioning, take
from dreambooth_jax.losses.super_resolution import noisy_low_image
from dreambooth_jax.weights.pipeline import Pipeline


def image_keys(seed: int, numbers) -> jax.Array:
    """Returns the PRNG keys [B] that belong to a seed and the image numbers i[B]."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(numbers))


def make_sampler(
    predict: Callable,
    schedule: NoiseProcess,
    *,
    shape: tuple[int, int, int],
    steps: int,
    guided: bool,
    sampler: str,
    embeds_guidance: bool = False,
    noising_process: NoiseProcess | None = None,
) -> Callable[..., jax.Array]:
    """Makes a compiled sampler, which is told the guidance scale, so that another one compiles nothing.

    Args:
      predict: function (params, x_t, t, conditioning) -> prediction (families/family.py).
      schedule: the noise schedule of the stage.
      shape: (H, W, C) of one generated image or latent.
      steps: denoising steps.
      guided: whether every step runs the denoiser on the negative prompt too; else once.
      embeds_guidance: whether the denoiser is told the guidance scale as a number; only if not `guided`.
      sampler: name of the sampler, as in samplers.sample.
      noising_process: schedule of the noise augmentation, for a super-resolution stage; None for a base stage.

    Returns:
      A function (params, text, negative, scale, keys, low=None, level=None) -> f32[B, H, W, C], images in [-1, 1] or
      latents. `text` and `negative` are the conditioning of B prompts (families/prompts.py), `scale` f32[B] is the
      guidance scale, which counts only if `guided` or embedded, `keys` has shape [B]. A super-resolution stage also
      needs `low` f32[B, h, w, C] in [-1, 1] and `level` i32[B], in timesteps.
    """

    def sample(params, text, negative, scale, keys, low=None, level=None):
        # Every example has keys of its own: for its initial noise, for the sampler's noise and for the augmentation.
        noise_keys, step_keys, augment_keys = jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 0, 1)
        x = samplers.initial_noise(noise_keys, shape)
        examples, channels = len(x), shape[-1]
        # With guidance, every pass has 2 B examples: those with the prompt, then the same with the negative prompt.
        if guided:
            text = jax.tree.map(lambda *both: jnp.concatenate(both), text, negative)
        conditioning = text
        if noising_process is not None:
            seen = {
                'low_image': noisy_low_image(low, shape[0], noising_process, level, augment_keys),
                'noise_level': level,
            }
            if guided:
                seen = jax.tree.map(lambda array: jnp.concatenate([array, array]), seen)
            conditioning = {**text, **seen}
        if embeds_guidance:
            conditioning = {**conditioning, 'guidance': scale}

        def denoise(x_t, t):
            if guided:
                x_t, t = jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t])
            answer = predict(params, x_t, t, conditioning)
            if not guided:
                return answer
            return guidance.classifier_free_guidance(
                answer[:examples], answer[examples:], scale, learned_variance=answer.shape[-1] == 2 * channels
            )

        return samplers.sample(denoise, x, step_keys, schedule=schedule, sampler=sampler, num_steps=steps)

    return jax.jit(sample)


def pipeline_sampler(
    pipeline: Pipeline, size: int, *, steps: int, guided: bool, sampler: str, enlarges: bool
) -> Callable[..., jax.Array]:
    """Makes the sampler of a pipeline for images of `size` x `size` pixels.

    Args:
      steps, guided, sampler: as in make_sampler.
      enlarges: whether it is a second stage, which noises the images that it enlarges.
    """
    family, space = pipeline.family, pipeline.space
    schedule = family.process(pipeline)
    if not space.bounded and schedule.sampling(sampler).clip_sample:
        logging.warning(
            'the scheduler of %s lets sampler %s clip latents to +-%g, as diffusers then does, which dulls images; '
            'write "clip_sample": false into its scheduler_config.json',
            pipeline.name,
            sampler,
            schedule.sampling(sampler).clip_sample_range,
        )
    return make_sampler(
        functools.partial(family.predict, pipeline.denoiser.apply),
        schedule,
        shape=(size // space.scale, size // space.scale, space.channels),
        steps=steps,
        sampler=sampler,
        guided=guided,
        embeds_guidance=family.embeds_guidance(pipeline),
        noising_process=family.noising_process(pipeline) if enlarges else None,
    )


def padded_batches(count: int, batch_size: int, multiple: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Splits examples 0 to count - 1 into batches of equal size, so that one compiled sampler generates them all.

    Args:
      batch_size: size of every batch; it is reduced if there are fewer examples.
      multiple: the number of devices; the size is rounded up to a multiple of it.

    Yields:
      Example numbers i64[size], where the last example is repeated to fill the batch, and how many of them are not
      repetitions.
    """
    size = -(-max(1, min(batch_size, count)) // multiple) * multiple
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1), min(size, count - first)


def to_uint8(images: jax.Array | np.ndarray) -> np.ndarray:
    """Converts images f32 in [-1, 1] to uint8, rounded as diffusers' image processor does.

    Raises:
      ConfigError: if a value is NaN. It would become black, and such class images would spoil a training unnoticed.
    """
    if bool(jnp.isnan(images).any()):
        raise ConfigError(
            'an image came out as NaN; the weights that generate it hold NaN or make numbers beyond bounds: take an '
            'earlier checkpoint, or another file of the model'
        )
    return np.asarray(jnp.round(jnp.clip(images / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8))


def guidance_of(
    text: Conditioning, prompt_of: np.ndarray, scale: float
) -> tuple[Conditioning, Conditioning, np.ndarray]:
    """Returns what a sampler is told of some examples: text, negative and scale, as make_sampler says.

    Args:
      text: the conditioning of the negative prompt and of all prompts behind it.
      prompt_of: int[B], which prompt each example has.
      scale: the guidance scale of all.
    """
    return take(text, 1 + prompt_of), take(text, np.zeros_like(prompt_of)), np.full(len(prompt_of), scale, np.float32)
