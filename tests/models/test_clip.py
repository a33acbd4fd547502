"""CLIP's text encoder against transformers' on random weights, against diffusers' pipelines, and its errors."""

import functools
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dreambooth_jax.models import clip, functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.weights import mapping
from tests.support.tiny_clip import END, START, tokenizer
from tests.support.torch_reference import (
    assert_same_gradients,
    gradients,
    largest_relative_difference,
    quick_jit,
    randomise,
    to_ours,
)

CONFIG = {
    'architectures': ['CLIPTextModel'],
    'bos_token_id': 0,
    'eos_token_id': 2,
    'hidden_act': 'quick_gelu',
    'hidden_size': 32,
    'intermediate_size': 48,
    'max_position_embeddings': 20,
    'model_type': 'clip_text_model',
    'num_attention_heads': 4,
    'num_hidden_layers': 3,
    'pad_token_id': 1,
    'projection_dim': 24,
    'vocab_size': 50,
}
CONFIGS = {
    'published_end': (CONFIG, False),
    'published_end_projection': ({**CONFIG, 'hidden_act': 'gelu'}, True),
    'true_end_projection': ({**CONFIG, 'layer_norm_eps': 1e-3, 'eos_token_id': END}, True),
}


def reference(config, projection, seed=1):
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomise(kind(transformers.CLIPTextConfig(**config)), seed=seed, std=0.2)


def published(params, projection):
    """Names as files have them: transformers 5 leaves the prefix out of a model without projection."""
    return params if projection else {f'text_model.{name}': value for name, value in params.items()}


def network(config, projection, **options):
    return functional.abstract(lambda: CLIPTextModel(config, projection=projection, rngs=functional.Keys(0), **options))


def texts(rng, length=20):
    """Token ids as a tokenizer gives them: start, words, end, and padding of either kind."""
    ids = np.full((4, length), END)
    ids[1:3] = 0
    for row, words in enumerate((5, 7, 0, length - 2)):
        ids[row, : words + 2] = START, *rng.integers(0, START, size=words), END
    return ids


@functools.cache
def both(name):
    """The same network and the same texts on both sides, run forward and backward once."""
    config, projection = CONFIGS[name]
    theirs = reference(config, projection)
    rng = np.random.default_rng(2)
    ids = texts(rng)
    output = theirs(input_ids=torch.from_numpy(ids), output_hidden_states=True)
    expected = output.last_hidden_state, output.text_embeds if projection else output.pooler_output
    cotangents = [rng.normal(size=part.shape).astype(np.float32) for part in expected]
    sum((part * torch.from_numpy(one)).sum() for part, one in zip(expected, cotangents, strict=True)).backward()

    apply, abstract = network(config, projection)
    params = published(to_ours(theirs), projection)
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params):
        ours = apply(params, jnp.asarray(ids))
        return sum(jnp.sum(part * one) for part, one in zip(ours, cotangents, strict=True)), ours

    (_, ours), ours_gradient = quick_jit(jax.value_and_grad(product, has_aux=True))(params)
    return SimpleNamespace(
        theirs=theirs,
        apply=apply,
        params=params,
        ids=ids,
        outputs=list(zip(ours, (part.detach().numpy() for part in expected), strict=True)),
        hidden=[state.detach().numpy() for state in output.hidden_states],
        gradient=(ours_gradient, published(gradients(theirs), projection)),
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_clip_states_and_pooled_state_match_transformers(name):
    for ours, theirs in both(name).outputs:
        assert ours.dtype == jnp.float32
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', CONFIGS)
def test_clip_gradients_match_transformers(name):
    assert_same_gradients(*both(name).gradient)


@pytest.mark.parametrize('skip', [0, 1, 3])
def test_skipped_layers_match_the_hidden_states_of_transformers(skip):
    run = both('published_end_projection')
    states, pooled = quick_jit(functools.partial(run.apply, skip=skip, final_norm=False))(run.params, run.ids)
    np.testing.assert_allclose(states, run.hidden[-(skip + 1)], rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, run.outputs[1][1], rtol=0, atol=1e-4)


def test_padding_is_not_seen_where_a_mask_is_given():
    run = both('published_end')
    mask = np.arange(20)[None, :] < np.array([[7], [9], [2], [20]])
    mask[3, 4] = False  # a hole too
    with torch.no_grad():
        expected = run.theirs(torch.from_numpy(run.ids), torch.from_numpy(mask.astype(np.int64))).last_hidden_state
    states, _ = quick_jit(run.apply)(run.params, run.ids, mask)
    np.testing.assert_allclose(states, expected.numpy(), rtol=0, atol=1e-4)
    assert np.abs(states - run.outputs[0][0]).max() > 0.1


def test_shorter_texts_are_read_as_the_head_of_longer_ones():
    run = both('published_end')
    states, _ = quick_jit(run.apply)(run.params, run.ids[:, :9])
    np.testing.assert_allclose(states, run.outputs[0][1][:, :9], rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', ['published_end_projection', 'true_end_projection'])
def test_tokens_behind_the_table_are_read_as_transformers_reads_them(name):
    """Textual inversion: rows behind the table, in a network that was built without them."""
    config, projection = CONFIGS[name]
    run = both(name)
    theirs = reference(config, projection)
    theirs.resize_token_embeddings(52)
    randomise(theirs, seed=5, std=0.2)
    ids = run.ids.copy()
    ids[0, 3], ids[1, 1:3] = 50, (51, 50)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids))
    params = to_ours(theirs)
    assert params['text_model.embeddings.token_embedding.embedding'].shape == (52, 32)
    states, pooled = quick_jit(run.apply)(params, ids)
    np.testing.assert_allclose(states, expected.last_hidden_state.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, expected.text_embeds.numpy(), rtol=0, atol=1e-4)


