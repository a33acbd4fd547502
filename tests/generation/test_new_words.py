"""Words that files of textual inversion bring to a model: ours, diffusers', and those of other programs."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation import new_words
from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.text.tokenize import vector_names
from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_files import Adapter, write_lora
from dreambooth_jax.weights.textual_inversion import write_textual_inversion
from tests.support import tiny_latent_pipelines, tiny_pipelines

WORD = '<sks-dog>'


@functools.cache
def original(family):
    return Cascade(tiny_pipelines.base()) if family == 'if' else tiny_latent_pipelines.cascade(family)


def take(family, count=2, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for component, network in original(family).base.text_encoders.items():
        table = network.params[f'{new_words.table_layer(component, network)}.embedding']
        found[component] = rng.normal(0, 3 * np.std(table), (count, table.shape[1])).astype(np.float32)
    return found


def same(one, other):
    found = (jax.tree.leaves(cascade.encode([f'a {WORD} dog', 'a dog'])) for cascade in (one, other))
    return all(np.array_equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize('family', ['sd1', 'if', pytest.param('sdxl', marks=pytest.mark.slow)])
def test_our_file_gives_the_model_that_learned_its_word(family, tmp_path):
    rows = take(family)
    learned = new_words.with_rows(original(family), vector_names(WORD, 2), rows, dtype=jnp.float32)
    path = write_textual_inversion(tmp_path / 'any.safetensors', WORD, rows)
    ours = new_words.with_embedding(original(family), path, [f'a {WORD}'])
    assert ours.base.added_tokens == learned.base.added_tokens == (WORD, f'{WORD}_1')
    for component, network in learned.base.text_encoders.items():
        found = ours.base.components[component]
        assert found.config == network.config
        assert all(np.array_equal(found.params[name], value) for name, value in network.params.items())
    assert same(ours, learned) and not same(ours, original(family))


def test_a_text_encoder_with_quantised_kernels_learns_words_too():
    quantised = Cascade.load(tiny_latent_pipelines.folder('sd1'), frozen_dtype='int8')
    found = new_words.with_rows(quantised, vector_names(WORD, 2), take('sd1'), dtype=jnp.float32)
    learned = new_words.with_rows(original('sd1'), vector_names(WORD, 2), take('sd1'), dtype=jnp.float32)
    assert found.base.components['text_encoder'].frozen_dtype == 'int8'
    states, expected, before = (
        cascade.encode([f'a {WORD} dog'])['encoder_hidden_states'] for cascade in (found, learned, original('sd1'))
    )
    change = np.abs(expected - before).max()
    assert 0 < np.abs(states - expected).max() < 0.1 * change


@pytest.mark.parametrize(
    ('key', 'word'),
    [
        ('emb_params', 'easynegative'),
        ('string_to_param.*', 'easynegative'),
        ('clip_l', 'easynegative'),
        ('<cat-toy>', '<cat-toy>'),
    ],
)
def test_files_of_other_programs_are_called_by_their_key_or_their_name(key, word, tmp_path):
    path = tmp_path / 'EasyNegative.safetensors'
    rows = take('sd1', 3)['text_encoder']
    files.write_tensors(path, {key: rows})
    cascade = new_words.with_embedding(original('sd1'), path)
    assert cascade.base.added_tokens == vector_names(word, 3)
    ids = cascade.tokenizer([f'a {word.upper()} dog'])[0][0]
    first = original('sd1').tokenizer.vocabulary_size
    assert [i for i in ids if i >= first] == [first, first + 1, first + 2]


def test_several_files_each_add_their_word(tmp_path):
    first, second = take('sd1', 2), take('sd1', 1, seed=1)
    cascade = original('sd1')
    for word, rows in ((WORD, first), ('<rex>', second)):
        cascade = new_words.with_embedding(cascade, write_textual_inversion(tmp_path / 'x.safetensors', word, rows))
    assert cascade.base.added_tokens == (WORD, f'{WORD}_1', '<rex>')
    table = cascade.base.components['text_encoder'].params['text_model.embeddings.token_embedding.embedding']
    np.testing.assert_array_equal(table[-3:], np.concatenate([first['text_encoder'], second['text_encoder']]))
    assert list(cascade.tokenizer(['<rex>'])[0][0][1:2]) == [len(table) - 1]
    assert not np.array_equal(*(cascade.encode([prompt])['encoder_hidden_states'] for prompt in ('<rex>', WORD)))


def test_a_word_and_a_lora_of_the_text_encoder_go_together(tmp_path):
    word = write_textual_inversion(tmp_path / 'x.safetensors', WORD, take('sd1'))
    path, rng = 'text_model.encoder.layers.0.mlp.fc1', np.random.default_rng(0)
    inputs, outputs = original('sd1').base.components['text_encoder'].params[f'{path}.kernel'].shape
    params = {f'{path}.lora_a': rng.normal(size=(inputs, 2)), f'{path}.lora_b': rng.normal(size=(2, outputs))}
    file = write_lora(tmp_path / 'lora.safetensors', Adapter({'text_encoder': params}, 2, 2.0), 'lora_kohya')
    one = new_words.with_embedding(with_lora(original('sd1'), file), word).base.components['text_encoder'].params
    other = with_lora(new_words.with_embedding(original('sd1'), word), file).base.components['text_encoder'].params
    plain = original('sd1').base.components['text_encoder'].params
    changed = {name for name, value in one.items() if value.shape != plain[name].shape or (value != plain[name]).any()}
    assert changed == {f'{path}.kernel', 'text_model.embeddings.token_embedding.embedding'}
    assert all(np.array_equal(other[name], value) for name, value in one.items())


def test_a_word_that_no_prompt_holds_is_told(tmp_path, caplog):
    path = write_textual_inversion(tmp_path / 'x.safetensors', WORD, take('sd1'))
    with caplog.at_level(logging.WARNING):
        new_words.with_embedding(original('sd1'), path, [f'A {WORD.upper()}', ''])
        assert not caplog.records
        new_words.with_embedding(original('sd1'), path, ['a sks-dog', ''])
    assert [record.getMessage() for record in caplog.records] == [
        f'no prompt holds {WORD}, the word of {path}: it generates nothing else'
    ]


def test_what_is_no_word_of_this_model_is_one_sentence(tmp_path):
    cascade, rows = original('sd1'), take('sd1')['text_encoder']

    def said(tensors, name='x', error=ConfigError):
        path = tmp_path / f'{name}.safetensors'
        files.write_tensors(path, tensors)
        with pytest.raises(error) as caught:
            new_words.with_embedding(cascade, path)
        assert '\n' not in str(caught.value) and str(caught.value).startswith(str(path))
        return str(caught.value).removeprefix(f'{path} ')

    name = cascade.base.name
    assert said({'emb_params': rows}, 'a') == (
        f"holds the word 'a', which {name} knows already; give the file another name"
    )
    assert said({'a': rows}) == f"holds the word 'a', which {name} knows already; leave it out"
    assert said({'emb_params': rows}, 'my dog') == (
        "holds the word 'my dog', which is not one word; give the file another name"
    )
    wide = {'clip_l': rows, 'clip_g': rows}
    assert said(wide, error=WeightsError) == (
        "holds rows of widths {'text_encoder': 32, 'text_encoder_2': 32} but the text encoders take "
        "{'text_encoder': 32}; use one that was learned with a model of the same kind."
    )
    assert said({'emb_params': np.zeros((2, 1024))}, error=WeightsError).startswith(
        "holds rows of widths {'text_encoder': 1024} but the text encoders take {'text_encoder': 32}; use one"
    )
    assert said({'unet.x.lora_A.weight': rows, 'unet.x.lora_B.weight': rows}, error=WeightsError) == (
        'holds 2 tensors; a textual inversion holds one, named after its token, or clip_l and clip_g.'
    )
    with pytest.raises(WeightsError, match='is a pickled checkpoint'):
        new_words.with_embedding(cascade, tmp_path / 'x.pt')
