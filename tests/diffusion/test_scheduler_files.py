"""Scheduler files are read as diffusers reads them: by the class in the file and by the class of the sampler."""

import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil

import diffusers
import jax
import numpy as np
import pytest
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from dreambooth_jax.diffusion import samplers, scheduler_files, schedules
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from tests.support.published_schedulers import IF_I, PUBLISHED, SD_1_5, SDXL
from tests.support.trajectories import CHANNELS, CLASSES, assert_close, trajectory_here, trajectory_there

STEPS = 10
BETAS = dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
# It needs a library that is not installed, and diffusers refuses to make it without.
WITHOUT_LIBRARY = ('DPMSolverSDEScheduler',)


def file_of(class_name):
    """What diffusers writes for a class: every argument, and the betas of Stable Diffusion where it has any."""
    kind = getattr(diffusers, class_name)
    takes_betas = 'beta_start' in inspect.signature(kind.__init__).parameters
    if class_name in WITHOUT_LIBRARY:
        return {'_class_name': class_name, **BETAS, 'timestep_spacing': 'linspace', 'steps_offset': 0}
    return json.loads(kind(**BETAS if takes_betas else {}).to_json_string())


@functools.cache
def handed_on(name):
    """The configuration that diffusers hands from the class in a file to a sampler."""
    config = FILES[name]
    return config if config['_class_name'] in WITHOUT_LIBRARY else made(config).config


def made(config):
    return getattr(diffusers, config['_class_name']).from_config(config)


FILES = {
    **PUBLISHED,
    **{name: {'_class_name': name, **BETAS} for name in scheduler_files.NOISE_DEFAULTS},
    **{f'{name} saved': file_of(name) for name in scheduler_files.NOISE_DEFAULTS},
}
del FILES['UnCLIPScheduler']  # has no such betas
# Saved whole, two classes name an algorithm that DPMSolverMultistepScheduler refuses: see below. With what a third one
# says, UniPCMultistepScheduler generates infinities.
REFUSED = {
    'dpmsolver++': ('SASolverScheduler saved', 'DEISMultistepScheduler saved'),
    'unipc': ('DPMSolverSinglestepScheduler saved',),
}


# The default suite takes the steps of these; the others differ from them in nothing that a sampler reads.
STEPPED = (*PUBLISHED, 'EulerDiscreteScheduler', 'LCMScheduler saved', 'UnCLIPScheduler saved')
FEW = ('stable-diffusion-v1-5', 'stable-diffusion-2-1', 'stable-diffusion-xl-base-1.0')
STEPPED_WITH = {sampler: STEPPED if sampler in ('ddpm', 'ddim', 'dpmsolver++') else FEW for sampler in CLASSES}
# x0 + s * noise, which diffusers steps on, reaches s = 20000 with a cosine schedule. Its float32 x0 then has errors of
# several 0.001, which clipping makes large; test_sampler_euler.py compares heun with float64 instead.
IMPRECISE = [(name, 'heun') for name in ('UnCLIPScheduler saved', 'deepfloyd-if-i', 'deepfloyd-if-ii')]


@pytest.mark.parametrize('sampler', CLASSES)
@pytest.mark.parametrize('name', FILES)
def test_every_file_is_spread_and_limited_as_in_diffusers(name, sampler):
    if name in REFUSED.get(sampler, ()):
        return
    ours, theirs = schedules.from_config(FILES[name]), CLASSES[sampler].from_config(handed_on(name))
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=1e-6)
    assert ours.prediction_type == theirs.config.prediction_type
    sampling = ours.sampling(sampler)
    for field in dataclasses.fields(sampling):
        if field.name in theirs.config and field.name in SAMPLERS[sampler].defaults:
            found, expected = getattr(sampling, field.name), theirs.config[field.name]
            if field.name == 'variance_type':  # no word on it is the first of them, of which the logarithm is the same
                found, expected = found.removesuffix('_log'), (expected or 'fixed_small').removesuffix('_log')
            if field.name == 'disable_corrector':
                expected = tuple(expected)
            assert found == expected, field.name
    for steps in (1, 7, 50):
        theirs.set_timesteps(steps)
        np.testing.assert_array_equal(samplers.timesteps(ours, sampler, steps), theirs.timesteps.numpy())


