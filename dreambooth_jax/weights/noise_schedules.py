"""Reads the noise schedules of a pipeline, as its diffusers class and its UNet require them.

Training, planning and sampling all read them with these functions, so a schedule that one of them cannot use is refused
by all.
"""

import dataclasses

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline

# StableDiffusionPipeline sets these two options in every scheduler that it is created with. Older files leave the
# options out and mean these values, and latents have no range [-1, 1] to be clipped to. Other pipelines do not set
# them, so there the file decides. In diffusers a user can replace the scheduler later (`pipe.scheduler = ...`), without
# these values; here that is not possible.
_SET_BY_PIPELINE = {'StableDiffusionPipeline': {'steps_offset': 1, 'clip_sample': False}}
_ZERO_TERMINAL_SNR = {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
_LOW_IMAGE_CHANNELS = 3  # channels of the low-resolution image, which a super-resolution UNet also takes as input


def read(pipeline: Pipeline) -> schedules.Schedule:
    """Reads the schedule of the images or latents that the pipeline generates.

    The UNet determines the schedule's variance_type: a UNet with twice the output channels has learned a variance
    range, whatever the file says. Scripts of diffusers save such models as 'fixed_small' because they do not train the
    variance. Then sampling follows the file and drops the channels of the variance, as IFPipeline does, while training
    goes on to train them.

    Raises: WeightsError if the scheduler is not discrete and variance-preserving, or does not fit the UNet.
    """
    schedule = _read(pipeline, 'scheduler', **_SET_BY_PIPELINE.get(pipeline.class_name, {}))
    if pipeline.unet is None:
        return schedule
    sampled = sampled_channels(pipeline)
    answered = pipeline.unet_value('out_channels')
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

    Raises: WeightsError if the scheduler is not discrete and variance-preserving.
    """
    return _read(pipeline, 'image_noising_scheduler')


def with_zero_terminal_snr(pipeline: Pipeline) -> Pipeline:
    """Returns the pipeline with a schedule whose last time holds nothing of the image.

    Its timesteps are spaced so that samplers start there; otherwise they would begin with pure noise at a time at which
    training never saw any.

    Raises: WeightsError if the model predicts epsilon, which says nothing of the image at that time.
    Source: Lin et al. 2023, sections 3.1 to 3.3.
    """
    if (kind := read(pipeline).prediction_type) == 'epsilon':
        raise WeightsError(
            f'zero_terminal_snr is True but {pipeline.name} predicts {kind}, which says nothing of the image '
            f'where x_t is pure noise; take a model that predicts v_prediction, or set zero_terminal_snr to False.'
        )
    scheduler = {**pipeline.scheduler, **_ZERO_TERMINAL_SNR}
    if unsaid := scheduler.get('_use_default_values'):  # keys under it count as left out
        scheduler['_use_default_values'] = [key for key in unsaid if key not in _ZERO_TERMINAL_SNR]
    return dataclasses.replace(pipeline, scheduler=scheduler)


def highest_noise_level(pipeline: Pipeline) -> int:
    """Returns the highest level of noise augmentation of a second stage, a time step of its image_noising_scheduler.

    The level of the upscaler is also at most max_noise_level, and must be in its table of noise levels.
    """
    last = read_noising(pipeline).num_train_timesteps - 1
    if not pipeline.is_latent:
        return last
    # A level outside of the table would be looked up as NaN, and all images would be black.
    known = pipeline.unet.config.get('num_class_embeds') or last + 1
    return min(last, pipeline.option('max_noise_level'), known - 1)


def sampled_channels(pipeline: Pipeline) -> int:
    """Returns the number of channels that the UNet generates, those of a pixel or of a latent."""
    return pipeline.unet_value('in_channels') - _LOW_IMAGE_CHANNELS * pipeline.family.is_super_resolution


def _read(pipeline: Pipeline, component: str, **forced) -> schedules.Schedule:
    try:
        return schedules.from_config({**getattr(pipeline, component), **forced})
    except ValueError as error:
        raise WeightsError(f'the {component} of {pipeline.name} is not supported: {error}') from None
