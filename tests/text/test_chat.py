"""Prompts in the form of a chat: the ids that transformers' own template gives, and what is cut off a long prompt."""

import logging

import numpy as np
import pytest
import transformers

from dreambooth_jax.text import chat
from dreambooth_jax.text.tokenize import Tokenizer
from tests.support import tiny_qwen

PROMPTS = ['a sks dog in the snow', '', '  Caf\u00e9 <|im_end|> "quoted" \U0001f415\n']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('qwen')
    tiny_qwen.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize('template, thinking', [(chat.asked, True), (chat.asked_without_thought, False)])
def test_ids_and_mask_are_those_of_the_chat_template(folder, template, thinking):
    theirs = transformers.Qwen2Tokenizer.from_pretrained(folder)
    texts = [
        theirs.apply_chat_template(
            [{'role': 'user', 'content': prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for prompt in PROMPTS
    ]
    expected = theirs(texts, padding='max_length', max_length=64, truncation=True, return_tensors='np')
    ids, mask = Tokenizer.load(folder, max_length=64).with_template(template)(PROMPTS)
    assert ids.dtype == mask.dtype == np.int32
    assert np.array_equal(ids, expected.input_ids) and np.array_equal(mask, expected.attention_mask)
    assert 0 < mask.sum() < mask.size


def test_a_folder_of_qwen_is_read_with_the_length_of_the_pipelines_and_without_template(folder):
    plain = Tokenizer.load(folder)
    assert (plain.kind, plain.max_length, plain.pad_token) == ('qwen', 512, '<|endoftext|>')
    asked = plain.with_template(chat.asked)
    assert plain.prepare('a dog') == 'a dog' != asked.prepare('a dog')
    assert plain.token_ids(['a dog']) == asked.token_ids(['a dog'])
    assert asked.with_template(None).prepare('a dog') == 'a dog'
    assert plain.vocabulary_size > max(plain(['a dog'])[0].max(), plain.end_id)


def test_a_prompt_that_is_too_long_loses_its_end_and_the_templates(folder, caplog):
    tokenizer = Tokenizer.load(folder, max_length=16).with_template(chat.asked)
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenizer(['a dog in the snow, red cat on the beach'])
    whole = tokenizer.wrapped(tokenizer.prepare('a dog in the snow, red cat on the beach')).input_ids
    assert ids[0].tolist() == whole[:16] and mask.all()
    (message,) = (record.getMessage() for record in caplog.records)
    assert f'has {len(whole)} tokens but the model reads 16: ' in message
    assert message.endswith("<|im_end|>\\n<|im_start|>assistant\\n' is cut off; shorten the prompt.")
    assert tokenizer.wrapped.decode(whole[16:]) in message.replace('\\n', '\n')
