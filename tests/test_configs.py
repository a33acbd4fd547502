"""Every file in configs/ resolves, and what it describes can be built."""

import dataclasses
import pathlib
import runpy

import pytest

from dreambooth_jax.config import BUILT_IN, ConfigError, DreamBoothConfig, PretrainConfig, resolve
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.families import z_image
from dreambooth_jax.models import functional, t5, unet_config
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.weights import guard
from dreambooth_jax.weights.pipeline import abstract_network

FILES = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
PRETRAIN = [path for path in FILES if path.stem.startswith('storybook_')]
CASCADE = [path for path in PRETRAIN if path.stem != 'storybook_flow']


def get_config(path, *argument):
    return runpy.run_path(str(path))['get_config'](*argument)


def named(stem):
    return next(path for path in FILES if path.stem == stem)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_every_config_file_resolves(path):
    resolve(PretrainConfig if path in PRETRAIN else DreamBoothConfig, get_config(path))


BASE_MODELS = runpy.run_path(str(next(path for path in FILES if path.stem == 'dog')))['MODELS']


@pytest.mark.parametrize('model', BASE_MODELS)
def test_every_base_model_resolves_once_it_has_photos(model):
    config = get_config(named('dog'), model)
    if model not in BUILT_IN:
        with pytest.raises(ConfigError, match=r'config\.data\.instance_dir must be given when config\.model is'):
            resolve(DreamBoothConfig, config)
        config.data.instance_dir = 'photos'
    resolved = resolve(DreamBoothConfig, config)
    assert (resolved.data.instance_prompt, resolved.data.class_prompt) == ('a sks dog', 'a dog')
    assert resolved.prior.weight == 1 and resolved.base.steps > 0


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_every_config_file_opens_with_result_cost_and_command(path):
    header = path.read_text().split('"""')[1]
    assert 'Expected result:' in header
    assert 'Measured' in header
    assert f'--config=configs/{path.name}' in header


@pytest.mark.parametrize('path', CASCADE, ids=lambda path: path.name)
def test_pretraining_describes_networks_that_can_be_built(path):
    config = resolve(PretrainConfig, get_config(path))
    unet = unet_config.resolve(config.unet)
    schedule = schedules.from_config(config.scheduler)
    assert unet['out_channels'] == (6 if schedule.learns_variance else 3)
    if config.text_encoder:
        assert t5.resolve(config.text_encoder)['d_model'] == unet['encoder_hid_dim']


@pytest.mark.parametrize('stage', ['autoencoder', 'base'])
def test_the_flow_model_has_networks_that_fit_and_weights_of_20_mb(stage):
    config = resolve(PretrainConfig, get_config(named('storybook_flow'), stage))
    networks = {name: getattr(config, name) for name in ('transformer', 'vae', 'text_encoder')}
    guard.check_networks(z_image.FAMILY, networks, 'the file')
    guard.check_schedule(config.scheduler, 'the file', z_image.FAMILY.read_schedule)
    counts = [functional.parameter_count(functional.split(abstract_network(*one))[1]) for one in networks.items()]
    assert 2 * sum(counts) <= 20e6  # in half precision
    assert (config.stage, config.init is None) == (stage, stage == 'autoencoder')


def test_both_stages_read_the_same_text_states():
    base, super_resolution = (get_config(path).unet for path in CASCADE)
    assert base.encoder_hid_dim == super_resolution.encoder_hid_dim
    assert super_resolution.sample_size % base.sample_size == 0


@pytest.mark.parametrize('name', SUBJECTS)
def test_every_subject_has_a_config(name):
    config = resolve(DreamBoothConfig, get_config(named('subject'), name))
    assert config.data.subject == name
    assert config.data.class_prompt == f'a {SUBJECTS[name].class_noun}'


def test_a_subject_takes_the_recipe_of_the_model_after_the_comma():
    config = resolve(DreamBoothConfig, get_config(named('subject'), 'teapot,storybook-flow'))
    assert config == resolve(DreamBoothConfig, get_config(named('subject'), 'teapot'))
    recipe = resolve(DreamBoothConfig, get_config(named('dog'), 'storybook-flow'))
    assert (config.model, config.data.subject) == ('storybook-flow', 'teapot')
    assert config.base == dataclasses.replace(recipe.base, steps=200) and recipe.base.steps == 110
    assert resolve(DreamBoothConfig, get_config(named('subject'), 'cat2,storybook-flow')).base == recipe.base
    assert 'in the snow' in config.prior.phrases and 'wearing a red hat' in recipe.prior.phrases
    assert 'wearing a red hat' not in config.prior.phrases


def test_the_dataset_has_thirty_subjects():
    assert len(SUBJECTS) == 30


@pytest.mark.parametrize('model', ['storybook', 'storybook-flow'])
def test_dog_is_the_subject_config_of_the_dog(model):
    dog, subject = get_config(named('dog'), model), get_config(named('subject'), f'dog,{model}')
    subject.samples.prompts = dog.samples.prompts
    assert resolve(DreamBoothConfig, subject) == resolve(DreamBoothConfig, dog)


def test_an_unknown_subject_lists_all():
    with pytest.raises(ConfigError) as error:
        get_config(named('subject'), 'unicorn')
    assert str(error.value) == (
        f'--config=configs/subject.py:unicorn names no subject; the name must be one of {tuple(SUBJECTS)}'
    )


def test_an_unknown_base_model_is_one_sentence():
    with pytest.raises(ConfigError) as error:
        get_config(named('dog'), 'imagen')
    assert str(error.value).startswith(
        "--config=configs/dog.py:imagen names no base model; the name must be one of ('storybook'"
    )
