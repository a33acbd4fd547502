"""What a stage must be before anything is generated with it: complete, of its place, of a size, with such a sampler."""

import dataclasses
import re

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation import checks
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_networks as tiny
from tests.support import tiny_pipelines


@pytest.fixture
def base():
    return tiny_pipelines.base()


@pytest.fixture
def second():
    return tiny_pipelines.super_resolution()


def sized(pipeline, side):
    """The pipeline with a denoiser that was made for images of this side."""
    denoiser = dataclasses.replace(pipeline.denoiser, config={**pipeline.denoiser.config, 'sample_size': side})
    return pipeline.with_components(unet=denoiser)


def test_a_sampler_is_tried_with_its_number_of_steps(base):
    for sampler in ('ddpm', 'ddim', 'dpmsolver++'):
        checks.check_sampler(base, 999, sampler)
    with pytest.raises(ConfigError, match=r'^steps is 1001; 1 to 1000 denoise steps are possible\.$'):
        checks.check_sampler(base, 1001, 'ddim')
    with pytest.raises(ConfigError, match="^sampler is 'plms'; allowed: ddpm, "):
        checks.check_sampler(base, 5, 'plms')


def test_a_model_that_is_told_its_guidance_reads_no_negative_prompt(base, monkeypatch):
    assert checks.negative_prompt(base, 'a cat') == 'a cat'
    monkeypatch.setattr(type(base.family), 'embeds_guidance', lambda self, pipeline: True)
    assert checks.negative_prompt(base, '') == ''
    with pytest.raises(ConfigError) as error:
        checks.negative_prompt(base, 'a cat')
    assert str(error.value) == (
        f"negative_prompt is 'a cat' but {base.name} is told its guidance as a number and reads no negative prompt; "
        f'leave it empty'
    )


def test_what_the_file_of_the_model_asks_in_vain_is_told_with_its_name(base):
    asks = dataclasses.replace(base, scheduler={**tiny.SCHEDULER, 'solver_order': 3})
    checks.check_sampler(asks, 5, 'ddim')
    sentence = f"{base.name}: the scheduler file's solver_order is 3, with which sampler dpmsolver++ cannot sample"
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}'):
        checks.check_sampler(asks, 5, 'dpmsolver++')


@pytest.mark.parametrize(('level', 'allowed'), [(0, True), (999, True), (1000, False), (-1, False)])
def test_a_level_of_noise_is_a_time_of_the_noising_schedule(second, level, allowed):
    if allowed:
        checks.check_noise_level(second, level)
        return
    with pytest.raises(ConfigError, match=f'^noise_level is {level}; it must be 0 to 999$'):
        checks.check_noise_level(second, level)


def test_a_stage_belongs_where_it_was_given(base, second):
    checks.check_stage(base, False, base.family.networks)
    checks.check_stage(second, True, ('unet',))
    with pytest.raises(WeightsError) as error:
        checks.check_stage(second, False, ('unet',))
    assert str(error.value) == (
        'this IFSuperResolutionPipeline, an IFSuperResolutionPipeline, is a second stage, but model must be a base '
        'stage; this one can be given as super_resolution_model.'
    )
    with pytest.raises(WeightsError, match=r'is a base stage, .* this one can be given as model\.$'):
        checks.check_stage(base, True, ('unet',))


def test_only_the_networks_that_are_needed_must_be_there(base, second):
    with pytest.raises(WeightsError, match=r'^this IFSuperResolutionPipeline has no text_encoder; give a complete'):
        checks.check_stage(second, True, second.family.networks)
    without = dataclasses.replace(base, tokenizers={})
    checks.check_stage(without, False, ('unet',))
    with pytest.raises(WeightsError, match=r'^this IFPipeline has no tokenizer; give a complete pipeline\.$'):
        checks.check_stage(without, False, base.family.networks)


def test_both_schedules_of_a_second_stage_are_tried(second):
    for part, name in (('scheduler', 'scheduler'), ('image_noising_scheduler', 'image_noising_scheduler')):
        odd = dataclasses.replace(second, **{part: {'_class_name': 'EulerScheduler'}})
        with pytest.raises(WeightsError, match=rf"^the {name} of this IFSuper\w+ is not supported: .*'EulerScheduler'"):
            checks.check_stage(odd, True, ('unet',))


def test_pixel_models_generate_their_own_size_only(base):
    for size in (None, 8):
        checks.check_size(base, size)
    with pytest.raises(ConfigError) as error:
        checks.check_size(base, 16)
    assert str(error.value) == (
        'config.data.resolution is 16 but the base stage of this IFPipeline generates at 8; leave it None'
    )


def test_a_model_that_does_not_say_its_size_takes_any_that_its_denoiser_can_halve(base):
    unsized = sized(base, None)
    assert unsized.size_divisor == 2
    checks.check_size(unsized, 10)
    with pytest.raises(ConfigError, match='^config.data.resolution is 9 but .* generates multiples of 2$'):
        checks.check_size(unsized, 9)
