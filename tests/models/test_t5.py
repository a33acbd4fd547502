"""The T5 encoder against transformers' on random weights, its starting distribution, and its errors."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from dreambooth_jax.models import functional
from dreambooth_jax.models.t5 import T5EncoderModel, relative_position_buckets
from tests.support.torch_reference import gradients, largest_relative_difference, quick_jit, randomise, to_ours

CONFIG = {
    'd_ff': 48,
    'd_kv': 8,
    'd_model': 32,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 3,
    'num_layers': 2,
    'vocab_size': 50,
}
TIED = ('encoder.embed_tokens.weight',)


@functools.cache
def both():
    """The same network and the same prompts on both sides, run forward and backward once."""
    theirs = randomise(transformers.T5EncoderModel(transformers.T5Config(**CONFIG)), seed=1, std=0.2)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, size=(3, 40))
    mask = (np.arange(40)[None, :] < np.array([[40], [7], [1]])).astype(np.int32)
    cotangent = rng.normal(size=(3, 40, 32)).astype(np.float32)

    output = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    (output * torch.from_numpy(cotangent)).sum().backward()
    with torch.no_grad():
        unmasked = theirs(input_ids=torch.from_numpy(ids)).last_hidden_state

    apply, abstract = functional.abstract(lambda: T5EncoderModel(CONFIG, rngs=functional.Keys(0)))
    params = to_ours(theirs, ignored=TIED)
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params):
        ours = apply(params, jnp.asarray(ids), jnp.asarray(mask))
        return jnp.sum(ours * cotangent), ours

    (_, ours), ours_gradient = quick_jit(jax.value_and_grad(product, has_aux=True))(params)
    return SimpleNamespace(
        apply=apply,
        params=params,
        ids=ids,
        output=(ours, output.detach().numpy()),
        unmasked=unmasked.numpy(),
        gradient=(ours_gradient, gradients(theirs, TIED)),
    )


def test_t5_forward_matches_transformers_also_behind_the_end_of_prompts():
    ours, theirs = both().output
    assert ours.dtype == jnp.float32
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_t5_without_mask_matches_transformers():
    run = both()
    np.testing.assert_allclose(quick_jit(run.apply)(run.params, run.ids), run.unmasked, rtol=0, atol=1e-4)


def test_t5_gradients_match_transformers():
    ours, theirs = both().gradient
    wrong = {key: largest_relative_difference(ours[key], theirs[key]) for key in theirs}
    assert {key: value for key, value in wrong.items() if value >= 1e-3} == {}


@pytest.mark.parametrize('buckets, max_distance', [(32, 128), (16, 64)])
def test_position_buckets_match_transformers(buckets, max_distance):
    length = 300
    positions = torch.arange(length)
    expected = T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_position_buckets(length, buckets, max_distance), expected.numpy())


def test_t5_starts_as_transformers_starts():
    factor, model, heads, width, hidden = 0.5, 64, 4, 16, 128
    config = {
        **CONFIG,
        'd_model': model,
        'd_kv': width,
        'd_ff': hidden,
        'num_heads': heads,
        'initializer_factor': factor,
    }
    _, params = functional.init(lambda rngs: T5EncoderModel(config, rngs=rngs), seed=0)
    first = 'encoder.block.0.layer.0.SelfAttention'
    expected = {
        'shared.embedding': 1.0,
        f'{first}.q.kernel': (model * width) ** -0.5,
        f'{first}.k.kernel': model**-0.5,
        f'{first}.v.kernel': model**-0.5,
        f'{first}.o.kernel': (heads * width) ** -0.5,
        'encoder.block.1.layer.1.DenseReluDense.wi_0.kernel': model**-0.5,
        'encoder.block.1.layer.1.DenseReluDense.wo.kernel': hidden**-0.5,
    }
    for name, std in expected.items():
        np.testing.assert_allclose(np.std(params[name]), factor * std, rtol=0.1, err_msg=name)
    np.testing.assert_array_equal(params['encoder.final_layer_norm.scale'], factor)


@pytest.mark.parametrize(
    'change, sentence',
    [
        (
            {'feed_forward_proj': 'relu'},
            "t5 config: feed_forward_proj is 'relu' but must be one of ('gated-gelu',)",
        ),
        ({'num_layers': 0}, 't5 config: num_layers is 0 but must be a positive integer'),
        ({'d_model': '32'}, "t5 config: d_model is '32' but must be a positive integer"),
        ({'layer_norm_epsilon': None}, 't5 config: layer_norm_epsilon is None but must be a positive number'),
    ],
)
def test_unsupported_t5_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        T5EncoderModel({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == sentence
