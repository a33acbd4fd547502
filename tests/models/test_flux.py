"""FLUX.1's transformer against diffusers' on random weights, its positions, its start, and its errors."""

import functools
import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import flux, functional
from dreambooth_jax.models.flux import FluxTransformer2DModel
from dreambooth_jax.weights import mapping
from tests.support.network_parity import assert_all_gradients_same, assert_same_output, run_both
from tests.support.torch_reference import largest_relative_difference, quick_jit, randomise

CONFIG = {
    '_class_name': 'FluxTransformer2DModel',
    'attention_head_dim': 16,
    'axes_dims_rope': [4, 6, 6],
    'in_channels': 12,
    'joint_attention_dim': 20,
    'num_attention_heads': 2,
    'num_layers': 2,
    'num_single_layers': 3,
    'pooled_projection_dim': 10,
}
GUIDED = {**CONFIG, 'guidance_embeds': True, 'num_layers': 1, 'num_single_layers': 1, 'out_channels': 8}
BATCH, HEIGHT, WIDTH, LENGTH = 2, 3, 4, 5
TIME, GUIDANCE = np.float32([0.9, 0.123]), np.float32([3.5, 1.0])


def build(config, **options):
    return functional.abstract(lambda: FluxTransformer2DModel(config, rngs=functional.Keys(0), **options))


def torch_network(config):
    return diffusers.FluxTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith('_')})


@functools.cache
def both(guided=False):
    """The same network and inputs on both sides, run forward and backward once."""
    config = GUIDED if guided else CONFIG
    theirs = randomise(torch_network(config), seed=1, std=0.2)
    rng = np.random.default_rng(2)
    shapes = ((BATCH, HEIGHT, WIDTH, 12), (BATCH, LENGTH, 20), (BATCH, 10))
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    guidance = {'guidance': GUIDANCE} if guided else {}

    def torch_forward(sample, text, pooled):
        output = theirs(
            hidden_states=sample.reshape(BATCH, HEIGHT * WIDTH, -1),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.from_numpy(TIME),
            # The positions that the pipeline makes.
            img_ids=diffusers.FluxPipeline._prepare_latent_image_ids(1, HEIGHT, WIDTH, 'cpu', torch.float32),
            txt_ids=torch.zeros(LENGTH, 3),
            guidance=torch.from_numpy(GUIDANCE) if guided else None,
        ).sample
        return output.reshape(BATCH, HEIGHT, WIDTH, -1)

    apply, abstract = build(config, remat=not guided)
    ours = lambda params, sample, text, pooled: apply(params, sample, TIME, text, pooled, **guidance)  # noqa: E731
    return run_both(theirs, torch_forward, ours, abstract, inputs)


@pytest.mark.parametrize('guided', [False, True])
def test_the_velocity_and_its_gradients_match_diffusers(guided):
    assert_same_output(both(guided))
    assert_all_gradients_same(both(guided))


def test_names_and_shapes_in_files_are_those_of_diffusers():
    theirs = torch_network(GUIDED).state_dict()
    ours = mapping.torch_names(nnx.eval_shape(lambda: FluxTransformer2DModel(GUIDED, rngs=functional.Keys(0))))
    assert {name: found.shape for name, found in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


@pytest.mark.slow
def test_half_precision_stays_near_with_float32_output():
    run = both()
    sample, text, pooled = run.inputs
    ours = quick_jit(build(CONFIG, dtype=jnp.bfloat16)[0])(run.params, sample, TIME, text, pooled)
    assert ours.dtype == jnp.float32
    assert 1e-4 < largest_relative_difference(ours, run.output[1]) < 0.1


def test_a_new_network_predicts_zero():
    apply, params = functional.init(lambda rngs: FluxTransformer2DModel(GUIDED, rngs=rngs), seed=0)
    sample, text, pooled = both(True).inputs
    assert not np.any(quick_jit(apply)(params, sample, TIME, text, pooled, guidance=1.0))


def test_the_text_has_no_positions_and_the_image_rows_and_columns():
    assert flux.positions(2, 1, 2).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    expected = diffusers.FluxPipeline._prepare_latent_image_ids(1, 3, 4, 'cpu', torch.int64)
    np.testing.assert_array_equal(flux.positions(0, 3, 4), expected)


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.FluxTransformer2DModel.__init__)
    assert {name: p.default for name, p in signature.parameters.items() if name != 'self'} == flux.DEFAULTS


def test_unsupported_values_are_named_in_one_sentence():
    axes = 'a list of 3 even integers with the sum attention_head_dim, which is 16'
    for change, sentence in (
        ({'patch_size': 2}, 'patch_size is 2 but must be 1: no other value is implemented'),
        ({'axes_dims_rope': [4, 4, 4, 4]}, f'axes_dims_rope is [4, 4, 4, 4] but must be {axes}'),
    ):
        with pytest.raises(ValueError) as error:
            FluxTransformer2DModel({**CONFIG, **change}, rngs=functional.Keys(0))
        assert str(error.value) == f'flux config: {sentence}'


@pytest.mark.parametrize(
    'config, pooled, guidance, sentence',
    [
        (CONFIG, (2, 11), None, 'pooled has shape (2, 11) but must be [B, 10]'),
        (CONFIG, (2, 10), 4.0, 'guidance is given, but guidance_embeds is False'),
        (GUIDED, (2, 10), None, 'guidance is missing, but guidance_embeds is True'),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_sentence(config, pooled, guidance, sentence):
    apply, abstract = build(config)
    sample, text, pooled = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 4, 12), (2, 5, 20), pooled))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(functools.partial(apply, guidance=guidance), abstract, sample, 0.5, text, pooled)
    assert str(error.value) == f'flux: {sentence}'
