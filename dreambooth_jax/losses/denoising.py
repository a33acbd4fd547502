"""The denoising loss of a base stage, on pixels and on latents alike.

The loss of one example is the weighted squared error of the network's prediction (epsilon, v or x0, as the schedule
says). Networks with a learned-range variance add the variational bound of Nichol & Dhariwal 2021, which trains the
variance alone. The layout is NHWC; pixels lie in [-1, 1].

With masks, both are the mean over the part that the example's mask keeps. So the scale of an example, and with it the
balance between instance and class examples, does not depend on the size of that part. (kohya's masked loss leaves small
subjects with a small loss; OneTrainer has this as normalize_masked_area_loss.)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.config import ConfigError, ObjectiveConfig
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import objective
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.diffusion.times import TimeDistribution
from dreambooth_jax.families.image_space import ImageSpace
from dreambooth_jax.families.prompts import Conditioning, take
from dreambooth_jax.losses.teacher import Distillation, Lesson
from dreambooth_jax.weights.pipeline import Pipeline

# Prompt 0 is always the empty prompt. Dropped prompts point to it (classifier-free guidance).
EMPTY_PROMPT = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the denoising error is weighted; the same for every stage.

    Attributes:
      min_snr_gamma: the cap of Hang et al. 2023; None weights all times alike.
      time_weighting: the name of the weight of each time, one of the process's `weightings`; None: all alike.
      offset_noise: the strength of the noise that is the same at all pixels of a channel.
      variance_weight: the weight of the bound on the learned variance; 0 leaves the variance head untrained.
      prompt_dropout: the probability that an example sees the empty prompt, in [0, 1].
      random_flip: whether half of the examples, chosen at random, are mirrored.
      times: how often each time is drawn.
    """

    min_snr_gamma: float | None = None
    time_weighting: str | None = None
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
            time_weighting=settings.time_weighting,
            offset_noise=settings.offset_noise,
            variance_weight=settings.variance_weight if settings.train_variance else 0.0,
            prompt_dropout=settings.prompt_dropout,
            random_flip=random_flip,
            times=TimeDistribution(
                kind=settings.time_distribution,
                mean=settings.time_mean,
                std=settings.time_std,
                mode_scale=settings.time_mode_scale,
                shift=settings.time_shift,
                dynamic_shift=settings.dynamic_time_shift,
                range=settings.time_range,
            ),
        )

    def check(self, schedule: NoiseProcess, name: str) -> None:
        """Checks that the process has the weighting and the shift, and that the variance of the model can be trained.

        Args:
          schedule: the noise schedule of the model.
          name: the name of the model, for the message.

        Raises:
          ConfigError: if it has not, or if that variance is of a kind that the loss does not support.
        """
        if self.time_weighting is not None and self.time_weighting not in schedule.weightings:
            raise ConfigError(
                f'time_weighting is {self.time_weighting!r} but {name} is no rectified flow and has none; set it to '
                f'None'
            )
        if self.times.dynamic_shift and not schedule.has_dynamic_shift:
            raise ConfigError(
                f'dynamic_time_shift is True but {name} is no rectified flow, whose shift depends on the size of '
                f'images; set it to False, or give time_shift a number'
            )
        if self.variance_weight > 0 and schedule.learns_variance and schedule.variance_type == 'learned':
            raise ConfigError(
                f"{name} has variance_type 'learned', a variance of its own scale, but only 'learned_range' can be "
                f'trained; set train_variance to False, which leaves it as it is'
            )


def streams(keys: jax.Array, count: int) -> jax.Array:
    """Splits example keys [B] into `count` independent streams of example keys [count, B]."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, count))(keys), 0, 1)


def gather_prompts(
    frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array, dropout: float
) -> jax.Array:
    """Returns the examples' prompts, i32[B].

    A prompt is that of the example's image or, where a class example shows an image of the subject, the one of its
    class prompts whose turn it is. A share `dropout` of all examples, chosen at random, gets the empty prompt.
    """
    prompt = frozen['prompt_of'][batch['image']]
    if 'class_prompt_of' in frozen:
        of_class = frozen['class_prompt_of']
        of_class = of_class[batch['image'], batch['turn'] % of_class.shape[1]]
        prompt = jnp.where(batch['taught'], of_class, prompt)
    if dropout > 0:
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(keys)
        prompt = jnp.where(dropped, EMPTY_PROMPT, prompt)
    return prompt


def read_prompts(
    params: Mapping[str, Any], frozen: Mapping[str, Any], prompt: jax.Array, encode: Callable | None
) -> Conditioning:
    """Returns the conditioning by prompts i32[B]: encoded if a text encoder trains, and looked up otherwise."""
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

    Returns:
      The loss f32[B], and its parts 'denoising' and, with a trained variance, 'variance', each f32[B].
    """
    channels = images.shape[-1]
    # The noise is sampled from each example's own key, so it is the same on any number of devices.
    t = schedule.of_shape(images.shape[1:3]).sample_times(time_keys, weights.times)
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
    if weights.time_weighting is not None:
        parts['denoising'] = parts['denoising'] * schedule.weight(t, weights.time_weighting)
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
class DenoisingLoss:
    """The loss of a base stage; see `stage.Stage`.

    `frozen` holds what `space.prepare` returned; prompt_of i32[N]; and either `text`, the conditioning by P prompts,
    or, with a trained text encoder, their `tokens` (families/prompts.py). Prompt 0 is the empty prompt.

    Attributes:
      denoiser: the component that denoises.
      predict: (its params, x_t, t, conditioning) -> prediction (families/family.py).
      process: the noise process of the model.
      space: what the denoiser works on.
      encode: (params, tokens) -> conditioning if a text encoder trains too (PromptEncoder); None if it is looked up.
      objective: the weights of the loss.
      teacher: the teacher of class examples (teacher.py, which says what `frozen` and `batch` hold then); None:
        class images teach the class examples.
    """

    denoiser: str
    predict: Callable
    process: NoiseProcess
    space: ImageSpace
    encode: Callable | None = None
    objective: Objective = Objective()
    teacher: Distillation | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, apply: Callable, **settings) -> 'DenoisingLoss':
        """Returns the loss of a pipeline's denoiser.

        Args:
          apply: of the denoiser in the form in which it trains.
          settings: the attributes that the pipeline does not determine.

        Raises:
          WeightsError: if its noise process is not supported.
        """
        family = pipeline.family
        return cls(
            denoiser=family.denoiser,
            predict=functools.partial(family.predict, apply),
            process=family.process(pipeline),
            space=pipeline.space,
            **settings,
        )

    def loss(self, params, frozen, batch, keys):
        time_keys, noise_keys, flip_keys, drop_keys, *more_keys = streams(keys, 8)
        images, masks, seen = self._examples(frozen, batch, flip_keys, more_keys)
        prompt = gather_prompts(frozen, batch, drop_keys, self.objective.prompt_dropout)
        conditioning = {**read_prompts(params, frozen, prompt, self.encode), **seen}
        network = lambda x_t, t: self.predict(params[self.denoiser], x_t, t, conditioning)  # noqa: E731
        lesson = self.teacher and self.teacher.lesson(frozen, batch, prompt, seen)
        return denoise_examples(network, images, self.process, self.objective, time_keys, noise_keys, masks, lesson)

    def _examples(self, frozen, batch, flip_keys, more_keys):
        """Returns the images or latents, their masks or None, and what the denoiser sees besides x_t and the prompt."""
        images, masks, _ = self.space.sample(frozen, batch, flip_keys, more_keys[0], flip=self.objective.random_flip)
        return images, masks, {}
