"""Checks of a cascade's stages before anything is generated."""

from collections.abc import Sequence

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.diffusion.scheduler_files import SchedulerFileError
from dreambooth_jax.weights import noise_schedules
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline


def check_sampler(pipeline: Pipeline, steps: int, sampler: str) -> None:
    """Checks that a stage's noise schedule allows this sampler with this number of steps.

    Raises:
      ConfigError: if it does not.
      WeightsError: if the scheduler does not fit the model.
    """
    schedule = noise_schedules.read(pipeline)
    try:
        samplers.step_table(schedule, sampler, steps)
    except ValueError as error:
        prefix = f'{pipeline.name}: ' if isinstance(error, SchedulerFileError) else ''
        raise ConfigError(f'{prefix}{error}') from None


def check_noise_level(pipeline: Pipeline, noise_level: int) -> None:
    """Checks that a second stage has this level of noise augmentation.

    Args:
      noise_level: a timestep of its image_noising_scheduler.

    Raises:
      ConfigError: if it has not.
    """
    highest = noise_schedules.highest_noise_level(pipeline)
    if not 0 <= noise_level <= highest:
        raise ConfigError(f'noise_level is {noise_level}; it must be 0 to {highest}')


def check_stage(pipeline: Pipeline, is_super_resolution: bool, parts: Sequence[str]) -> None:
    """Checks that a pipeline is complete and belongs to the stage that it was given for.

    Args:
      is_super_resolution: whether it was given as the second stage.
      parts: names of the networks and tokenizers that it needs.

    Raises:
      WeightsError: if it is of the other stage, lacks a part, or its schedule does not fit.
    """
    if pipeline.family.is_super_resolution != is_super_resolution:
        kinds, settings = ('base', 'second'), ('model', 'super_resolution_model')
        raise WeightsError(
            f'{pipeline.name}, an {pipeline.class_name}, is a {kinds[not is_super_resolution]} stage, but '
            f'{settings[is_super_resolution]} must be a {kinds[is_super_resolution]} stage; this one can be given as '
            f'{settings[not is_super_resolution]}.'
        )
    for part in parts:
        if getattr(pipeline, f'{part}_folder' if part.startswith('tokenizer') else part) is None:
            raise WeightsError(f'{pipeline.name} has no {part}; give a complete pipeline.')
    noise_schedules.read(pipeline)
    if is_super_resolution:
        noise_schedules.read_noising(pipeline)


def check_size(pipeline: Pipeline, size: int | None) -> None:
    """Checks that a base stage can generate images of this side.

    Args:
      size: side in pixels; None: the model's own.

    Raises:
      ConfigError: if it cannot.
    """
    if size is None or size == pipeline.native_size:
        return
    if not pipeline.is_latent and pipeline.native_size is not None:
        raise ConfigError(
            f'config.data.resolution is {size} but the base stage of {pipeline.name} generates at {pipeline.size}; '
            'leave it None'
        )
    if size % pipeline.size_divisor:
        raise ConfigError(
            f'config.data.resolution is {size} but the base stage of {pipeline.name} generates multiples of '
            f'{pipeline.size_divisor}'
        )
