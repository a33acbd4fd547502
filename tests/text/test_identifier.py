"""Rare tokens: what a prompt can name a subject with, rarest prior first, by the rule of each vocabulary."""

import itertools
import string

import pytest
import transformers

from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.text import identifier
from dreambooth_jax.text.tokenize import Tokenizer

LETTERS = string.ascii_lowercase


def test_storybook_gives_its_rare_tokens_in_order(tmp_path):
    vocabulary.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    found = identifier.rare_tokens(tokenizer, 1000)
    assert [token.text for token in found] == list(vocabulary.RARE_TOKENS)
    assert [token.score for token in found] == sorted(token.score for token in found)
    assert tokenizer.token_ids(['a sks dog'])[0][1] == found[0].id
    assert identifier.rare_tokens(tokenizer, 3) == found[:3]


@pytest.fixture(scope='module')
def large_unigram():
    """Ids beyond the paper's range for T5-XXL: words of three letters, pieces, capitals, long ones, digits."""
    words = [''.join(letters) for letters in itertools.product(LETTERS, repeat=3)]
    pieces = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), *((letter, -30.0) for letter in LETTERS)]
    kinds = ('\u2581{}', '{}', '\u2581X{}', '\u2581{}long', '\u2581{}1')
    pieces += [(kinds[i % 5].format(word), -5 - i / 1000) for i, word in enumerate(words[:12_000])]
    return Tokenizer(transformers.T5Tokenizer(vocab=pieces, extra_ids=0), 't5')


def test_t5_takes_the_papers_range_and_only_what_a_prompt_can_type(large_unigram):
    found = identifier.rare_tokens(large_unigram, 100_000)
    assert found and all(5000 <= token.id <= 10_000 for token in found)
    assert [token.id for token in found] == sorted((token.id for token in found), reverse=True)
    assert all(len(token.text) == 3 and token.text.isalpha() and token.text.islower() for token in found)
    assert all(large_unigram.token_ids([f'a {token.text} dog'])[0].count(token.id) == 1 for token in found[:50])
    assert len(found) == sum((i - 29) % 5 == 0 for i in range(5000, 10_001))


def test_clip_takes_high_merge_ranks(tmp_path):
    # Merges 0-675 make pairs, the others whole words of three letters, most frequent first.
    singles = [*LETTERS, *(letter + '</w>' for letter in LETTERS)]
    pairs = [(a, b) for a, b in itertools.product(LETTERS, repeat=2)]
    words = [(a + b, c + '</w>') for a, b, c in itertools.product(LETTERS, repeat=3)]
    merges = (pairs + words)[:2000]
    vocabulary_ = {piece: i for i, piece in enumerate([*singles, *(a + b for a, b in merges)])}
    for special in ('<|startoftext|>', '<|endoftext|>'):
        vocabulary_[special] = len(vocabulary_)
    tokenizer = Tokenizer(transformers.CLIPTokenizer(vocab=vocabulary_, merges=merges), 'clip')
    assert identifier.rare_tokens(tokenizer, 10) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifier, 'CLIP_LOWEST_RANK', 1500)
        found = identifier.rare_tokens(tokenizer, 1000)
    assert [token.score for token in found] == [-float(rank) for rank in range(1999, 1499, -1)]
    assert found[0].text == ''.join(merges[-1]).removesuffix('</w>')
    assert tokenizer.token_ids([found[0].text]) == [[found[0].id]]
