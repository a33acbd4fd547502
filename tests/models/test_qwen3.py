"""Qwen3's hidden states against transformers' on random weights, how deep it is built, and its errors."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.models.qwen3 import STATES_READ, Qwen3Model, quarter_states, states_read
from dreambooth_jax.weights import aliases, mapping
from tests.support.torch_reference import assert_near, assert_same_gradients, gradients, quick_jit, randomise, to_ours

CONFIG = {
    'head_dim': 8,
    'hidden_size': 24,
    'intermediate_size': 40,
    'max_position_embeddings': 64,
    'model_type': 'qwen3',
    'num_attention_heads': 4,
    'num_hidden_layers': 4,
    'num_key_value_heads': 2,
    'rope_theta': 1000000,
    'vocab_size': 50,
}
STATES = (1, 2, 3)
LENGTH = 20


@functools.cache
def both():
    """The same network and the same prompts on both sides, run forward and backward once."""
    theirs = randomise(transformers.Qwen3Model(transformers.Qwen3Config(**CONFIG)), seed=1, std=0.3)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, size=(3, LENGTH))
    mask = (np.arange(LENGTH)[None, :] < np.array([[LENGTH], [7], [1]])).astype(np.int32)
    cotangent = rng.normal(size=(3, LENGTH, len(STATES) * 24)).astype(np.float32)
    run = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True)
    output = torch.cat([run.hidden_states[state] for state in STATES], dim=-1)
    (output * torch.from_numpy(cotangent)).sum().backward()
    return SimpleNamespace(
        ids=ids,
        mask=mask,
        cotangent=cotangent,
        output=output.detach().numpy(),
        last=run.last_hidden_state.detach().numpy(),
        params=to_ours(theirs),
        gradient=gradients(theirs),
    )


def build(states, **options):
    return functional.abstract(lambda: Qwen3Model(CONFIG, states=states, rngs=functional.Keys(0), **options))


def test_joined_states_and_gradients_match_transformers_also_at_padding():
    run = both()
    apply, abstract = build(STATES, remat=True)
    params = {name: run.params[name] for name in abstract}
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params):
        ours = apply(params, jnp.asarray(run.ids), jnp.asarray(run.mask))
        return jnp.sum(ours * run.cotangent), ours

    (_, ours), gradient = quick_jit(jax.value_and_grad(product, has_aux=True))(params)
    assert ours.dtype == jnp.float32
    assert np.abs(run.output).max() > 1
    assert_near(ours, run.output, 1e-5)
    assert_same_gradients(gradient, {name: run.gradient[name] for name in gradient})


def test_the_last_state_includes_the_final_norm():
    run = both()
    apply, abstract = build(None)
    assert abstract.keys() == run.params.keys()
    ours = quick_jit(apply)(run.params, run.ids, run.mask)
    assert_near(ours, run.last, 1e-5)


@pytest.mark.parametrize('states, layers', [((3,), 3), ((2, 0), 2), ((1, 2, 3), 3), ((4,), 4)])
def test_only_layers_that_are_read_are_built(states, layers):
    _, abstract = build(states)
    assert {int(name.split('.')[1]) for name in abstract if name.startswith('layers.')} == set(range(layers))
    assert ('norm.scale' in abstract) == (4 in states)


@pytest.mark.parametrize('kind', [transformers.Qwen3Model, transformers.Qwen3ForCausalLM])
def test_files_with_and_without_a_head_and_with_all_layers_are_read(kind):
    theirs = randomise(kind(transformers.Qwen3Config(**CONFIG, tie_word_embeddings=False)), seed=3)
    model = nnx.eval_shape(lambda: Qwen3Model(CONFIG, states=STATES, rngs=functional.Keys(0)))
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    names = {'aliases': aliases.QWEN3_ALIASES, 'ignored': aliases.QWEN3_IGNORED}
    params = mapping.load(model, tensors, **names)
    expected = to_ours(theirs.base_model)
    assert expected.keys() - params.keys() == {name for name in expected if name.startswith(('layers.3.', 'norm.'))}
    assert all(np.array_equal(value, expected[name]) for name, value in params.items())
    prefix = 'model.' if kind is transformers.Qwen3ForCausalLM else ''
    del tensors[f'{prefix}layers.2.self_attn.q_norm.weight']
    with pytest.raises(mapping.WeightsError, match=r'missing: layers\.2\.self_attn\.q_norm\.weight'):
        mapping.load(model, tensors, **names)


def test_half_precision_keeps_states_near():
    run = both()
    apply, abstract = build(STATES, dtype=jnp.bfloat16)
    ours = quick_jit(apply)({name: run.params[name] for name in abstract}, run.ids, run.mask)
    assert ours.dtype == jnp.float32
    assert 1e-4 < np.abs(ours - run.output).max() < 0.1 * np.abs(run.output).max()


def test_the_base_of_angles_is_read_from_both_forms_of_the_file():
    without = {key: value for key, value in CONFIG.items() if key != 'rope_theta'}
    nested = {**without, 'rope_parameters': {'rope_theta': 1000000, 'rope_type': 'default'}}
    thetas = [Qwen3Model(c, states=(0,), rngs=functional.Keys(0)).theta for c in (CONFIG, nested, without)]
    assert thetas == [1e6, 1e6, 1e4]


def test_klein_reads_the_quarters_and_z_image_the_last_but_one():
    deep = {**CONFIG, 'num_hidden_layers': 36}
    assert quarter_states(deep) == states_read({**deep, STATES_READ: 'quarters'}) == (9, 18, 27)
    assert states_read({**deep, STATES_READ: 'last_but_one'}) == (35,)
    assert states_read(deep) is None
    assert quarter_states(CONFIG) == STATES


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'model_type': 'qwen2'}, "qwen3 config: model_type is 'qwen2' but must be one of ('qwen3',)"),
        (
            {'attention_bias': True},
            'qwen3 config: attention_bias is True but must be False: no other value is implemented',
        ),
        (
            {'use_sliding_window': True},
            'qwen3 config: use_sliding_window is True but must be False: no other value is implemented',
        ),
        (
            {'rope_scaling': {'factor': 4.0}},
            "qwen3 config: rope_scaling is {'factor': 4.0} but must be None: no other value is implemented",
        ),
        (
            {'rope_parameters': {'rope_type': 'yarn'}},
            "qwen3 config: rope_parameters is {'rope_type': 'yarn'} but must be an object with rope_type 'default'",
        ),
        (
            {'num_key_value_heads': 3},
            'qwen3 config: num_key_value_heads is 3 but must be a divisor of num_attention_heads, which is 4',
        ),
        ({'head_dim': 7}, 'qwen3 config: head_dim is 7 but must be even'),
    ],
)
def test_unsupported_qwen3_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        Qwen3Model({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == sentence


def test_states_and_lengths_that_do_not_fit_are_named_in_one_sentence():
    with pytest.raises(ValueError) as error:
        Qwen3Model(CONFIG, states=(5,), rngs=functional.Keys(0))
    assert str(error.value) == 'qwen3: states is (5,) but must be some of 0..4, the number of layers'
    with pytest.raises(ValueError) as error:
        quarter_states({**CONFIG, 'num_hidden_layers': 6})
    assert str(error.value) == 'qwen3 config: num_hidden_layers is 6 but must be a multiple of 4'
    apply, abstract = build((0,))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(apply, abstract, jax.ShapeDtypeStruct((1, 65), jnp.int32))
    assert str(error.value) == 'qwen3: texts have 65 tokens but must have at most 64'
