"""The settings that train and pretrain share: every error sentence under the names of either program."""

import dataclasses

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, OptimizerConfig, PretrainConfig, resolve
from tests.config.test_dreambooth import DOG, UNET, nest

SAMPLERS = "'ddpm', 'ddim', 'dpmsolver++', 'euler', 'euler_ancestral', 'heun', 'unipc'"
WRONG = [
    ('zero_terminal_snr', 1, 'zero_terminal_snr must be True or False, got 1 (int)'),
    ('time_distribution', 'beta', "time_distribution must be one of 'uniform', 'logit_normal', 'mode', got 'beta'"),
    ('time_mean', 'low', "time_mean must be a number, got 'low' (str)"),
    ('time_std', 0.0, 'time_std must be > 0, got 0.0'),
    ('time_mode_scale', 2.0, 'time_mode_scale must be in [-1, 1.75], got 2.0'),
    ('time_shift', 0.0, 'time_shift must be > 0, got 0.0'),
    ('time_range', (0.5, 1.5), 'time_range[1] must be in [0, 1], got 1.5'),
    ('time_range', (0.5, 0.5), 'time_range must be (low, high) with low < high, got (0.5, 0.5)'),
]
UNUSED = [
    ('time_mean', 1.0, 'logit_normal', 0.0),
    ('time_std', 0.5, 'logit_normal', 1.0),
    ('time_mode_scale', 0.5, 'mode', 1.29),
]
PROGRAMS = [(DreamBoothConfig, DOG, 'objective.'), (PretrainConfig, UNET, '')]
OPTIMIZERS = [(DreamBoothConfig, DOG, 'optimizer.'), (PretrainConfig, UNET, '')]
# Settings of the optimizer that exclude each other, and the sentence for it with {} where its group's name stands.
EXCLUDING = [
    (
        {'warmup_steps': 10, 'schedule': 'constant'},
        "{}warmup_steps is 10 but {}schedule is 'constant', which has no warm-up; set the schedule to 'warmup' or "
        "'cosine'",
    ),
    (
        {'kind': 'lion', 'state_dtype': 'int8'},
        "{}state_dtype is 'int8' but only kind 'adamw' has moments to compress; {}kind is 'lion', so leave state_dtype "
        "at 'float32'",
    ),
    (
        {'kind': 'adafactor', 'betas': (0.8, 0.9)},
        "{}betas is (0.8, 0.9) but {}kind 'adafactor' has none; leave it None",
    ),
    ({'kind': 'adafactor', 'epsilon': 1e-6}, "{}epsilon is 1e-06 but {}kind 'adafactor' has none; leave it None"),
    ({'kind': 'lion', 'epsilon': 1e-6}, "{}epsilon is 1e-06 but {}kind 'lion' has none; leave it None"),
]


def message(kind, settings):
    with pytest.raises(ConfigError) as error:
        resolve(kind, settings)
    return str(error.value)


@pytest.mark.parametrize(('kind', 'start', 'group'), PROGRAMS)
@pytest.mark.parametrize(('name', 'value', 'sentence'), WRONG)
def test_a_wrong_value_is_one_sentence(kind, start, group, name, value, sentence):
    assert message(kind, nest(f'{group}{name}', value, start)) == f'config.{group}{sentence}'


@pytest.mark.parametrize(('kind', 'start', 'group'), PROGRAMS)
@pytest.mark.parametrize(('name', 'value', 'of', 'default'), UNUSED)
def test_what_the_distribution_does_not_have_is_refused(kind, start, group, name, value, of, default):
    where = f'config.{group}'
    assert message(kind, nest(f'{group}{name}', value, start)) == (
        f"{where}{name} is {value} but {where}time_distribution is 'uniform', which has none; set that to {of!r}, or "
        f'leave {name} at {default}'
    )
    settings = nest(f'{group}{name}', value, nest(f'{group}time_distribution', of, start))
    found = resolve(kind, settings)
    assert getattr(found.objective if group else found, name) == value


@pytest.mark.parametrize(('kind', 'start', 'group'), PROGRAMS)
def test_times_have_one_shift(kind, start, group):
    where = f'config.{group}'
    both = nest(f'{group}time_shift', 3.0, nest(f'{group}dynamic_time_shift', True, start))
    assert message(kind, both) == (
        f'{where}time_shift is 3.0 and {where}dynamic_time_shift is True, but times have one shift; leave the first '
        f'None or the second False'
    )


@pytest.mark.parametrize(('kind', 'start', 'group'), OPTIMIZERS)
@pytest.mark.parametrize(('settings', 'sentence'), EXCLUDING)
def test_settings_of_the_optimizer_that_exclude_each_other_are_refused(kind, start, group, settings, sentence):
    for name, value in settings.items():
        start = nest(f'{group}{name}', value, start)
    assert message(kind, start) == sentence.replace('{}', f'config.{group}')


@pytest.mark.parametrize(('kind', 'betas'), [('adamw', (0.8, 0.9)), ('lion', (0.9, 0.99)), ('prodigy', None)])
def test_what_an_optimizer_has_may_be_given(kind, betas):
    assert resolve(OptimizerConfig, {'kind': kind, 'betas': betas}).betas == betas


def test_a_multiplier_is_no_learning_rate():
    settings = OptimizerConfig(kind='prodigy')
    settings.check_learning_rate(0.01, 'config.x')
    OptimizerConfig(kind='lion').check_learning_rate(1e-6, 'config.x')
    with pytest.raises(ConfigError, match="^config.x is 0.009 but the optimizer's kind is 'prodigy', .* set it to 1.0"):
        settings.check_learning_rate(0.009, 'config.x')


@pytest.mark.parametrize('name', ['prior.sampler', 'samples.sampler'])
def test_samplers_are_named(name):
    assert message(DreamBoothConfig, nest(name, 'plms')) == f"config.{name} must be one of {SAMPLERS}, got 'plms'"
    for sampler in ('euler', 'euler_ancestral', 'heun', 'unipc'):
        group, field = name.split('.')
        assert getattr(getattr(resolve(DreamBoothConfig, nest(name, sampler)), group), field) == sampler


@pytest.mark.parametrize(('kind', 'start', 'group'), PROGRAMS)
@pytest.mark.parametrize(('given', 'missing'), [('c2pa_certificate', 'c2pa_key'), ('c2pa_key', 'c2pa_certificate')])
def test_a_certificate_and_its_key_belong_together(kind, start, group, given, missing):
    one = nest(f'samples.{given}', 'a.pem', start)
    assert message(kind, one) == (
        f"config.samples.{given} is 'a.pem' but config.samples.{missing} is None; give both, or set both to None"
    )
    assert getattr(resolve(kind, nest(f'samples.{missing}', 'b.pem', one)).samples, missing) == 'b.pem'


def test_settings_that_change_what_is_learned_may_not_change_later():
    from dreambooth_jax.training.run import FREE

    names = [field.name for field in dataclasses.fields(DreamBoothConfig().objective)]
    assert not {'objective', *(f'objective.{name}' for name in names), *names} & set(FREE)
