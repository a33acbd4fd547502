"""The one rule: torch's names and axes to ours and back, and every problem in one error."""

import re

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.weights import aliases, mapping
from dreambooth_jax.weights.pipeline import abstract_network
from tests.support import tiny_networks as tiny
from tests.support.torch_reference import to_ours

TIED = 'encoder.embed_tokens.weight'


def tensors_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope='module')
def unet():
    return abstract_network('unet', tiny.UNET)


@pytest.fixture(scope='module')
def tensors():
    return tensors_of(tiny.torch_unet())


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize('super_resolution', [False, True])
def test_unet_survives_the_round_trip_bit_for_bit(super_resolution):
    config = tiny.SUPER_RESOLUTION_UNET if super_resolution else tiny.UNET
    model, theirs = abstract_network('unet', config), tiny.torch_unet(super_resolution)
    params = mapping.load(model, tensors_of(theirs))
    # An independent translation, from torch's module types.
    assert equal(params, to_ours(theirs))
    assert equal(mapping.export(model, params), tensors_of(theirs))


def test_text_encoder_survives_the_round_trip_bit_for_bit():
    model, theirs = abstract_network('text_encoder', tiny.TEXT_ENCODER), tiny.torch_text_encoder()
    tensors = tensors_of(theirs)
    params = mapping.load(model, tensors, aliases=aliases.T5_ALIASES)
    assert equal(params, to_ours(theirs, ignored=(TIED,)))
    tensors.pop(TIED)
    assert equal(mapping.export(model, params), tensors)


def test_parameters_have_the_keys_shapes_and_dtype_of_the_network(unet, tensors):
    params = mapping.load(unet, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    _, wanted = functional.split(unet)
    assert list(params) == list(wanted)
    assert all(params[name].shape == wanted[name].shape and params[name].dtype == np.float32 for name in params)


def test_export_takes_device_arrays(unet, tensors):
    params = jax.tree.map(jax.numpy.asarray, mapping.load(unet, tensors))
    assert equal(mapping.export(unet, params), tensors)


def test_every_problem_is_listed_in_one_error(unet, tensors):
    wrong = dict(tensors)
    wrong.pop('conv_in.bias')
    wrong['conv_out.weight'] = wrong['conv_out.weight'][:3]
    wrong['vae.conv.weight'] = np.zeros((2, 3), np.float32)
    wrong['time_embedding.linear_1.bias'] = np.zeros(64, np.int64)
    with pytest.raises(mapping.WeightsError) as caught:
        mapping.load(unet, wrong, source='unet/x.safetensors')
    assert sorted(caught.value.problems) == [
        'missing: conv_in.bias [16]',
        'unused: vae.conv.weight [2, 3]',
        'wrong shape: conv_out.weight is [3, 16, 3, 3] but must be [6, 16, 3, 3]',
        'wrong type: time_embedding.linear_1.bias is int64 but must be a floating-point tensor',
    ]
    first = str(caught.value).splitlines()[0]
    counts = '1 missing, 1 unused, 1 wrong shape, 1 wrong type'
    assert first.startswith(f'unet/x.safetensors does not fit this UNet2DConditionModel ({counts}); ')
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_square_weights_are_transposed_and_swapped_axes_are_refused(unet, tensors):
    name = 'time_embedding.linear_2.weight'
    assert tensors[name].shape[0] == tensors[name].shape[1]
    assert np.array_equal(mapping.load(unet, tensors)['time_embedding.linear_2.kernel'], tensors[name].T)
    with pytest.raises(mapping.WeightsError, match=re.escape('conv_in.weight is [3, 16, 3, 3]')):
        mapping.load(unet, {**tensors, 'conv_in.weight': tensors['conv_in.weight'].swapaxes(0, 1)})


def test_a_wrong_model_is_summarised_and_still_holds_every_problem(unet):
    with pytest.raises(mapping.WeightsError, match='and [0-9]+ more') as caught:
        mapping.load(unet, {})
    assert len(caught.value.problems) == len(mapping.torch_names(unet))


def test_either_name_of_tied_weights_will_do_but_both_must_agree():
    model = abstract_network('text_encoder', tiny.TEXT_ENCODER)
    both = tensors_of(tiny.torch_text_encoder())
    only = {name: tensor for name, tensor in both.items() if name != 'shared.weight'}
    params = mapping.load(model, only, aliases=aliases.T5_ALIASES)
    assert np.array_equal(params['shared.embedding'], both['shared.weight'])
    with pytest.raises(mapping.WeightsError, match='duplicate: .*shared.weight.* both fill shared.embedding'):
        mapping.load(model, {**both, TIED: both[TIED] + 1}, aliases=aliases.T5_ALIASES)


def test_the_decoder_of_a_whole_t5_is_ignored_by_name():
    import transformers

    config = transformers.T5Config(**tiny.TEXT_ENCODER, tie_word_embeddings=False)
    tensors = tensors_of(transformers.T5ForConditionalGeneration(config))
    model = abstract_network('text_encoder', tiny.TEXT_ENCODER)
    mapping.load(model, tensors, aliases=aliases.T5_ALIASES, ignored=aliases.T5_IGNORED)
    with pytest.raises(mapping.WeightsError, match='unused: decoder'):
        mapping.load(model, tensors, aliases=aliases.T5_ALIASES)


def test_export_refuses_parameters_of_another_network(unet, tensors):
    params = mapping.load(unet, tensors)
    params['extra.kernel'] = params.pop('conv_in.kernel')
    params['conv_in.bias'] = np.zeros(3, np.float32)
    with pytest.raises(mapping.WeightsError) as caught:
        mapping.export(unet, params)
    assert set(caught.value.problems) == {
        'unused: extra.kernel',
        'missing: conv_in.kernel',
        'wrong shape: conv_in.bias is [3] but must be [16]',
    }


def test_every_layer_type_has_its_rule():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.conv = nnx.Conv(2, 3, (5, 7), rngs=rngs)
            self.table = nnx.Embed(4, 2, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(2, rngs=rngs), nnx.GroupNorm(2, num_groups=1, rngs=rngs)])
            self.rms = nnx.RMSNorm(2, rngs=rngs)
            self.bare = nnx.Param(jax.numpy.ones((1, 2)))

    theirs = {
        'dense': torch.nn.Linear(2, 3),
        'conv': torch.nn.Conv2d(2, 3, (5, 7)),
        'table': torch.nn.Embedding(4, 2),
        'norms.0': torch.nn.LayerNorm(2),
        'norms.1': torch.nn.GroupNorm(1, 2),
        'rms': torch.nn.RMSNorm(2),
    }
    shapes = {f'{a}.{b}': tuple(t.shape) for a, module in theirs.items() for b, t in module.named_parameters()}
    ours = mapping.torch_names(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    assert {name: parameter.shape for name, parameter in ours.items()} == {**shapes, 'bare': (1, 2)}
