"""Stable Diffusion 3's transformer against diffusers' on random weights, its table of positions, and its errors."""

import functools
import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional, sd3
from dreambooth_jax.models.sd3 import SD3Transformer2DModel
from dreambooth_jax.weights import mapping
from tests.support.network_parity import assert_all_gradients_same, assert_same_output, run_both
from tests.support.torch_reference import largest_relative_difference, quick_jit, randomise

CONFIG = {
    '_class_name': 'SD3Transformer2DModel',
    'attention_head_dim': 8,
    'caption_projection_dim': 16,
    'dual_attention_layers': [0, 1],
    'in_channels': 4,
    'joint_attention_dim': 12,
    'num_attention_heads': 2,
    'num_layers': 5,
    'out_channels': 4,
    'pooled_projection_dim': 10,
    'pos_embed_max_size': 6,
    'qk_norm': 'rms_norm',
    'sample_size': 8,
}
FIRST = {**CONFIG, 'dual_attention_layers': [], 'num_layers': 2, 'qk_norm': None}  # as the first Stable Diffusion 3
BATCH, HEIGHT, WIDTH, LENGTH = 2, 6, 8, 5
TIME = np.float32([900.0, 12.3])
TABLE = 'pos_embed.pos_embed'


def build(config, **options):
    return functional.abstract(lambda: SD3Transformer2DModel(config, rngs=functional.Keys(0), **options))


def torch_network(config):
    return diffusers.SD3Transformer2DModel(**{k: v for k, v in config.items() if not k.startswith('_')})


@functools.cache
def both(first=False):
    """The same network and inputs on both sides, run forward and backward once."""
    config = FIRST if first else CONFIG
    theirs = randomise(torch_network(config), seed=1, std=0.2)
    rng = np.random.default_rng(2)
    shapes = ((BATCH, HEIGHT, WIDTH, 4), (BATCH, LENGTH, 12), (BATCH, 10))
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def torch_forward(sample, text, pooled):
        output = theirs(
            hidden_states=sample.permute(0, 3, 1, 2),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.from_numpy(TIME),
        ).sample
        return output.permute(0, 2, 3, 1)

    apply, abstract = build(config, remat=not first)
    table = jnp.asarray(theirs.pos_embed.pos_embed.numpy())
    assert abstract.pop(TABLE).shape == table.shape

    def ours(params, sample, text, pooled):
        return apply({**params, TABLE: table}, sample, TIME, text, pooled)

    run = run_both(theirs, torch_forward, ours, abstract, inputs)
    run.params[TABLE] = table
    return run


@pytest.mark.parametrize('first', [False, True])
def test_the_velocity_and_its_gradients_match_diffusers(first):
    assert_same_output(both(first))
    assert_all_gradients_same(both(first))


def test_names_and_shapes_in_files_are_those_of_diffusers():
    theirs = torch_network(CONFIG).state_dict()
    ours = mapping.torch_names(nnx.eval_shape(lambda: SD3Transformer2DModel(CONFIG, rngs=functional.Keys(0))))
    assert {name: found.shape for name, found in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


@pytest.mark.slow
def test_a_new_network_has_the_table_of_diffusers_and_predicts_zero():
    config = {**CONFIG, 'dual_attention_layers': [0], 'num_layers': 3}  # one block of each kind
    apply, params = functional.init(lambda rngs: SD3Transformer2DModel(config, rngs=rngs), seed=0)
    np.testing.assert_allclose(params[TABLE], both().params[TABLE], atol=1e-5)
    sample, text, pooled = both().inputs
    assert not np.any(quick_jit(apply)(params, sample, TIME, text, pooled))


def test_the_table_is_the_only_constant():
    model = nnx.eval_shape(lambda: SD3Transformer2DModel(CONFIG, rngs=functional.Keys(0)))
    assert functional.constants(model) == {TABLE}


@pytest.mark.slow
def test_half_precision_stays_near_with_float32_output():
    run = both()
    sample, text, pooled = run.inputs
    ours = quick_jit(build(CONFIG, dtype=jnp.bfloat16)[0])(run.params, sample, TIME, text, pooled)
    assert ours.dtype == jnp.float32
    assert 1e-4 < largest_relative_difference(ours, run.output[1]) < 0.1


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.SD3Transformer2DModel.__init__)
    assert {name: p.default for name, p in signature.parameters.items() if name != 'self'} == sd3.DEFAULTS


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'patch_size': 1}, 'patch_size is 1 but must be 2: no other value is implemented'),
        ({'qk_norm': 'layer_norm'}, "qk_norm is 'layer_norm' but must be one of (None, 'rms_norm')"),
        (
            {'caption_projection_dim': 32},
            'caption_projection_dim is 32 but must be num_attention_heads * attention_head_dim, which is 16',
        ),
        (
            {'dual_attention_layers': [5]},
            'dual_attention_layers is [5] but must be a list of integers from 0 to num_layers - 1, which is 4',
        ),
    ],
)
def test_unsupported_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        SD3Transformer2DModel({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == f'sd3 config: {sentence}'


@pytest.mark.parametrize(
    'sample, text, pooled, sentence',
    [
        ((2, 5, 8, 4), 12, 10, 'sample has shape (2, 5, 8, 4) but must be [B, h, w, 4] with h and w multiples of 2'),
        ((2, 6, 8, 4), 13, 10, 'encoder_hidden_states have shape (2, 5, 13) but must be [B, L, 12]'),
        ((2, 6, 8, 4), 12, 11, 'pooled has shape (2, 11) but must be [B, 10]'),
        ((2, 6, 14, 4), 12, 10, 'an image of 3 x 7 tokens exceeds pos_embed_max_size, which is 6'),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_sentence(sample, text, pooled, sentence):
    apply, abstract = build(CONFIG)
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (sample, (), (2, 5, text), (2, pooled)))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(apply, abstract, *shapes)
    assert str(error.value) == f'sd3: {sentence}'
