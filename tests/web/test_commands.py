"""What is asked for becomes a command line of train that says the same, or is refused before anything runs."""

from pathlib import Path

import pytest
from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.config.presets import PRESETS
from dreambooth_jax.web import commands
from dreambooth_jax.web.commands import Recipes, Wanted
from tests.support.served import CONFIGS, settings, write_run

RECIPES = Recipes(CONFIGS)


def wanted(recipe='dog', model='', **changed):
    return Wanted(
        recipe=recipe, model=model, settings={name.replace('__', '.'): value for name, value in changed.items()}
    )


def parsed(arguments):
    """The settings that train gets from a command line."""
    values, (config, workdir, *others) = flags.FlagValues(), arguments
    program.DEFINE_config('config', '', flag_values=values, sys_argv=['train', *arguments])
    values(['train', config, *others])
    assert workdir.startswith('--workdir=')
    return resolve(DreamBoothConfig, values.config)


CHANGES = [
    {},
    {'base__steps': 7, 'base__learning_rate': 1e-7, 'prior__weight': 0},
    {'data__instance_prompt': 'a "sks" dog, with \'quotes\' = and $HOME `x`', 'export': False},
    {'samples__prompts': ['one'], 'super_resolution__noise_level': [0, 9]},
    {'samples__prompts': [], 'optimizer__betas': [0.5, 0.9], 'parallel__remat': True},
    {'optimizer__betas': None, 'data__resolution': None, 'super_resolution_model': 'none'},
    {'samples__prompts': ["it's", 'a "b"', 'ü', '(', "('"], 'lora__rank': 4, 'lora__targets': [r'.*attn2\.to_k']},
]


@pytest.mark.parametrize('changed', CHANGES)
def test_train_gets_what_was_checked(changed):
    asked = wanted(**changed)
    checked = RECIPES.checked(asked)
    assert parsed(RECIPES.arguments(asked, Path('runs/x'))) == checked
    for name, value in asked.settings.items():
        assert commands.flat(checked)[name] == value


@pytest.mark.parametrize('model', PRESETS)
def test_every_base_model_can_be_asked_for(model):
    asked = wanted(model=model, data__instance_dir='photos')
    assert parsed(RECIPES.arguments(asked, Path('x'))) == RECIPES.checked(asked)
    assert RECIPES.defaults('dog', model)['model'] == RECIPES.checked(asked).model


@pytest.mark.parametrize(
    ('recipe', 'model', 'changed', 'told'),
    [
        ('cat', '', {}, "config is 'cat' but must be one of dog, "),
        ('../configs/dog', '', {}, 'must be one of'),
        ('dog', 'x', {}, 'names no base model'),
        ('dog', 'sdxl', {}, 'config.data.instance_dir must be given'),
        ('dog', '', {'base.stepz': 1}, 'config.base.stepz is not a known setting; did you mean config.base.steps?'),
        ('dog', '', {'base.steps': -1}, 'config.base.steps must be >= 0, got -1'),
        ('dog', '', {'base.steps': '7'}, 'config.base.steps must be an int'),
        ('dog', '', {'base.steps': [7]}, 'config.base.steps must be an int'),
        ('dog', '', {'base': {'steps': 7}}, 'config.base is no single setting'),
        ('dog', '', {'data.subjects': []}, 'config.data.subjects is no single setting'),
        ('dog', '', {'seed.x': 1}, 'config.seed.x is not a known setting'),
        ('dog', '', {'': 1}, 'is not a known setting'),
        ('dog', '', {'samples.prompts': 'a dog'}, 'config.samples.prompts must be a tuple of strings'),
        ('dog', '', {'model': ''}, 'config.model'),
        ('dog', '', {'data.instance_prompt': ''}, 'config.data.instance_prompt must be given'),
        ('dog', '', {'data.instance_prompt': '\ud800'}, 'not UTF-8'),
        ('storybook_base', '', {}, 'holds no settings of train'),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(recipe, model, changed, told):
    with pytest.raises(ConfigError) as error:
        RECIPES.checked(Wanted(recipe=recipe, model=model, settings=changed))
    assert told in str(error.value)


def test_the_settings_files_of_train_are_listed():
    found = {one.name: one for one in RECIPES.all()}
    assert set(found) == {'dog', 'subject'} and found['dog'].models == ('storybook', 'storybook-flow', *PRESETS)
    assert found['dog'].summary.startswith('DreamBooth on one dog')


def test_a_settings_file_that_changes_is_read_again_and_a_broken_one_says_why(tmp_path):
    path, recipes = tmp_path / 'own.py', Recipes(tmp_path)
    lines = 'from dreambooth_jax.config import DreamBoothConfig, to_config_dict\n'
    path.write_text(lines + 'def get_config():\n    return to_config_dict(DreamBoothConfig(seed=1))\n')
    assert [one.name for one in recipes.all()] == ['own'] and recipes.defaults('own', '')['seed'] == 1
    path.write_text(lines + 'def get_config():\n    raise ValueError("broken")\n')
    assert recipes.all() == []
    with pytest.raises(ConfigError, match='ValueError: broken'):
        recipes.defaults('own', '')


def test_a_run_goes_on_by_its_own_settings(tmp_path):
    changed = {'data__instance_prompt': 'a "sks" dog', 'samples__prompts': ('a', "b'c")}
    folder = write_run(tmp_path / 'my run', **changed)
    arguments = commands.again(folder, '--extend=5')
    assert arguments[1:] == [f'--workdir={folder}', '--extend=5']
    assert parsed(arguments[:2]) == settings(**changed)


def test_values_are_shown_as_they_are_typed():
    assert [commands.written(value) for value in ('a', None, True, 1e-6, ['a', 'b'], ('a',))] == [
        'a',
        'None',
        'True',
        '1e-06',
        "('a', 'b')",
        "('a',)",
    ]
