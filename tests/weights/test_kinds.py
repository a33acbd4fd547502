"""Which class a network is of, and that the classes are those of the libraries whose files are written."""

import importlib

import diffusers
import pytest

from dreambooth_jax.models.qwen3 import STATES_READ
from dreambooth_jax.weights.kinds import KINDS, is_partial, kind_of
from dreambooth_jax.weights.pipeline import DIFFUSERS_VERSION


@pytest.mark.parametrize(
    ('component', 'config', 'name'),
    [
        ('unet', {}, 'UNet2DConditionModel'),
        ('vae', {'_class_name': 'AutoencoderKL'}, 'AutoencoderKL'),
        ('text_encoder', {}, 'T5EncoderModel'),
        ('text_encoder', {'model_type': 'clip_text_model'}, 'CLIPTextModel'),
        ('text_encoder', {'model_type': 'qwen3', 'architectures': ['Qwen3Model']}, 'Qwen3Model'),
        ('text_encoder', {'model_type': 'qwen3'}, 'Qwen3ForCausalLM'),
        (
            'text_encoder_2',
            {'model_type': 'clip', 'architectures': ['CLIPTextModelWithProjection']},
            'CLIPTextModelWithProjection',
        ),
    ],
)
def test_the_class_of_a_network_follows_from_its_name_or_its_configuration(component, config, name):
    assert kind_of(component, config).class_name == name


@pytest.mark.parametrize(
    ('component', 'config', 'sentence'),
    [
        ('unet', {'_class_name': 'UNet2DModel'}, "_class_name is 'UNet2DModel' but must be 'UNet2DConditionModel'"),
        (
            'vae',
            {'_class_name': 'AutoencoderTiny'},
            "_class_name is 'AutoencoderTiny' but must be 'AutoencoderKL' or 'AutoencoderKLFlux2'",
        ),
        (
            'text_encoder',
            {'model_type': 'gemma'},
            "model_type is 'gemma' but must be one of ('t5', 'clip_text_model', 'qwen3')",
        ),
        (
            'text_encoder',
            {'model_type': 'clip', 'architectures': 'CLIPTextModel'},
            "architectures is 'CLIPTextModel' but must be a list of class names",
        ),
        (
            'unet',
            {'quantization_config': {}},
            'quantization_config is there, but quantised weights cannot be trained; give plain ones',
        ),
    ],
)
def test_a_network_of_another_class_is_one_sentence(component, config, sentence):
    with pytest.raises(ValueError) as error:
        kind_of(component, config)
    assert str(error.value) == sentence


def test_a_network_is_partial_if_its_family_says_how_it_is_read():
    config = {'model_type': 'qwen3'}
    assert is_partial('text_encoder', {**config, STATES_READ: 'quarters'})
    assert not is_partial('text_encoder', config) and not is_partial('unet', {})


def test_networks_are_classes_of_the_libraries_of_the_version_that_is_written():
    assert DIFFUSERS_VERSION == diffusers.__version__
    for name, kind in KINDS.items():
        assert kind.class_name == name and hasattr(importlib.import_module(kind.library), name)
        assert (kind.model_type is None) == (kind.library == 'diffusers')