PROMPTS = ['a sks dog', 'a dog in a cafe']


def ids_of(tokenizer, prompts):
    return tokenizer(prompts, padding='max_length', max_length=20, truncation=True, return_tensors='np').input_ids


@pytest.mark.parametrize('clip_skip', [None, 0, 1, 2])
def test_states_are_those_of_stable_diffusions_encode_prompt(clip_skip):
    theirs = reference(CONFIG, False)
    # diffusers 0.42 takes the norm by the name that transformers 5 does not have any more.
    object.__setattr__(theirs, 'text_model', theirs)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=theirs,
        tokenizer=tokenizer('<|endoftext|>'),
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        expected, of_nothing = pipeline.encode_prompt(PROMPTS, 'cpu', 1, True, clip_skip=clip_skip)
    run = both('published_end')
    ours = quick_jit(functools.partial(run.apply, skip=clip_skip or 0))
    np.testing.assert_allclose(
        ours(run.params, ids_of(pipeline.tokenizer, PROMPTS))[0], expected.numpy(), rtol=0, atol=1e-4
    )
    if not clip_skip:  # diffusers skips no layers of the negative prompt
        negative, _ = ours(run.params, ids_of(pipeline.tokenizer, ['', '']))
        np.testing.assert_allclose(negative, of_nothing.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize('clip_skip', [None, 1])
def test_states_and_pooled_state_are_those_of_stable_diffusion_xls_encode_prompt(clip_skip):
    first, second = CONFIGS['published_end'], CONFIGS['published_end_projection']
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=reference(*first),
        text_encoder_2=reference(*second),
        unet=None,
        scheduler=None,
        tokenizer=tokenizer('<|endoftext|>'),
        tokenizer_2=tokenizer('!'),
        force_zeros_for_empty_prompt=False,
    )
    with torch.no_grad():
        expected, of_nothing, expected_pooled, pooled_of_nothing = (
            part.numpy() for part in pipeline.encode_prompt(PROMPTS, device='cpu', clip_skip=clip_skip)
        )

    def encode(prompts):
        states = []
        for run, reader in (
            (both('published_end'), pipeline.tokenizer),
            (both('published_end_projection'), pipeline.tokenizer_2),
        ):
            one = quick_jit(functools.partial(run.apply, skip=1 + (clip_skip or 0), final_norm=False))
            state, pooled = one(run.params, ids_of(reader, prompts))
            states.append(state)
        return np.concatenate(states, axis=-1), pooled

    states, pooled = encode(PROMPTS)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, expected_pooled, rtol=0, atol=1e-4)
    if clip_skip is None:
        states, pooled = encode(['', ''])
        np.testing.assert_allclose(states, of_nothing, rtol=0, atol=1e-4)
        np.testing.assert_allclose(pooled, pooled_of_nothing, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', CONFIGS)
def test_names_are_those_of_published_files(name):
    config, projection = CONFIGS[name]
    model = nnx.eval_shape(lambda: CLIPTextModel(config, projection=projection, rngs=functional.Keys(0)))
    theirs = published(dict(reference(config, projection).state_dict()), projection)
    shapes = {key: tuple(value.shape) for key, value in theirs.items()}
    assert {key: parameter.shape for key, parameter in mapping.torch_names(model).items()} == shapes


def test_clip_in_bfloat16_stays_near_float32_with_float32_output():
    run = both('published_end_projection')
    apply, abstract = network(*CONFIGS['published_end_projection'], dtype=jnp.bfloat16)
    assert {value.dtype for value in abstract.values()} == {jnp.dtype('float32')}
    for ours, (_, theirs) in zip(quick_jit(apply)(run.params, run.ids), run.outputs, strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-5 < largest_relative_difference(ours, theirs) < 0.05


def test_a_pooled_state_that_is_not_used_costs_nothing():
    run = both('published_end')

    def products(function):
        return quick_jit(function).lower(run.params, run.ids).compile().cost_analysis()['flops']

    both_parts = products(functools.partial(run.apply, skip=2))
    states_alone = products(lambda params, ids: run.apply(params, ids, skip=2)[0])
    assert states_alone < 0.5 * both_parts


def test_clip_starts_as_transformers_starts():
    config = {**CONFIG, 'hidden_size': 64, 'intermediate_size': 128, 'initializer_factor': 0.5, 'num_hidden_layers': 2}
    _, params = functional.init(lambda rngs: CLIPTextModel(config, projection=True, rngs=rngs), seed=0)
    torch.manual_seed(0)
    theirs = to_ours(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config)))
    for name, value in theirs.items():
        np.testing.assert_allclose(np.std(params[name]), np.std(value), rtol=0.1, err_msg=name)
        np.testing.assert_allclose(np.mean(params[name]), np.mean(value), atol=0.01, err_msg=name)


