"""The base stage of pixel cascades (Imagen, DeepFloyd IF, Storybook): denoise images at the first resolution.

Loss of one example: the weighted squared error of the network's prediction (epsilon, v or x0, as the schedule says)
plus, for networks with a learned-range variance, the variational bound of Nichol & Dhariwal 2021 on the variance alone.
Data range [-1, 1], NHWC. With masks both are the mean over what the example's mask keeps, so that an example's scale,
and with it the balance between instance and class examples, does not depend on how much that is. (kohya's masked loss
leaves small subjects with a small loss; OneTrainer has this as normalize_masked_area_loss.)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.config import ConfigError, ObjectiveConfig
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import objective, prediction, schedules
from dreambooth_jax.stages.distillation import Distillation, Lesson
from dreambooth_jax.stages.text_conditioning import Text, take

# Row 0 of the prompt table is always the empty prompt: dropped prompts point there (classifier-free guidance).
EMPTY_PROMPT = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How a denoising error is weighed; the same for every stage.

    Attributes:
      min_snr_gamma: cap of Hang et al. 2023, None weighs all times alike.
      offset_noise: strength of per-channel constant noise.
      variance_weight: weight of the learned variance's bound; 0 leaves the variance head untrained.
      prompt_dropout: chance that an example sees the empty prompt.
      random_flip: mirror half of the examples.
    """

    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    variance_weight: float = 1.0
    prompt_dropout: float = 0.0
    random_flip: bool = False

    @classmethod
    def from_settings(cls, settings: ObjectiveConfig, *, random_flip: bool = False) -> 'Objective':
        """The objective that the settings describe; a variance that is not trained has weight 0."""
        return cls(
            min_snr_gamma=settings.min_snr_gamma,
            offset_noise=settings.offset_noise,
            variance_weight=settings.variance_weight if settings.train_variance else 0.0,
            prompt_dropout=settings.prompt_dropout,
            random_flip=random_flip,
        )

    def check(self, schedule: schedules.Schedule, name: str) -> None:
        """Raises ConfigError if the variance that a model learned is of a kind that the loss does not know.

        Args:
          schedule: of the model `name`.
        """
        if self.variance_weight > 0 and schedule.variance_type == 'learned':
            raise ConfigError(
                f"{name} has variance_type 'learned', a variance of its own scale, but only 'learned_range' can be "
                f'trained; set train_variance to False, which leaves it as it is'
            )


def streams(keys: jax.Array, count: int) -> jax.Array:
    """Splits example keys [B] into `count` independent streams of example keys [count, B]."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, count))(keys), 0, 1)


def gather_images(frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array, flip: bool) -> jax.Array:
    """The examples' images as f32[B, H, W, C] in [-1, 1], mirrored at random where `flip` is set."""
    return _gather(frozen['images'], batch, keys, flip) / 127.5 - 1.0


def gather_masks(
    frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array, flip: bool
) -> jax.Array | None:
    """How much each pixel of the examples counts, f32[B, H, W, 1] in [0, 1], mirrored with the images; None: all alike.

    Args: of `gather_images`, with the same keys.
    """
    return _gather(frozen['masks'], batch, keys, flip) / 255.0 if 'masks' in frozen else None


def _gather(examples: jax.Array, batch: Mapping[str, jax.Array], keys: jax.Array, flip: bool) -> jax.Array:
    examples = examples[batch['image']].astype(jnp.float32)
    if not flip:
        return examples
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], examples[:, :, ::-1], examples)


def gather_prompts(
    frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array, dropout: float
) -> jax.Array:
    """The examples' prompts i32[B]: those of their images, the class's where a class example shows the subject's image,
    and the empty one for a share `dropout` of all.
    """
    prompt = frozen['prompt_of'][batch['image']]
    if 'class_prompt_of' in frozen:
        prompt = jnp.where(batch['is_instance'] > 0, prompt, frozen['class_prompt_of'][batch['image']])
    if dropout > 0:
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(keys)
        prompt = jnp.where(dropped, EMPTY_PROMPT, prompt)
    return prompt


def read_prompts(
    params: Mapping[str, Any], frozen: Mapping[str, Any], prompt: jax.Array, encode: Callable | None
) -> Text:
    """The text of prompts i32[B]: computed when a text encoder trains, looked up when none does."""
    if encode is None:
        return take(frozen['text'], prompt)
    return encode(params, take(frozen['tokens'], prompt))


