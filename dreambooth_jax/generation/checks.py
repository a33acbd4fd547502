"""Checks of a cascade's stages before anything is generated."""

from collections.abc import Sequence

from absl import logging

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.diffusion.scheduler_files import SchedulerFileError
from dreambooth_jax.families import distilled
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline


def check_sampler(pipeline: Pipeline, steps: int, sampler: str, guidance_scale: float = 1.0) -> None:
    """Checks that a stage's noise schedule allows this sampler with this number of steps, and the model the guidance.

    Raises:
      ConfigError: if it does not.
      WeightsError: if the scheduler does not fit the model.
    """
    schedule = pipeline.family.process(pipeline)
    try:
        samplers.step_table(schedule, sampler, steps)
    except ValueError as error:
        prefix = f'{pipeline.name}: ' if isinstance(error, SchedulerFileError) else ''
        raise ConfigError(f'{prefix}{error}') from None

    if guidance_scale != 1 and pipeline.family.is_distilled(pipeline):
        found = f'guidance_scale is {guidance_scale:g} but {pipeline.name} is distilled and needs none; set it to 1'
        if not distilled.is_guess(pipeline):
            raise ConfigError(found)
        logging.warning('%s (by its name)', found)


def negative_prompt(pipeline: Pipeline, negative_prompt: str) -> str:
    """Returns the negative prompt of a stage.

    Raises:
      ConfigError: if it is not empty and the stage does not read it.
    """
    if negative_prompt and pipeline.family.embeds_guidance(pipeline):
        raise ConfigError(
            f'negative_prompt is {negative_prompt!r} but {pipeline.name} is told its guidance as a number and reads no '
            f'negative prompt; leave it empty'
        )
    return negative_prompt


def check_noise_level(pipeline: Pipeline, noise_level: int) -> None:
    """Checks that a second stage has this level of noise augmentation.

    Args:
      noise_level: a timestep of its image_noising_scheduler.

    Raises:
      ConfigError: if it has not.
    """
    highest = pipeline.family.highest_noise_level(pipeline)
    if not 0 <= noise_level <= highest:
        raise ConfigError(f'noise_level is {noise_level}; it must be 0 to {highest}')


def check_stage(pipeline: Pipeline, is_super_resolution: bool, networks: Sequence[str]) -> None:
    """Checks that a pipeline is complete and belongs to the stage that it was given for.

    Args:
      is_super_resolution: whether it was given as the second stage.
      networks: those that it needs; its text encoders among them need their tokenizers too.

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
    networks = [name for name in networks if name not in pipeline.family.optional or name in pipeline.components]
    tokenizers = {text: name for text, name in pipeline.family.tokenizers.items() if text in networks}
    absent = [name for name in networks if name not in pipeline.components]
    absent += [name for text, name in tokenizers.items() if text not in pipeline.tokenizers]
    if absent:
        raise WeightsError(f'{pipeline.name} has no {absent[0]}; give a complete pipeline.')
    pipeline.family.process(pipeline)
    if is_super_resolution:
        pipeline.family.noising_process(pipeline)


def check_size(pipeline: Pipeline, size: int | None) -> None:
    """Checks that a base stage can generate images of this side.

    Args:
      size: side in pixels; None: the model's own.

    Raises:
      ConfigError: if it cannot.
    """
    if size is None or size == pipeline.native_size:
        return
    if pipeline.family.fixed_size and pipeline.native_size is not None:
        raise ConfigError(
            f'config.data.resolution is {size} but the base stage of {pipeline.name} generates at {pipeline.size}; '
            'leave it None'
        )
    if size % pipeline.size_divisor:
        raise ConfigError(
            f'config.data.resolution is {size} but the base stage of {pipeline.name} generates multiples of '
            f'{pipeline.size_divisor}'
        )
