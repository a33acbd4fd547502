"""The parts of a pipeline: sizes, hashes, and networks exchanged in their order."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.weights import mapping
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import abstract_network, apply_of, filled_network, in_float32, network_tensors
from tests.support import tiny_networks as tiny
from tests.support import tiny_pipelines
from tests.support.reports import sentence_of
from tests.support.torch_reference import quick_jit


@pytest.fixture
def base():
    return tiny_pipelines.base()


def with_config(pipeline, **config):
    unet = dataclasses.replace(pipeline.denoiser, config={**pipeline.denoiser.config, **config})
    return pipeline.with_components(unet=unet)


def test_networks_are_exchanged_in_the_order_of_the_family(base):
    unet, text = base.denoiser, base.components['text_encoder']
    bare = base.with_components(unet=None)
    assert list(bare.components) == ['text_encoder'] and bare.denoiser is None
    both = bare.with_components(unet=unet)
    assert list(both.components) == ['unet', 'text_encoder'] and both.denoiser is unet
    assert both.text_encoders == {'text_encoder': text}
    assert list(base.components) == ['unet', 'text_encoder']  # left as it was


def test_sizes_are_those_of_square_images(base):
    assert (base.native_size, base.size, base.size_divisor) == (8, 8, 2)
    for size, says in (
        ([8, 12], 'are no squares (its sample_size is [8, 12])'),
        (None, 'have a size that it does not say'),
    ):
        odd = with_config(base, sample_size=size)
        assert odd.native_size is None
        assert sentence_of(lambda odd=odd: odd.size) == (
            f'the images that this IFPipeline was made for {says}; set config.data.resolution (sample: --resolution).'
        )
    second = with_config(tiny_pipelines.super_resolution(), sample_size=None)
    assert sentence_of(lambda: second.size).endswith("; write sample_size into its UNet's config.json.")


def test_a_pipeline_is_named_by_its_folder_or_its_class(base, tmp_path):
    assert base.name == 'this IFPipeline' and base.super_resolution_folder is None
    read = dataclasses.replace(base, folder=tmp_path)
    assert read.name == str(tmp_path) and read.super_resolution_folder is None
    (tmp_path / 'super_resolution').mkdir()
    (tmp_path / 'super_resolution' / 'model_index.json').write_text('{}')
    assert read.super_resolution_folder == tmp_path / 'super_resolution'


def test_options_that_are_not_given_have_diffusers_defaults(base):
    assert base.option('requires_safety_checker') is False
    assert (
        dataclasses.replace(base, options={'requires_safety_checker': True}).option('requires_safety_checker') is True
    )
    with pytest.raises(KeyError):
        base.option('force_zeros_for_empty_prompt')


def test_the_hash_of_weights_is_that_of_names_shapes_and_values_alone(base):
    def changed(**params):
        unet = dataclasses.replace(base.denoiser, params={**base.denoiser.params, **params})
        return base.with_components(unet=unet)

    name = 'conv_in.bias'
    value = base.denoiser.params[name]
    assert changed().weights_hash == base.weights_hash == with_config(base, sample_size=16).weights_hash
    assert changed(**{name: value.astype(jnp.float16).astype(np.float32)}).weights_hash != base.weights_hash
    others = [changed(**{name: value + 1}), changed(**{name: value[None]}), base.with_components(text_encoder=None)]
    assert len({base.weights_hash, *(other.weights_hash for other in others)}) == 4


def test_a_network_is_built_once_for_each_configuration_and_dtype():
    first = abstract_network('unet', tiny.UNET)
    assert abstract_network('unet', dict(reversed(tiny.UNET.items())), jnp.float32) is first
    assert abstract_network('unet', tiny.UNET, jnp.bfloat16) is not first
    assert abstract_network('unet', tiny.UNET, remat=True) is not first
    assert mapping.torch_names(first) is mapping.torch_names(first)
    function = apply_of('unet', tiny.UNET)
    assert apply_of('unet', dict(reversed(tiny.UNET.items())), jnp.float32) is function
    assert apply_of('unet', tiny.UNET, jnp.bfloat16) is not function
    assert apply_of('unet', tiny.UNET, frozen_dtype='int8') is not function


def test_a_network_keeps_its_values_through_a_checkpoint_and_its_dtype_aside(base):
    text = base.components['text_encoder']
    tensors = network_tensors('text_encoder', text)
    assert 'shared.weight' in tensors and not any(name.endswith('kernel') for name in tensors)
    model = abstract_network('text_encoder', text.config, jnp.bfloat16)
    again = filled_network(model, 'text_encoder', text.config, tensors, 'x', jnp.bfloat16)
    assert again.params.keys() == text.params.keys()
    assert all(np.array_equal(again.params[name], value) for name, value in text.params.items())
    ids = np.array([[3, 4, 1]])
    half, full, plain = (
        quick_jit(network.apply)(network.params, ids) for network in (again, in_float32('text_encoder', again), text)
    )
    np.testing.assert_array_equal(full, plain)
    assert in_float32('text_encoder', again).dtype == jnp.float32 and again.dtype == jnp.bfloat16
    assert 1e-6 < np.abs(np.asarray(half, np.float32) - plain).max() < 0.1


def test_tensors_that_do_not_fill_a_network_are_named(base):
    tensors = network_tensors('unet', base.denoiser)
    del tensors['conv_in.bias']
    with pytest.raises(WeightsError, match='^x does not fit this UNet2DConditionModel .1 missing.; ') as error:
        filled_network(abstract_network('unet', tiny.UNET), 'unet', tiny.UNET, tensors, 'x', jnp.float32)
    assert error.value.problems == ('missing: conv_in.bias [16]',)