def denoise_examples(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    schedule: schedules.Schedule,
    weights: Objective,
    time_keys: jax.Array,
    noise_keys: jax.Array,
    masks: jax.Array | None = None,
    lesson: Lesson | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Noises images at random times and measures the network's answer.

    Rows that are held to a frozen network's answer have that as their target, in every pixel alike: a mask says what
    shows the subject, and the rest must stay what it was. Their variance is held to its variance, not to the bound.

    Args:
      network: (x_t f32[B, H, W, C], t i32[B]) -> f32[B, H, W, C], or 2C channels with a learned variance.
      images: f32[B, H, W, C] in [-1, 1].
      schedule: gives times, prediction type and variance type.
      weights: see `Objective`.
      time_keys, noise_keys: example keys [B].
      masks: f32[B, H, W, 1], how much each pixel counts; None: all alike.
      lesson: of a teacher (distillation.py); None: the images teach all examples.
    Returns: f32[B] and its parts 'denoising' and, with a trained variance, 'variance'.
    """
    channels = images.shape[-1]
    t = noise_lib.sample_timesteps(time_keys, 0, schedule.num_train_timesteps)
    noise = noise_lib.sample_noise(noise_keys, images.shape[1:], offset=weights.offset_noise)
    x_t = noise_lib.add_noise(schedule, images, noise, t)
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    target = prediction.target_for(schedule.prediction_type, images, noise, alpha, sigma)
    if lesson is not None:
        held_to, held = lesson(x_t, t)
        target = jnp.where(_over(held), held_to[..., :channels], target)
        masks = None if masks is None else jnp.where(_over(held), 1.0, masks)
    output = network(x_t, t).astype(jnp.float32)
    answer = output[..., :channels]
    parts = {
        'denoising': objective.denoising_loss(
            answer,
            target,
            schedules.snr(schedule, t),
            prediction_type=schedule.prediction_type,
            min_snr_gamma=weights.min_snr_gamma,
            mask=masks,
        )
    }
    loss = parts['denoising']
    if output.shape[-1] == 2 * channels and weights.variance_weight > 0:
        parts['variance'] = objective.variance_loss(
            output[..., channels:], answer, images, x_t, t, schedule, mask=masks
        )
        if lesson is not None:
            moved = jnp.square(output[..., channels:] - held_to[..., channels:])
            parts['variance'] = jnp.where(held, jnp.mean(moved, axis=(1, 2, 3)), parts['variance'])
        loss = loss + weights.variance_weight * parts['variance']
    return loss, parts


def _over(examples: jax.Array) -> jax.Array:
    return examples[:, None, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelStage:
    """The base stage; see `stage.Stage`.

    Attributes:
      unet: (params, x_t, t, **text) -> prediction, of a UNet2DConditionModel (models/functional.py).
      schedule: the model's own noise schedule.
      encode: (params, tokens) -> text when a text encoder trains along (TextConditioning), None when text is looked up.
      objective: weights of the loss.
      teacher: what class examples are held to (distillation.py, which says what `frozen` and `batch` hold then); None:
        class examples are taught by class images.
    `frozen` holds: images uint8[N, H, W, C]; prompt_of i32[N]; either `text` of P prompts or, with a trained text
    encoder, their `tokens` (text_conditioning.py); and, where images have them, masks uint8[N, H, W, 1] of how much
    each pixel counts (255: in full). Prompt 0 is the empty prompt.
    """

    unet: Callable
    schedule: schedules.Schedule
    encode: Callable | None = None
    objective: Objective = Objective()
    teacher: Distillation | None = None

    def loss(self, params, frozen, batch, keys):
        time_keys, noise_keys, flip_keys, drop_keys = streams(keys, 4)
        images = gather_images(frozen, batch, flip_keys, self.objective.random_flip)
        masks = gather_masks(frozen, batch, flip_keys, self.objective.random_flip)
        prompt = gather_prompts(frozen, batch, drop_keys, self.objective.prompt_dropout)
        text = read_prompts(params, frozen, prompt, self.encode)
        network = lambda x_t, t: self.unet(params['unet'], x_t, t, **text)  # noqa: E731
        lesson = self.teacher and self.teacher.lesson(frozen, batch, prompt)
        return denoise_examples(network, images, self.schedule, self.objective, time_keys, noise_keys, masks, lesson)
