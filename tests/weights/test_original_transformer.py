"""The tensors of transformers in their makers' layout: diffusers converts ours to its own, and we read them back."""

import math

import numpy as np
import pytest

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.weights.lora_original import Rule
from dreambooth_jax.weights.mapping import torch_names
from dreambooth_jax.weights.original_transformer import OriginalTransformer, Place, differences, own_names
from dreambooth_jax.weights.pipeline import abstract_network
from tests.models.test_parameter_counts import FLOW
from tests.support.original_transformers import ORIGINALS

LAYOUT = OriginalTransformer(
    layers=(
        Rule(r'blocks\.(\d+)\.to_([qkv])', 'double.{0}.qkv', ('q', 'k', 'v')),
        Rule(r'blocks\.(\d+)\.(attn|mlp)', 'single.{0}.linear1', ('attn', 'mlp'), (1, 3)),
    ),
    norms=(Rule(r'blocks\.(\d+)\.norm', 'double.{0}.query_norm'),),
    shift_first=(Rule(r'(norm_out|norm_in)\.linear', '{0}.1'),),
    tensors=(Rule(r'pad_token', 'pad'),),
    marks=('pad',),
    implementation='https://github.com/x/y',
)
rng = np.random.default_rng(0)
TENSORS = {
    **{f'blocks.7.to_{letter}.weight': rng.normal(size=(4, 2)) for letter in 'qkv'},
    **{f'blocks.7.to_{letter}.bias': rng.normal(size=4) for letter in 'qkv'},
    'blocks.7.attn.weight': rng.normal(size=(2, 5)),
    'blocks.7.mlp.weight': rng.normal(size=(6, 5)),
    'blocks.7.norm.weight': rng.normal(size=3),
    'norm_out.linear.weight': rng.normal(size=(8, 4)),
    'norm_out.linear.bias': rng.normal(size=8),
    'norm_in.linear.weight': rng.normal(size=(24, 4)),
    'norm_in.linear.bias': rng.normal(size=24),
    'pad_token': rng.normal(size=(1, 4)),
}
SHAPES = {name: value.shape for name, value in TENSORS.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_joint_layers_norms_shifts_and_plain_tensors_have_their_places():
    joined = LAYOUT.joined(TENSORS)
    q, k, v = (TENSORS[f'blocks.7.to_{letter}.weight'] for letter in 'qkv')
    np.testing.assert_array_equal(joined['double.7.qkv.weight'], [*q, *k, *v])
    np.testing.assert_array_equal(joined['single.7.linear1.weight'][:2], TENSORS['blocks.7.attn.weight'])
    np.testing.assert_array_equal(joined['single.7.linear1.weight'][2:], TENSORS['blocks.7.mlp.weight'])
    for end in ('weight', 'bias'):
        scale, shift = np.split(TENSORS[f'norm_out.linear.{end}'], 2)
        np.testing.assert_array_equal(joined[f'norm_out.1.{end}'], [*shift, *scale])
        # With a gate, and all of it twice, the order is the same there.
        np.testing.assert_array_equal(joined[f'norm_in.1.{end}'], TENSORS[f'norm_in.linear.{end}'])
    assert joined['double.7.query_norm.scale'] is TENSORS['blocks.7.norm.weight']
    assert LAYOUT.places(SHAPES)['blocks.7.to_k.bias'] == Place('double.7.qkv.bias', 1, (1, 1, 1))
    assert LAYOUT.shapes(SHAPES) == {name: value.shape for name, value in joined.items()}
    assert LAYOUT.other_names(SHAPES) == {'double.7.query_norm.weight': 'double.7.query_norm.scale'}
    apart = LAYOUT.taken_apart(joined, SHAPES)
    assert_equal(apart, TENSORS)
    assert np.shares_memory(apart['blocks.7.to_v.weight'], joined['double.7.qkv.weight'])


def test_tensors_without_a_rule_or_with_one_place_are_a_mistake_in_the_rules():
    with pytest.raises(ValueError, match='other.weight has no name in the layout of https://github.com/x/y'):
        LAYOUT.places({'other.weight': (2, 2)})
    twice = OriginalTransformer(layers=(Rule('(a|b)', 'c'),), marks=(), implementation='x')
    with pytest.raises(ValueError, match=r'b.weight and a.weight would both be c.weight'):
        twice.places({'a.weight': (2, 2), 'b.weight': (2, 2)})


@pytest.mark.parametrize('prefix', ['', 'model.diffusion_model.', 'diffusion_model.'])
def test_a_transformer_has_a_prefix_or_none_and_what_lies_beside_it_is_left_out(prefix):
    beside = ('vae.a', 'first_stage_model.a', 'text_encoders.t5.a', 'text_encoder_2.a', 'conditioner.a')
    assert own_names([*beside, f'{prefix}a.weight', 'other']) == {'a.weight': f'{prefix}a.weight', 'other': 'other'}


def test_differences_are_named_with_their_shapes():
    found = {'a': (2, 3), 'b': (1,), 'norm_final.weight': (7,)}
    assert differences(found, {'a': (2, 3), 'b': (1,)}, [r'norm_final\.weight']) == []
    assert differences(found, {'a': (3, 2), 'c': ()}) == [
        'missing: c []',
        'unused: b [1]',
        'unused: norm_final.weight [7]',
        'wrong shape: a is [2, 3] but must be [3, 2]',
    ]


@pytest.mark.parametrize('name', ORIGINALS)
def test_diffusers_converts_our_tensors_to_its_own(name):
    original, tensors = ORIGINALS[name].family.original_transformer, ORIGINALS[name].diffusers_tensors()
    joined = original.joined(tensors)
    assert len(joined) < len(tensors)
    assert_equal(ORIGINALS[name].converted(joined), tensors)
    assert_equal(original.taken_apart(joined, {name: value.shape for name, value in tensors.items()}), tensors)


PUBLISHED = {  # and how many tensors the published file has, where that is known
    'flux1-dev': ('FluxPipeline', 780),
    'flux1-schnell': ('FluxPipeline', 776),
    'flux2-klein-base-4b': ('Flux2KleinPipeline', None),
    'flux2-klein-base-9b': ('Flux2KleinPipeline', None),
    'z-image': ('ZImagePipeline', 453),
    'stable-diffusion-3.5-medium': ('StableDiffusion3Pipeline', None),
    'stable-diffusion-3.5-large': ('StableDiffusion3Pipeline', None),
}


@pytest.mark.parametrize('model', PUBLISHED)
def test_every_tensor_of_the_published_models_has_a_place_of_its_own_and_marks_tell_the_families_apart(model):
    class_name, count = PUBLISHED[model]
    network, config, _ = FLOW[model]
    config = {**config, '_class_name': network.__name__}
    shapes = {name: parameter.shape for name, parameter in torch_names(abstract_network('transformer', config)).items()}
    families = {family.class_name: family.original_transformer for family in FAMILIES if family.original_transformer}
    found = families[class_name].shapes(shapes)
    assert sum(map(math.prod, found.values())) == sum(map(math.prod, shapes.values()))
    assert len(found) == (count or len(found))
    for names in (found, shapes):
        assert [family for family, one in families.items() if any(mark in names for mark in one.marks)] == [class_name]
