"""A pipeline's schedules: what its class puts right, what its UNet says of the variance, and what is refused."""

import dataclasses
import re

import diffusers
import jax
import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers, schedules
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.families.processes import with_zero_terminal_snr
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines
from tests.support import published_stable_diffusion as real
from tests.support.layouts import LAYOUTS
from tests.support.published_schedulers import PUBLISHED, SD_1_5, SDXL

PIXELS = {'in_channels': 3, 'out_channels': 6}
LEARNED = {'beta_schedule': 'squaredcos_cap_v2', 'variance_type': 'learned_range'}


def pipeline(class_name='IFPipeline', *, scheduler=LEARNED, unet=PIXELS, noising=None):
    network = Network(unet, None, {})
    return made_pipelines.pipeline(class_name, scheduler=scheduler, unet=network, image_noising_scheduler=noising)


def read(pipeline):
    return pipeline.family.process(pipeline)


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('written', [{}, {'steps_offset': 0, 'clip_sample': True}, {'steps_offset': 1}])
@pytest.mark.parametrize('file', ['DDIMScheduler', 'PNDMScheduler', 'EulerDiscreteScheduler'])
def test_stable_diffusion_puts_old_files_right_as_its_pipeline_does(file, written, sampler):
    config = {'_class_name': file, 'beta_schedule': 'scaled_linear', **written}
    kind = getattr(diffusers, SAMPLERS[sampler].diffusers_class)
    theirs = kind.from_config(getattr(diffusers, file).from_config(config).config)
    parts = dict.fromkeys(('vae', 'text_encoder', 'tokenizer', 'unet', 'safety_checker', 'feature_extractor'))
    made = diffusers.StableDiffusionPipeline(**parts, scheduler=theirs, requires_safety_checker=False)
    found = pipeline('StableDiffusionPipeline', scheduler=config, unet={})
    ours = read(found).sampling(sampler)
    assert ours.steps_offset == made.scheduler.config.steps_offset == 1
    assert ours.clip_sample is made.scheduler.config.get('clip_sample', False) is False


def test_other_pipelines_leave_a_file_its_way():
    xl = pipeline('StableDiffusionXLPipeline', scheduler={'_class_name': 'EulerDiscreteScheduler'}, unet={})
    sampling = read(xl).sampling('ddim')
    assert sampling.clip_sample and sampling.steps_offset == 0  # DDIMScheduler's own


@pytest.mark.parametrize('variance_type', ['fixed_small', 'fixed_large', None])
def test_a_unet_with_a_variance_learns_it_though_the_file_says_fixed(variance_type):
    """Saved so by diffusers' train_dreambooth.py, and generated with as the file says."""
    schedule = read(pipeline(scheduler={**LEARNED, 'variance_type': variance_type}))
    assert schedule.variance_type == 'learned_range' and schedule.learns_variance
    assert schedule.sampling('ddpm').variance_type == (variance_type or 'fixed_small')


def test_a_variance_that_is_learned_otherwise_stays_so():
    assert read(pipeline(scheduler={'variance_type': 'learned'})).variance_type == 'learned'


@pytest.mark.parametrize(
    ('found', 'sentence'),
    [
        (
            pipeline(unet={'in_channels': 3, 'out_channels': 3}),
            "the scheduler of this IFPipeline has variance_type 'learned_range', but its UNet answers with 3 "
            "channels and no variance; write 'fixed_small' into its scheduler_config.json.",
        ),
        (
            pipeline('StableDiffusionPipeline', scheduler=SD_1_5, unet={'in_channels': 9}),
            'the UNet of this StableDiffusionPipeline generates 9 channels but answers with 4; it must answer with '
            '9, or with 18 where it learned a variance.',
        ),
        (
            pipeline(scheduler={'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': 3.0}),
            'the scheduler of this IFPipeline is not supported: Scheduler configuration: _class_name is '
            "'FlowMatchEulerDiscreteScheduler'; allowed: DDPMScheduler, ",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(found, sentence):
    with pytest.raises(WeightsError, match=f'^{re.escape(sentence)}'):
        read(found)


def test_a_stage_that_enlarges_generates_what_is_left_of_its_inputs():
    unet = {'in_channels': 6, 'out_channels': 6}
    second = pipeline('IFSuperResolutionPipeline', unet=unet, noising={'_class_name': 'EulerScheduler'})
    assert second.space.channels == 3 and read(second).learns_variance
    with pytest.raises(WeightsError, match="^the image_noising_scheduler of this IFSuper.* 'EulerScheduler'; allowed"):
        second.family.noising_process(second)
    latent = pipeline(
        'StableDiffusionUpscalePipeline',
        scheduler=PUBLISHED['stable-diffusion-x4-upscaler'],
        unet={'in_channels': 7, 'out_channels': 4},
    )
    assert latent.space.channels == 4 and not read(latent).learns_variance


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize(
    ('family', 'published'),
    [
        ('sd1', SD_1_5),
        ('sd2', PUBLISHED['stable-diffusion-2-1']),
        ('sdxl', SDXL),
        ('upscaler', PUBLISHED['stable-diffusion-x4-upscaler']),
    ],
)
def test_a_single_file_is_generated_with_as_the_published_folder(family, published, sampler):
    """diffusers' from_single_file takes the scheduler file that is published beside the model."""
    prediction = real.CONFIGS[family]['scheduler']['prediction_type']
    derived = schedules.from_config({**LAYOUTS[family].scheduler(prediction), 'prediction_type': prediction})
    folder = schedules.from_config(published)
    assert dataclasses.asdict(derived.sampling(sampler)) == dataclasses.asdict(folder.sampling(sampler))
    assert derived.prediction_type == folder.prediction_type
    jax.tree.map(np.testing.assert_array_equal, *(samplers.step_table(one, sampler, 10) for one in (derived, folder)))


def test_zero_terminal_snr_leaves_pure_noise_at_the_last_time_where_samplers_start():
    latent = pipeline('StableDiffusionPipeline', scheduler=PUBLISHED['stable-diffusion-2-1'], unet={})
    changed = with_zero_terminal_snr(latent)
    ours, theirs = read(changed), diffusers.DDIMScheduler.from_config(changed.scheduler)
    assert theirs.config.rescale_betas_zero_snr and theirs.config.timestep_spacing == 'trailing'
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=5e-5, atol=1e-9)
    assert ours.alphas_cumprod[-1] == 0 < read(latent).alphas_cumprod[-1]
    for sampler in SAMPLERS:
        assert samplers.timesteps(ours, sampler, 5)[0] == 999
    again = with_zero_terminal_snr(changed)
    assert again.scheduler == changed.scheduler


def test_zero_terminal_snr_overrules_keys_that_count_as_left_out():
    unsaid = {**PUBLISHED['stable-diffusion-2-1'], '_use_default_values': ['timestep_spacing', 'clip_sample_range']}
    latent = pipeline('StableDiffusionPipeline', scheduler=unsaid, unet={})
    changed = with_zero_terminal_snr(latent)
    assert changed.scheduler['_use_default_values'] == ['clip_sample_range']
    assert read(changed).sampling('ddim').timestep_spacing == 'trailing'


def test_zero_terminal_snr_is_refused_where_the_model_predicts_noise():
    latent = pipeline('StableDiffusionPipeline', scheduler=SD_1_5, unet={})
    with pytest.raises(WeightsError) as error:
        with_zero_terminal_snr(latent)
    assert str(error.value) == (
        f'zero_terminal_snr is True but {latent.name} predicts epsilon, which says nothing of the image where x_t is '
        'pure noise; take a model that predicts v_prediction, or set zero_terminal_snr to False.'
    )
