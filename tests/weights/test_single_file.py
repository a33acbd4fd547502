"""Single files of the original layout: diffusers opens ours, round trips are exact, one sentence for what is wrong."""

import logging

import numpy as np
import pytest
import torch

from dreambooth_jax.weights import original_layout, single_file
from dreambooth_jax.weights.errors import WeightsError
from tests.weights import tiny_stable_diffusion as tiny


def configs(family, prediction_type='epsilon'):
    return {**tiny.CONFIGS[family], 'scheduler': tiny.scheduler(prediction_type)}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


@pytest.fixture(scope='module', params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope='module')
def original(family):
    return original_layout.to_original(tiny.components(family), configs(family))


@pytest.fixture(scope='module')
def written(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family) / 'model.safetensors'
    assert single_file.write_single_file(path, tiny.components(family), configs(family)) == path
    return path


def test_from_original_is_the_inverse_of_to_original(family, original):
    back = original_layout.from_original(original, configs(family))
    assert back.keys() == tiny.components(family).keys()
    for component, tensors in tiny.components(family).items():
        same(back[component], tensors)


def test_diffusers_opens_the_file_as_the_pipeline_that_was_written(family, written, tmp_path, caplog, capfd):
    folder = tmp_path / 'pipeline'
    tiny.pipeline(family).save_pretrained(folder)
    for weights in folder.rglob('*.safetensors'):
        weights.unlink()  # only configurations may come from there
    with caplog.at_level(logging.WARNING):
        found = tiny.PIPELINES[family].from_single_file(
            written, config=str(folder), local_files_only=True, tokenizer=None,
            **({'tokenizer_2': None} if family == 'sdxl' else {}),
        )  # fmt: skip
    said = caplog.text + capfd.readouterr().err
    assert [line for line in said.splitlines() if 'not used' in line or 'newly' in line or 'missing' in line] == []
    for component, network in tiny.networks(family).items():
        read = dict(getattr(found, component).named_parameters())
        assert read.keys() == dict(network.named_parameters()).keys()
        for name, value in network.named_parameters():
            assert torch.equal(read[name], value), name


def test_the_file_is_read_back_with_the_configurations_that_fit(family, written):
    prediction_type = {'sd2': 'epsilon'}.get(family)
    found = single_file.read_single_file(written, prediction_type=prediction_type)
    assert found.family == family
    for component, tensors in tiny.components(family).items():
        same(found.components[component], tensors)
        expected = tiny.CONFIGS[family][component]
        assert {key: found.configs[component].get(key, expected[key]) for key in expected} == expected