@pytest.mark.parametrize(
    ('name', 'sampler'),
    [
        pytest.param(name, sampler, marks=() if name in stepped else pytest.mark.slow)
        for sampler, stepped in STEPPED_WITH.items()
        for name in FILES
        if (name, sampler) not in IMPRECISE
    ],
)
def test_files_are_generated_with_step_for_step_as_in_diffusers(monkeypatch, name, sampler):
    if name in REFUSED.get(sampler, ()):
        return
    ours, theirs = schedules.from_config(FILES[name]), CLASSES[sampler].from_config(handed_on(name))
    channels = 2 * CHANNELS if ours.learns_variance else CHANNELS
    found = trajectory_here(sampler, ours, STEPS, channels=channels)
    if sampler not in ('ddpm', 'dpmsolver++'):  # which do not know of variance channels there
        channels = CHANNELS
    assert_close(found, trajectory_there(monkeypatch, sampler, theirs, STEPS, channels=channels))


def test_a_variance_that_the_file_does_not_name_is_left_out_as_by_the_pipelines_of_diffusers(monkeypatch):
    config = {**IF_I, 'variance_type': 'fixed_small'}
    found = trajectory_here('ddpm', schedules.from_config(config), STEPS, channels=2 * CHANNELS)
    theirs = CLASSES['ddpm'].from_config(config)  # to which IFPipeline hands the first half of the channels
    assert_close(found, trajectory_there(monkeypatch, 'ddpm', theirs, STEPS))


def test_the_published_file_of_stable_diffusion_starts_where_its_samplers_start():
    schedule = schedules.from_config(SD_1_5)
    assert samplers.timesteps(schedule, 'dpmsolver++', 10)[:3].tolist() == [999, 899, 799]
    assert samplers.timesteps(schedule, 'ddim', 10)[:3].tolist() == [901, 801, 701]
    assert samplers.timesteps(schedules.from_config(SDXL), 'dpmsolver++', 10)[0] == 901  # whose file says 'leading'


def test_other_samplers_do_not_ask_what_is_asked_of_the_solver():
    config = {**SD_1_5, 'use_karras_sigmas': True, 'solver_order': 3, 'algorithm_type': 'dpmsolver'}
    for sampler in ('ddpm', 'ddim'):
        ours, plain = (samplers.step_table(schedules.from_config(c), sampler, 9) for c in (config, SD_1_5))
        jax.tree.map(np.testing.assert_array_equal, ours, plain)


@pytest.mark.parametrize('sampler', CLASSES)
def test_defaults_are_those_of_the_sampler_class(sampler):
    arguments = inspect.signature(CLASSES[sampler].__init__).parameters
    for key, default in SAMPLERS[sampler].defaults.items():
        assert default == (arguments[key].default if key in arguments else None), key
    for key, (field, meanings) in SAMPLERS[sampler].meanings.items():
        assert SAMPLERS[sampler].defaults[key] in meanings, (key, field)
    steers = set(arguments) & set(scheduler_files._SAMPLING_RULES)
    unread = {'variance_type'} if sampler == 'dpmsolver++' else set()  # which splits the network's answer there
    assert steers - unread <= set(SAMPLERS[sampler].defaults)


@pytest.mark.parametrize('class_name', scheduler_files.NOISE_DEFAULTS)
def test_noise_has_the_defaults_of_the_class_in_the_file(class_name):
    schedule = schedules.from_config({'_class_name': class_name})
    # Without that library: of a class whose betas are the same.
    kind = 'HeunDiscreteScheduler' if class_name in WITHOUT_LIBRARY else class_name
    betas = getattr(diffusers, kind)().betas
    np.testing.assert_allclose(schedule.betas, betas.numpy(), rtol=1e-6)
    assert schedule.prediction_type == 'epsilon' and not schedule.learns_variance