def test_defaults_are_those_of_transformers():
    theirs = transformers.CLIPTextConfig().to_dict()
    assert {key: theirs[key] for key in clip.DEFAULTS} == clip.DEFAULTS


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'hidden_act': 'relu'}, "clip config: hidden_act is 'relu' but must be one of ('gelu', 'quick_gelu')"),
        ({'model_type': 'clip'}, "clip config: model_type is 'clip' but must be one of ('clip_text_model',)"),
        ({'num_hidden_layers': 0}, 'clip config: num_hidden_layers is 0 but must be a positive integer'),
        ({'hidden_size': '32'}, "clip config: hidden_size is '32' but must be a positive integer"),
        ({'eos_token_id': [2]}, 'clip config: eos_token_id is [2] but must be a positive integer'),
        ({'layer_norm_eps': None}, 'clip config: layer_norm_eps is None but must be a positive number'),
        (
            {'num_attention_heads': 5},
            'clip config: num_attention_heads is 5 but must be a divisor of hidden_size, which is 32',
        ),
    ],
)
def test_unsupported_clip_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        CLIPTextModel({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == sentence


def test_inputs_that_do_not_fit_are_named_in_one_sentence():
    run = both('published_end')
    with pytest.raises(ValueError, match=r'^clip: input_ids have shape \(4, 21\) but must be \[B, L\] with L <= 20$'):
        run.apply(run.params, np.zeros((4, 21), np.int32))
    for skip in (-1, 4):
        with pytest.raises(ValueError, match=rf'^clip: skip is {skip} but must be one of 0..3, the number of layers$'):
            run.apply(run.params, run.ids, skip=skip)
