"""The noise schedules of a pipeline, as its class of diffusers and its UNet have them.

Training, the plan and generating all read them here, so that what one of them cannot use is refused by all.
"""

import dataclasses

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline

# StableDiffusionPipeline puts these into every scheduler that it is made with: files older than the two keys leave them
# out and mean this, and latents have no [-1, 1] to be clipped to. No other pipeline does, so with the others a file has
# its way. A scheduler that a user of diffusers exchanges later (`pipe.scheduler = ...`) escapes that; here none does.
_SET_BY_PIPELINE = {'StableDiffusionPipeline': {'steps_offset': 1, 'clip_sample': False}}
_LOW_IMAGE_CHANNELS = 3  # which the UNet of a stage that enlarges is given beside what it generates


def read(pipeline: Pipeline) -> schedules.Schedule:
    """The schedule of what the pipeline generates.

    Its variance_type is what the UNet learns: with twice the channels that is a range, whatever the file says. Scripts
    of diffusers save such models as 'fixed_small' because they do not train the variance; generating keeps to the file
    and leaves the variance's channels out, as IFPipeline does, and training keeps them trained.

    Raises: WeightsError for a scheduler that is no discrete, variance-preserving one, or does not fit the UNet.
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
    """The schedule of the noise on the low image, of a pipeline that enlarges.

    Raises: WeightsError for a scheduler that is no discrete, variance-preserving one.
    """
    return _read(pipeline, 'image_noising_scheduler')


def highest_noise_level(pipeline: Pipeline) -> int:
    """Highest noise augmentation of a second stage: a time of its image_noising_scheduler; of the upscaler also at most
    max_noise_level, and one of its table of levels.
    """
    last = read_noising(pipeline).num_train_timesteps - 1
    if not pipeline.is_latent:
        return last
    # A level beyond the table would be looked up as NaN, and generate nothing but black.
    known = pipeline.unet.config.get('num_class_embeds') or last + 1
    return min(last, pipeline.option('max_noise_level'), known - 1)


def sampled_channels(pipeline: Pipeline) -> int:
    """Channels of what the UNet generates: of a pixel or of a latent."""
    return pipeline.unet_value('in_channels') - _LOW_IMAGE_CHANNELS * pipeline.family.is_super_resolution


def _read(pipeline: Pipeline, component: str, **forced) -> schedules.Schedule:
    try:
        return schedules.from_config({**getattr(pipeline, component), **forced})
    except ValueError as error:
        raise WeightsError(f'the {component} of {pipeline.name} is not supported: {error}') from None
