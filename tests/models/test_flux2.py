"""FLUX.2's transformer against diffusers' on random weights, its positions, its start, and its errors."""

import functools
import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import flux2, functional
from dreambooth_jax.models.flux2 import Flux2Transformer2DModel
from dreambooth_jax.weights import mapping
from tests.support.network_parity import assert_all_gradients_same, assert_same_output, run_both
from tests.support.torch_reference import largest_relative_difference, quick_jit, randomise

CONFIG = {
    '_class_name': 'Flux2Transformer2DModel',
    'attention_head_dim': 16,
    'axes_dims_rope': [2, 4, 6, 4],
    'guidance_embeds': False,
    'in_channels': 12,
    'joint_attention_dim': 20,
    'mlp_ratio': 1.5,
    'num_attention_heads': 2,
    'num_layers': 2,
    'num_single_layers': 3,
    'timestep_guidance_channels': 32,
}
GUIDED = {**CONFIG, 'guidance_embeds': True, 'num_layers': 1, 'num_single_layers': 1, 'out_channels': 8}
BATCH, HEIGHT, WIDTH, LENGTH = 2, 3, 4, 5


def build(config, **options):
    return functional.abstract(lambda: Flux2Transformer2DModel(config, rngs=functional.Keys(0), **options))


@functools.cache
def both(guided=False):
    """The same network and inputs on both sides, run forward and backward once."""
    config = GUIDED if guided else CONFIG
    options = {key: value for key, value in config.items() if not key.startswith('_')}
    theirs = randomise(diffusers.Flux2Transformer2DModel(**options), seed=1, std=0.2)
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(BATCH, HEIGHT, WIDTH, 12)).astype(np.float32)
    text = rng.normal(size=(BATCH, LENGTH, 20)).astype(np.float32)
    time = np.array([0.9, 0.123], np.float32)
    guidance = {'guidance': np.array([4.0, 1.0], np.float32)} if guided else {}

    def torch_forward(sample, states):
        # The positions that the pipeline makes.
        output = theirs(
            hidden_states=sample.reshape(BATCH, HEIGHT * WIDTH, -1),
            encoder_hidden_states=states,
            timestep=torch.from_numpy(time),
            img_ids=diffusers.Flux2KleinPipeline._prepare_latent_ids(torch.zeros(BATCH, 12, HEIGHT, WIDTH)),
            txt_ids=diffusers.Flux2KleinPipeline._prepare_text_ids(states),
            guidance=torch.from_numpy(guidance['guidance']) if guided else None,
        ).sample
        return output.reshape(BATCH, HEIGHT, WIDTH, -1)

    apply, abstract = build(config, remat=not guided)
    ours = lambda params, sample, text: apply(params, sample, time, text, **guidance)  # noqa: E731
    run = run_both(theirs, torch_forward, ours, abstract, [sample, text])
    run.inputs = (sample, time, text)
    return run


@pytest.mark.parametrize('guided', [False, True])
def test_the_velocity_matches_diffusers(guided):
    assert_same_output(both(guided))


@pytest.mark.parametrize('guided', [False, True])
def test_gradients_match_diffusers(guided):
    assert_all_gradients_same(both(guided))


def test_names_and_shapes_in_files_are_those_of_diffusers():
    options = {key: value for key, value in CONFIG.items() if not key.startswith('_')}
    theirs = diffusers.Flux2Transformer2DModel(**options).state_dict()
    ours = mapping.torch_names(nnx.eval_shape(lambda: Flux2Transformer2DModel(CONFIG, rngs=functional.Keys(0))))
    assert {name: found.shape for name, found in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


@pytest.mark.slow
def test_half_precision_stays_near_with_float32_output():
    run = both()
    ours = quick_jit(build(CONFIG, dtype=jnp.bfloat16)[0])(run.params, *run.inputs)
    assert ours.dtype == jnp.float32
    assert 1e-4 < largest_relative_difference(ours, run.output[1]) < 0.1


def test_a_new_network_predicts_zero_but_can_learn():
    apply, params = functional.init(lambda rngs: Flux2Transformer2DModel(CONFIG, rngs=rngs), seed=0)
    sample, time, text = both().inputs

    def answer(kernel):
        predicted = apply({**params, 'proj_out.kernel': kernel}, sample, time, text)
        return jnp.sum(predicted + predicted**2), predicted

    gradient, predicted = quick_jit(jax.grad(answer, has_aux=True))(params['proj_out.kernel'])
    assert np.any(gradient) and not np.any(predicted)


def test_positions_are_places_in_the_text_and_rows_and_columns_of_the_image():
    assert flux2.positions(2, 2, 2).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.Flux2Transformer2DModel.__init__)
    assert {name: p.default for name, p in signature.parameters.items() if name != 'self'} == flux2.DEFAULTS


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'patch_size': 2}, 'flux2 config: patch_size is 2 but must be 1: no other value is implemented'),
        ({'out_channels': 0}, 'flux2 config: out_channels is 0 but must be a positive integer or None'),
        ({'guidance_embeds': 1}, 'flux2 config: guidance_embeds is 1 but must be one of (False, True)'),
        *(
            (
                {'axes_dims_rope': axes},
                f'flux2 config: axes_dims_rope is {axes!r} but must be a list of 4 even integers with the sum '
                'attention_head_dim, which is 16',
            )
            for axes in ([4, 4, 8], [4, 4, 4, 2], [3, 3, 4, 6], 16)
        ),
    ],
)
def test_unsupported_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        Flux2Transformer2DModel({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == sentence


def test_unknown_key_is_named_in_one_sentence():
    with pytest.raises(
        ValueError, match="^flux2 config: unknown key 'dropout'; it must be one of .'attention_head_dim'"
    ):
        Flux2Transformer2DModel({**CONFIG, 'dropout': 0.1}, rngs=functional.Keys(0))


@pytest.mark.parametrize(
    'config, shapes, guidance, sentence',
    [
        (CONFIG, ((2, 12, 12), (2, 5, 20)), None, 'sample has shape (2, 12, 12) but must be [B, h, w, 12]'),
        (CONFIG, ((2, 3, 4, 8), (2, 5, 20)), None, 'sample has shape (2, 3, 4, 8) but must be [B, h, w, 12]'),
        (
            CONFIG,
            ((2, 3, 4, 12), (2, 5, 21)),
            None,
            'encoder_hidden_states have shape (2, 5, 21) but must be [B, L, 20]',
        ),
        (CONFIG, ((2, 3, 4, 12), (2, 5, 20)), 4.0, 'guidance is given, but guidance_embeds is False'),
        (GUIDED, ((2, 3, 4, 12), (2, 5, 20)), None, 'guidance is missing, but guidance_embeds is True'),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_sentence(config, shapes, guidance, sentence):
    apply, abstract = build(config)
    sample, text = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    with pytest.raises(ValueError) as error:
        jax.eval_shape(functools.partial(apply, guidance=guidance), abstract, sample, 0.5, text)
    assert str(error.value) == f'flux2: {sentence}'
