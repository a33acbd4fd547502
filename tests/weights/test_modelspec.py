"""Metadata of model files: what is written, what is refused, what is understood."""

import datetime

import pytest

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.families.stable_diffusion_files import SD1
from dreambooth_jax.weights import modelspec
from dreambooth_jax.weights.errors import WeightsError
from tests.support.layouts import LAYOUTS

DATE = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)


def test_the_keys_of_a_lora():
    assert modelspec.build(
        architecture=modelspec.adapter_of(SD1.architecture('epsilon'), modelspec.LORA),
        title='my dog',
        implementation=modelspec.DIFFUSERS_IMPLEMENTATION,
        resolution=512,
        prediction_type='v_prediction',
        date=DATE,
        trigger_phrase='sks',
        description=None,
    ) == {
        'modelspec.sai_model_spec': '1.0.1',
        'modelspec.architecture': 'stable-diffusion-v1/lora',
        'modelspec.implementation': 'diffusers',
        'modelspec.title': 'my dog',
        'modelspec.resolution': '512x512',
        'modelspec.prediction_type': 'v',
        'modelspec.date': '2024-02-29T12:30:00+00:00',
        'modelspec.trigger_phrase': 'sks',
    }


@pytest.mark.parametrize(
    ('family', 'prediction_type', 'expected'),
    [
        ('sd1', 'epsilon', 'stable-diffusion-v1'),
        ('sd2', 'epsilon', 'stable-diffusion-v2-512'),
        ('sd2', 'v_prediction', 'stable-diffusion-v2-768-v'),
        ('sdxl', 'v_prediction', 'stable-diffusion-xl-v1-base'),
    ],
)
def test_architectures(family, prediction_type, expected):
    assert LAYOUTS[family].architecture(prediction_type) == expected
    assert modelspec.adapter_of(expected, 'textual-inversion') == f'{expected}/textual-inversion'


@pytest.mark.parametrize(
    ('metadata', 'expected'),
    [
        ({'modelspec.prediction_type': 'v'}, 'v_prediction'),
        ({'modelspec.prediction_type': 'epsilon', 'modelspec.architecture': 'x'}, 'epsilon'),
        ({'modelspec.architecture': 'stable-diffusion-v2-768-v'}, 'v_prediction'),
        ({'modelspec.architecture': 'stable-diffusion-v2-512/lora'}, 'epsilon'),
        ({'modelspec.architecture': 'stable-diffusion-v1'}, None),
        ({'modelspec.prediction_type': 'flow'}, None),
        ({}, None),
    ],
)
def test_what_a_file_says_of_its_prediction(metadata, expected):
    assert modelspec.prediction_type(metadata, ORIGINALS) == expected


@pytest.mark.parametrize(('said', 'expected'), [('768x768', 768), ('512x768', None), ('auto', None), (None, None)])
def test_what_a_file_says_of_its_resolution(said, expected):
    assert modelspec.resolution({'modelspec.resolution': said} if said else {}) == expected


def test_every_wrong_key_is_named():
    metadata = modelspec.build(architecture='deepfloyd-if-i-xl/lora', title='x', resolution=(64, 128))
    assert metadata['modelspec.resolution'] == '64x128'
    wrong = {
        **metadata,
        'modelspec.title': '',
        'modelspec.prediction_type': 'v_prediction',
        'modelspec.colour': 'red',
        'modelspec.hash_md5': '0x1',
        'ss_network_dim': '4',
    }
    with pytest.raises(WeightsError) as error:
        modelspec.check(wrong)
    assert error.value.problems == (
        'missing: modelspec.title',
        "malformed: modelspec.prediction_type is 'v_prediction' but must be 'epsilon' or 'v'",
        'unknown: modelspec.colour',
    )


def test_a_prediction_of_another_kind_is_one_sentence():
    with pytest.raises(WeightsError) as error:
        modelspec.build(architecture='a', title='b', prediction_type='v')
    assert str(error.value) == "prediction_type is 'v'; it must be one of ('epsilon', 'v_prediction')."
