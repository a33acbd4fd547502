"""Reads the noise processes of a pipeline with a UNet, as its family and its UNet require them.

Training, planning and sampling all read them with these functions, so a schedule that one of them cannot use is refused
by all.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.diffusion.rectified_flow import VELOCITY
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline

_ZERO_TERMINAL_SNR = {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}


def read(pipeline: Pipeline, forced: Mapping[str, Any]) -> schedules.Schedule:
    """Reads the schedule of the images or latents that the pipeline generates.

    The UNet determines the schedule's variance_type: a UNet with twice the output channels has learned a variance
    range, whatever the file says. Scripts of diffusers save such models as 'fixed_small' because they do not train the
    variance. Then sampling follows the file and drops the channels of the variance, as IFPipeline does, while training
    goes on to train them.

    Args:
      forced: entries of scheduler_config.json that the pipeline's class sets whatever the file says.

    Raises:
      WeightsError: if the scheduler is not discrete and variance-preserving, or does not fit the UNet.
    """
    schedule = _read(pipeline, 'scheduler', forced)
    if pipeline.denoiser is None:
        return schedule
    sampled = pipeline.space.channels
    answered = pipeline.family.value(pipeline, 'out_channels')
    if answered == 2 * sampled:
        return schedule if schedule.learns_variance else dataclasses.replace(schedule, variance_type='learned_range')
    if answered != sampled:
        raise WeightsError(
            f'the UNet of {pipeline.name} generates {sampled} channels but answers with {answered}; it must answer '
            f'with {sampled}, or with {2 * sampled} where it learned a variance.'
        )
    if schedule.learns_variance:
        raise WeightsError(
            f'the scheduler of {pipeline.name} has variance_type {schedule.variance_type!r}, but its UNet answers with '
            f"{answered} channels and no variance; write 'fixed_small' into its scheduler_config.json."
        )
    return schedule


def read_noising(pipeline: Pipeline) -> schedules.Schedule:
    """Reads the schedule of the noise that a super-resolution pipeline adds to the low-resolution image.

    Raises:
      WeightsError: if the scheduler is not discrete and variance-preserving.
    """
    return _read(pipeline, 'image_noising_scheduler', {})


def with_zero_terminal_snr(pipeline: Pipeline) -> Pipeline:
    """Returns the pipeline with a schedule whose last time holds nothing of the image.

    Its timesteps are spaced so that samplers start there; otherwise they would begin with pure noise at a time at which
    training never saw any.

    Raises:
      WeightsError: if the model predicts epsilon, which says nothing of the image at that time.

    Source: Lin et al. 2023, sections 3.1 to 3.3.
    """
    kind = pipeline.family.process(pipeline).prediction_type
    if kind == VELOCITY:
        raise WeightsError(
            f'zero_terminal_snr is True but {pipeline.name} is a rectified flow, which ends in pure noise as it is; '
            f'set zero_terminal_snr to False.'
        )
    if kind == 'epsilon':
        raise WeightsError(
            f'zero_terminal_snr is True but {pipeline.name} predicts {kind}, which says nothing of the image '
            f'where x_t is pure noise; take a model that predicts v_prediction, or set zero_terminal_snr to False.'
        )
    scheduler = {**pipeline.scheduler, **_ZERO_TERMINAL_SNR}
    if unsaid := scheduler.get('_use_default_values'):  # keys under it count as left out
        scheduler['_use_default_values'] = [key for key in unsaid if key not in _ZERO_TERMINAL_SNR]
    return dataclasses.replace(pipeline, scheduler=scheduler)


def _read(pipeline: Pipeline, component: str, forced: Mapping[str, Any]) -> schedules.Schedule:
    try:
        return schedules.from_config({**getattr(pipeline, component), **forced})
    except ValueError as error:
        raise WeightsError(f'the {component} of {pipeline.name} is not supported: {error}') from None
