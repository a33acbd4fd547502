"""Storybook's tokenizer: the world's words whole, rare tokens whole and meaningless, everything else spelled."""

import os
import string

import pytest

from dreambooth_jax.storybook import captions, vocabulary, world
from dreambooth_jax.text import chat, prompts
from dreambooth_jax.text.tokenize import Tokenizer

UNKNOWN = 2


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    vocabulary.write_tokenizer(folder)
    return Tokenizer.load(folder)


def test_every_word_and_rare_token_is_one_token(tokenizer):
    texts = [*vocabulary.words(), *vocabulary.RARE_TOKENS]
    assert len(set(texts)) == len(texts)
    assert all(len(ids) == 1 and ids[0] > UNKNOWN for ids in tokenizer.token_ids(texts))


def test_prompts_and_captions_have_one_token_per_word(tokenizer):
    import numpy as np

    rng = np.random.default_rng(0)
    texts = [captions.caption(world.sample_scene(rng), rng) for _ in range(300)]
    for noun in world.CLASSES:
        texts += prompts.prompts_for(noun, 'sks') + (prompts.class_prompt(noun),)
    for text, ids in zip(texts, tokenizer.token_ids(texts), strict=True):
        assert len(ids) == len(text.split()), text


def test_any_ascii_text_is_spelled_without_unknown_tokens(tokenizer):
    (ids,) = tokenizer.token_ids([string.printable + ' Zyzzyva-42 (http://x.y?z=1&q=2)'])
    assert UNKNOWN not in ids
    assert UNKNOWN in tokenizer.token_ids(['caf\u00e9'])[0]


def test_ids_are_small_and_special_tokens_are_t5s(tokenizer):
    pieces = vocabulary.pieces()
    assert len(pieces) == tokenizer.vocabulary_size <= 1024
    assert [piece for piece, _ in pieces[:3]] == ['<pad>', '</s>', '<unk>']


def test_rare_tokens_are_rarer_than_words_and_commoner_than_spelling():
    scores = dict(vocabulary.pieces())
    word = min(scores[vocabulary.WORD_START + word] for word in vocabulary.words())
    rare = [scores[vocabulary.WORD_START + token] for token in vocabulary.RARE_TOKENS]
    assert word > max(rare) and min(rare) > vocabulary.CHARACTER_SCORE
    assert rare == sorted(rare) and vocabulary.RARE_TOKENS[0] == 'sks'


def test_a_rare_token_that_means_something_is_refused(monkeypatch):
    monkeypatch.setattr(vocabulary, 'RARE_TOKENS', ('sks', 'dog'))
    with pytest.raises(ValueError, match="'dog'"):
        vocabulary.pieces()


def test_files_are_small_and_written_alike_every_time(tmp_path):
    for name in ('one', 'two'):
        vocabulary.write_tokenizer(tmp_path / name)
    files = sorted(os.listdir(tmp_path / 'one'))
    assert files == ['tokenizer.json', 'tokenizer_config.json']
    assert all((tmp_path / 'one' / f).read_bytes() == (tmp_path / 'two' / f).read_bytes() for f in files)
    assert sum((tmp_path / 'one' / f).stat().st_size for f in files) < 60_000


@pytest.fixture(scope='module')
def clip_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip_tokenizer')
    vocabulary.write_clip_tokenizer(folder)
    return Tokenizer.load(folder)


def test_clips_tokenizer_has_a_token_for_every_word_and_every_rare_token(clip_tokenizer):
    assert clip_tokenizer.kind == 'clip' and clip_tokenizer.max_length == vocabulary.CLIP_MAX_LENGTH
    assert all(len(ids) == 1 for ids in clip_tokenizer.token_ids([*vocabulary.words(), *vocabulary.RARE_TOKENS]))


def test_clips_tokenizer_spells_any_text(clip_tokenizer):
    text = 'zyzzyva-42 é 雪'
    (ids,) = clip_tokenizer.token_ids([text])
    assert clip_tokenizer.end_id not in ids
    # What is written between words does not matter to CLIP.
    assert clip_tokenizer.wrapped.decode(ids).replace(' ', '') == text.replace(' ', '')


def test_captions_and_prompts_are_no_longer_than_clips_prompts(clip_tokenizer):
    import numpy as np

    rng = np.random.default_rng(0)
    rare = dict(rare_tokens=vocabulary.RARE_TOKENS, rare_token_rate=1.0)
    texts = [captions.caption(world.sample_scene(rng), rng, **rare) for _ in range(2000)]
    for noun in world.CLASSES:
        texts += prompts.prompts_for(noun, 'sks')
    # Two more stand at the start and the end.
    assert max(map(len, clip_tokenizer.token_ids(texts))) + 2 <= vocabulary.CLIP_MAX_LENGTH


@pytest.fixture(scope='module')
def qwen_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('qwen_tokenizer')
    vocabulary.write_qwen_tokenizer(folder)
    return Tokenizer.load(folder)


def test_qwens_tokenizer_has_a_token_for_every_word_behind_a_space(qwen_tokenizer):
    assert qwen_tokenizer.kind == 'qwen' and qwen_tokenizer.max_length == vocabulary.QWEN_MAX_LENGTH
    words = [f' {word}' for word in (*vocabulary.words(), *vocabulary.RARE_TOKENS)]
    ids = qwen_tokenizer.token_ids([*words, *vocabulary.GRAMMAR])
    assert all(len(tokens) == 1 for tokens in ids)
    assert len({tokens[0] for tokens in ids}) == len(ids)
    assert qwen_tokenizer.decode(qwen_tokenizer.token_ids(['é 雪'])[0][0]) is not None  # any text can be spelt


def test_prompts_in_the_form_of_a_chat_are_no_longer_than_qwens_prompts(qwen_tokenizer):
    asked = qwen_tokenizer.with_template(chat.asked)
    for noun in world.CLASSES:
        texts = prompts.prompts_for(noun, 'sks')
        assert asked(texts)[1].sum(axis=1).max() <= vocabulary.QWEN_MAX_LENGTH
    # The form takes eight tokens, and its words are tokens too.
    assert asked(['a dog'])[1].sum() == 8 + 2
    message = [{'role': 'user', 'content': 'a dog'}]
    said = asked.wrapped.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert said == chat.asked('a dog')


def test_clips_vocabulary_numbers_every_piece_once_and_ends_with_the_end_of_a_text():
    pieces, merges = vocabulary.clip_vocabulary()
    assert sorted(pieces.values()) == list(range(len(pieces))) and len(set(merges)) == len(merges)
    assert pieces['<|endoftext|>'] == len(pieces) - 1
    assert all(first in pieces and second in pieces and first + second in pieces for first, second in merges)
