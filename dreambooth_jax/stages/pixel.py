"""The base stage of pixel cascades (Imagen, DeepFloyd IF, Storybook): it denoises images at the first resolution.

The loss of one example is the weighted squared error of the network's prediction (epsilon, v or x0, as the schedule
says). Networks with a learned-range variance add the variational bound of Nichol & Dhariwal 2021, which trains the
variance alone. The data range is [-1, 1], the layout NHWC.

With masks, both are the mean over the part that the example's mask keeps. So the scale of an example, and with it the
balance between instance and class examples, does not depend on the size of that part. (kohya's masked loss leaves small
subjects with a small loss; OneTrainer has this as normalize_masked_area_loss.)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.config import ConfigError, ObjectiveConfig
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import objective, schedules
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.diffusion.times import TimeDistribution
from dreambooth_jax.stages.distillation import Distillation, Lesson
from dreambooth_jax.stages.text_conditioning import Text, take

# Prompt 0 is always the empty prompt. Dropped prompts point to it (classifier-free guidance).
EMPTY_PROMPT = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the denoising error is weighted; the same for every stage.

    Attributes:
      min_snr_gamma: the cap of Hang et al. 2023; None weights all times alike.
      offset_noise: the strength of the noise that is the same at all pixels of a channel.
      variance_weight: the weight of the bound on the learned variance; 0 leaves the variance head untrained.
      prompt_dropout: the probability that an example sees the empty prompt, in [0, 1].
      random_flip: whether half of the examples, chosen at random, are mirrored.
      times: how often each time is drawn.
    """

    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    variance_weight: float = 1.0
    prompt_dropout: float = 0.0
    random_flip: bool = False
    times: TimeDistribution = TimeDistribution()

    @classmethod
    def from_settings(cls, settings: ObjectiveConfig, *, random_flip: bool = False) -> 'Objective':
        """Returns the objective that the settings describe. A variance that is not trained gets weight 0."""
        return cls(
            min_snr_gamma=settings.min_snr_gamma,
            offset_noise=settings.offset_noise,
            variance_weight=settings.variance_weight if settings.train_variance else 0.0,
            prompt_dropout=settings.prompt_dropout,
            random_flip=random_flip,
            times=TimeDistribution(
                kind=settings.time_distribution,
                mean=settings.time_mean,
                std=settings.time_std,
                mode_scale=settings.time_mode_scale,
                range=settings.time_range,
            ),
        )

    def check(self, schedule: schedules.Schedule, name: str) -> None:
        """Checks that the loss can train the variance that a model learned.

        Args:
          schedule: the noise schedule of the model.
          name: the name of the model, for the message.
        Raises: ConfigError if that variance is of a kind that the loss does not support.
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
    """Returns the examples' images, f32[B, H, W, C] in [-1, 1]; with `flip`, half of them are mirrored at random."""
    return _gather(frozen['images'], batch, keys, flip) / 127.5 - 1.0


def gather_masks(
    frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array, flip: bool
) -> jax.Array | None:
    """Returns how much each pixel of the examples counts, f32[B, H, W, 1] in [0, 1]. None means that all count alike.

    With the keys of `gather_images`, masks are mirrored together with their images.
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
    """Returns the examples' prompts, i32[B].

    A prompt is that of the example's image, or the class prompt where a class example shows an image of the subject. A
    share `dropout` of all examples, chosen at random, gets the empty prompt.
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
    """Returns the text of the prompts i32[B]: encoded if a text encoder trains, and looked up otherwise."""
    if encode is None:
        return take(frozen['text'], prompt)
    return encode(params, take(frozen['tokens'], prompt))


def denoise_examples(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    schedule: NoiseProcess,
    weights: Objective,
    time_keys: jax.Array,
    noise_keys: jax.Array,
    masks: jax.Array | None = None,
    lesson: Lesson | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds noise to images at random times and measures the network's predictions.

    An example that is held to a teacher has the teacher's prediction as its target, with equal weight in every pixel: a
    mask says which part shows the subject, but here the whole image must stay as it was. Its variance is held to the
    teacher's variance instead of the bound.

    Args:
      network: (x_t f32[B, H, W, C], t f32[B]) -> f32[B, H, W, C], or 2C channels with a learned variance.
      images: f32[B, H, W, C] in [-1, 1], or latents.
      schedule: the noise process: it gives the times, the noise and what to predict.
      weights: see `Objective`.
      time_keys, noise_keys: example keys [B].
      masks: f32[B, H, W, 1], how much each pixel counts; None: all count alike.
      lesson: the lesson of a teacher (distillation.py); None: the images teach all examples.
    Returns: the loss f32[B], and its parts 'denoising' and, with a trained variance, 'variance', each f32[B].
    """
    channels = images.shape[-1]
    # The noise is sampled from each example's own key, so it is the same on any number of devices.
    t = schedule.sample_times(time_keys, weights.times)
    noise = noise_lib.sample_noise(noise_keys, images.shape[1:], offset=weights.offset_noise)
    x_t, told = schedule.add_noise(images, noise, t), schedule.network_time(t)
    target = schedule.target(images, noise, t)
    # The teacher must see the same x_t and t as the network in training.
    if lesson is not None:
        held_to, held = lesson(x_t, told)
        target = jnp.where(_over(held), held_to[..., :channels], target)
        masks = None if masks is None else jnp.where(_over(held), 1.0, masks)
    # The network may compute in bfloat16, whose sums over an image would be too coarse for a loss.
    output = network(x_t, told).astype(jnp.float32)
    answer = output[..., :channels]
    parts = {
        'denoising': objective.denoising_loss(
            answer,
            target,
            schedule.snr(t),
            prediction_type=schedule.prediction_type,
            min_snr_gamma=weights.min_snr_gamma,
            mask=masks,
        )
    }
    # Networks with a learned variance put it in the second half of the channels.
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

    `frozen` holds: images uint8[N, H, W, C]; prompt_of i32[N]; either `text` of P prompts or, with a trained text
    encoder, their `tokens` (text_conditioning.py); and, if images have masks, masks uint8[N, H, W, 1], which say how
    much each pixel counts (255: in full). Prompt 0 is the empty prompt.

    Attributes:
      unet: (params, x_t, t, **text) -> prediction, of a UNet2DConditionModel (models/functional.py).
      schedule: the noise schedule of the model.
      encode: (params, tokens) -> text if a text encoder is trained too (TextConditioning); None if text is looked up.
      objective: the weights of the loss.
      teacher: the teacher of class examples (distillation.py, which says what `frozen` and `batch` hold then); None:
        class images teach the class examples.
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
