"""The weights that a run starts from: the model's own, or those of another run of the same model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, TextualInversionConfig
from dreambooth_jax.finetune.initial import initial
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import folders
from tests.support import smallest_pipelines, tiny_pipelines

MODEL = smallest_pipelines.folder('pixels')


@pytest.fixture(scope='module')
def original():
    return Cascade.load(MODEL)


@pytest.fixture(scope='module')
def other(original, tmp_path_factory):
    """A folder with the same networks; every weight is larger by 1."""
    moved = {
        stage: {
            component: {name: value + 1 for name, value in network.params.items()}
            for component, network in getattr(original, stage).components.items()
        }
        for stage in ('base', 'super_resolution')
    }
    cascade = original.with_params(**moved)
    folder = tmp_path_factory.mktemp('other') / 'run'
    folders.write_pipeline(cascade.base, folder / 'model', super_resolution=cascade.super_resolution)
    return folder


def settings(**more):
    return dataclasses.replace(DreamBoothConfig(), model=str(MODEL), **more)


@pytest.mark.parametrize('kind', [None, 'int8'])
def test_the_other_run_is_quantised_as_the_model_is(other, kind):
    cascade, hashes = initial(settings(init_from=str(other)), Cascade.load(MODEL, frozen_dtype=kind), dtype=jnp.float32)
    expected = Cascade.load(other, frozen_dtype=kind)
    for stage in ('base', 'super_resolution'):
        for component, network in getattr(cascade, stage).components.items():
            assert network.frozen_dtype == kind
            for name, value in getattr(expected, stage).components[component].params.items():
                np.testing.assert_array_equal(network.params[name], value)
    weights = [getattr(expected, stage).weights_hash for stage in ('base', 'super_resolution')]
    assert hashes == {'init_from': {'weights': ' '.join(weights)}}


def shift(cascade, original, stage):
    pairs = [
        (network.params[name], value)
        for component, network in getattr(cascade, stage).components.items()
        for name, value in getattr(original, stage).components[component].params.items()
    ]
    return {float(np.round(np.abs(np.asarray(new) - np.asarray(old)).mean(), 3)) for new, old in pairs}


def test_by_default_it_is_the_model(original):
    cascade, hashes = initial(settings(), original, dtype=jnp.float32)
    assert cascade is original and hashes == {}


def test_both_stages_with_their_text_encoder_come_from_the_other_run(original, other):
    cascade, hashes = initial(settings(init_from=str(other)), original, dtype=jnp.float32)
    assert shift(cascade, original, 'base') == shift(cascade, original, 'super_resolution') == {1.0}
    assert set(hashes) == {'init_from'} and len(hashes['init_from']['weights'].split()) == 2
    assert hashes == initial(settings(init_from=str(other / 'model')), original, dtype=jnp.float32)[1]


def test_without_a_second_stage_only_the_base_is_taken(original, other):
    alone = dataclasses.replace(original, super_resolution=None)
    cascade, _ = initial(settings(init_from=str(other)), alone, dtype=jnp.float32)
    assert cascade.super_resolution is None and shift(cascade, original, 'base') == {1.0}


def test_a_new_word_is_added_to_the_other_weights(original, other):
    config = settings(init_from=str(other), textual_inversion=TextualInversionConfig(token='<x>', initializer='dog'))
    cascade, _ = initial(config, original, dtype=jnp.float32)
    rows = cascade.base.components['text_encoder'].params['shared.embedding']
    before = original.base.components['text_encoder'].params['shared.embedding']
    assert rows.shape[0] == before.shape[0] + 1
    np.testing.assert_allclose(rows[:-1], np.asarray(before) + 1, atol=1e-6)


def test_a_model_of_another_kind_is_one_sentence(original):
    with pytest.raises(ConfigError) as error:
        initial(settings(init_from=str(tiny_pipelines.folder())), original, dtype=jnp.float32)
    told = str(error.value)
    assert told.startswith(f'config.init_from is {str(tiny_pipelines.folder())!r}, whose base stage has another ')
    assert told.endswith(f' than {original.base.name}; give a run of the same model') and '\n' not in told