def classes_of_diffusers():
    found = set(WITHOUT_LIBRARY) | {'CosineDPMSolverMultistepScheduler'}
    package = diffusers.schedulers
    for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
        try:
            members = vars(importlib.import_module(module.name)).values()
        except ImportError:  # torchsde's two, named above
            continue
        found |= {m.__name__ for m in members if inspect.isclass(m) and issubclass(m, SchedulerMixin)}
    return found - {'SchedulerMixin'}


def test_every_other_class_of_diffusers_is_refused_in_a_sentence():
    others = classes_of_diffusers() - set(scheduler_files.NOISE_DEFAULTS)
    assert {'FlowMatchEulerDiscreteScheduler', 'EDMEulerScheduler', 'VQDiffusionScheduler', 'IPNDMScheduler'} < others
    for class_name in others:
        with pytest.raises(ValueError, match=f"^Scheduler configuration: _class_name is '{class_name}'; allowed: DDPM"):
            schedules.from_config({'_class_name': class_name})


def test_keys_that_diffusers_marks_as_defaults_count_as_left_out():
    marked = {**SD_1_5, 'timestep_spacing': 'leading', '_use_default_values': ['timestep_spacing', 'steps_offset']}
    assert samplers.timesteps(schedules.from_config(marked), 'dpmsolver++', 10)[0] == 999
    assert schedules.from_config(marked).sampling('ddim').steps_offset == 0
    assert CLASSES['ddim'].from_config(marked).config.steps_offset == 0
    with pytest.raises(ValueError, match='_use_default_values is 5; allowed: lists of keys'):
        schedules.from_config({**SD_1_5, '_use_default_values': 5})


def test_nulls_are_left_out_and_switch_off():
    schedule = schedules.from_config({**IF_I, 'clip_sample': None, 'thresholding': None, 'variance_type': None})
    assert not schedule.sampling('ddpm').clip_sample and not schedule.sampling('ddpm').thresholding
    assert schedule.variance_type == schedule.sampling('ddpm').variance_type == 'fixed_small'


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('num_train_timesteps', '1000', 'whole numbers from 2 to 100000'),
        ('num_train_timesteps', 1000.0, 'whole numbers'),
        ('num_train_timesteps', True, 'whole numbers'),
        ('num_train_timesteps', 10**9, 'whole numbers'),
        ('beta_start', 'small', 'numbers above 0 and below 1'),
        ('beta_end', -0.5, 'numbers above 0'),
        ('beta_end', float('nan'), 'numbers above 0'),
        ('trained_betas', [0.1, 'x'], 'lists of numbers'),
        ('trained_betas', {}, 'lists of numbers'),
        ('trained_betas', [0.1, 0.2], 'num_train_timesteps of them'),
        ('beta_schedule', ['linear'], 'linear, scaled_linear'),
        ('clip_sample', 'no', 'true, false'),
        ('dynamic_thresholding_ratio', 1.5, 'numbers above 0 and at most 1'),
        ('sample_max_value', 0.5, 'numbers from 1 on'),
        ('steps_offset', -1, 'whole numbers from 0 to'),
        ('steps_offset', 10**30, 'whole numbers from 0 to'),
        ('clip_sample_range', 10**400, 'numbers above 0'),
        ('lambda_min_clipped', 'low', 'numbers'),
        ('timestep_spacing', 'wide', 'linspace, leading, trailing'),
        ('_class_name', ['DDPMScheduler'], 'DDPMScheduler, DDPM'),
        ('use_flow_sigmas', True, 'false'),
        ('timestep_type', 'continuous', 'discrete'),
    ],
)
def test_values_that_mean_nothing_are_named(key, value, allowed):
    with pytest.raises(ValueError, match=rf'^Scheduler configuration: {key} (is|has) .*; allowed: {allowed}'):
        schedules.from_config({'num_train_timesteps': 1000, key: value})


def test_unknown_keys_of_a_schedule_made_by_hand_are_named():
    with pytest.raises(ValueError, match='timestep_space is no key of a scheduler file; allowed: thresholding'):
        schedules.make_schedule(timestep_space='leading')
