"""LPIPS against its definition in torch on random weights, under the names of all files that hold it."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.models import functional
from dreambooth_jax.models.lpips import LPIPS, SMALLEST
from dreambooth_jax.weights import mapping
from tests.support.lpips_reference import distance, load, model, package_names, torchvision_names
from tests.support.torch_reference import quick_jit


def without_the_second_name():
    """As safetensors' save_model stores it: a tensor with two names once."""
    return {name: value for name, value in package_names().items() if not name.startswith('lin0')}


@functools.cache
def ours():
    apply, params = functional.split(model())[0], load(package_names())
    return functools.partial(quick_jit(apply), params)


def pairs(height, width):
    rng = np.random.default_rng(height * width)
    first = rng.uniform(-1, 1, (3, height, width, 3)).astype(np.float32)
    noise = np.array([0.0, 0.1, 1.0]).reshape(-1, 1, 1, 1)
    return first, np.clip(first + noise * rng.normal(size=first.shape), -1, 1).astype(np.float32)


@pytest.mark.parametrize('size', [(64, 64), (SMALLEST, SMALLEST), (67, 90)])
def test_distances_match_the_definition(size):
    first, second = pairs(*size)
    expected = distance(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (first, second)))
    assert expected[0] == 0 and 0.01 < expected[1] < expected[2]
    found = ours()(first, second)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_equal_images_have_no_distance_and_the_order_does_not_matter():
    first, second = pairs(64, 64)
    np.testing.assert_array_equal(ours()(first, first), 0)
    np.testing.assert_allclose(ours()(first, second), ours()(second, first), rtol=1e-6)


@pytest.mark.parametrize('names', [torchvision_names, without_the_second_name])
def test_files_under_other_names_hold_the_same(names):
    expected, found = load(package_names()), load(names())
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_it_has_the_published_number_of_parameters():
    _, params = functional.abstract(lambda: LPIPS(rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == 2_469_696 + 64 + 192 + 384 + 256 + 256


def test_vgg_and_lone_weights_of_channels_are_refused():
    """A file of LPIPS(net='vgg') has some names in common, weights/v0.1/alex.pth only those of the channels."""
    tensors = package_names()
    tensors['net.slice2.5.weight'] = tensors.pop('net.slice2.3.weight')
    with pytest.raises(mapping.WeightsError, match=r'does not fit this LPIPS \(1 missing, 1 unused\)') as error:
        load(tensors)
    assert 'unused: net.slice2.5.weight [192, 64, 5, 5]' in error.value.problems
    with pytest.raises(mapping.WeightsError, match=r'does not fit this LPIPS \(10 missing\)'):
        load({name: value for name, value in torchvision_names().items() if name.startswith('lin')})


@pytest.mark.parametrize('shape', [(2, 30, 64, 3), (2, 64, 64, 1), (64, 64, 3)])
def test_images_that_do_not_fit_are_named_in_one_sentence(shape):
    with pytest.raises(ValueError) as error:
        ours()(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    allowed = 'equal [B, H, W, 3] with H and W of at least 31'
    assert str(error.value) == f'lpips: images have shapes {shape} and {shape} but must be {allowed}'
