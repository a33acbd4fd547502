"""Settings from the command line: what is set, and what is refused with which sentence."""

import pathlib

import pytest
from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve

ROOT = pathlib.Path(__file__).parents[2]


def from_command_line(*arguments, file=ROOT / 'configs/dog.py'):
    argv = ['program', f'--config={file}', *arguments]
    values = flags.FlagValues()
    holder = program.DEFINE_config('config', 'Settings file.', flag_values=values, sys_argv=argv)
    values(argv)
    return resolve(DreamBoothConfig, holder.value)


@pytest.mark.parametrize(
    ('argument', 'name', 'value'),
    [
        ('prior.weight=0', 'prior.weight', 0.0),
        ('optimizer.ema_decay=0.9', 'optimizer.ema_decay', 0.9),
        ('optimizer.grad_clip_norm=None', 'optimizer.grad_clip_norm', None),
        ('super_resolution_model=none', 'super_resolution_model', 'none'),
        ('super_resolution_model=None', 'super_resolution_model', None),
        ('model_prediction_type=v_prediction', 'model_prediction_type', 'v_prediction'),
        ('model_prediction_type=None', 'model_prediction_type', None),
        ('optimizer.betas=0.8,0.9', 'optimizer.betas', (0.8, 0.9)),
        ('optimizer.betas=None', 'optimizer.betas', None),
        ('optimizer.state_dtype=int8', 'optimizer.state_dtype', 'int8'),
        ('data.resolution=64', 'data.resolution', 64),
        ('data.random_flip=true', 'data.random_flip', True),
        ('super_resolution.noise_level=3,7', 'super_resolution.noise_level', (3, 7)),
        ("samples.prompts='a dog, asleep','a cat'", 'samples.prompts', ('a dog, asleep', 'a cat')),
    ],
)
def test_command_line_sets(argument, name, value):
    resolved = from_command_line(f'--config.{argument}')
    for part in name.split('.'):
        resolved = getattr(resolved, part)
    assert resolved == value


@pytest.mark.parametrize(
    ('argument', 'sentence'),
    [
        ('prior.wieght=1', 'config.prior.wieght is not a known setting; did you mean config.prior.weight?'),
        ('piror.weight=1', 'config.piror is not a known setting; did you mean config.prior?'),
        ('prior.weight=-1', 'config.prior.weight must be >= 0, got -1.0'),
        ('parallel.mode=ddp', "config.parallel.mode must be one of 'pmap', 'fsdp', got 'ddp'"),
    ],
)
def test_command_line_errors_are_the_same_sentences(argument, sentence):
    with pytest.raises(ConfigError) as error:
        from_command_line(f'--config.{argument}')
    assert str(error.value) == sentence


def test_command_line_refuses_a_wrong_type_by_name():
    with pytest.raises(flags.Error, match=r'--config.base.steps=1.5'):
        from_command_line('--config.base.steps=1.5')


def test_a_missing_config_file_is_one_sentence():
    with pytest.raises(ConfigError) as error:
        from_command_line(file='configs/dgo.py')
    assert str(error.value) == (
        'the file given to --config=configs/dgo.py is not there; give the path of a config file, such as configs/dog.py'
    )


@pytest.mark.parametrize(
    ('argument', 'name'),
    [
        ('base.accumulation=2', 'base.gradient_accumulation_steps'),
        ('super_resolution.accumulation=2', 'super_resolution.gradient_accumulation_steps'),
        ('base.train_unet=False', 'base.train_denoiser'),
        ('optimizer.moments=int8', 'optimizer.state_dtype'),
        ('data.concepts=()', 'data.subjects'),
    ],
)
def test_an_old_name_is_an_error_that_says_the_new_one(argument, name):
    with pytest.raises(ConfigError) as error:
        from_command_line(f'--config.{argument}')
    assert str(error.value) == f'config.{argument.partition("=")[0]} is now called config.{name}'


@pytest.mark.parametrize(('old', 'new'), [('pictures', 'images'), ('prediction', 'distillation')])
def test_an_old_value_is_an_error_that_says_the_new_one(old, new):
    with pytest.raises(ConfigError) as error:
        from_command_line(f'--config.prior.kind={old}')
    assert str(error.value) == f'config.prior.kind is {old!r}, which is now called {new!r}'
