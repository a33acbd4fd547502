"""Rare tokens: words of one token that mean little to a model before fine-tuning, to name a subject with.

A good identifier has a weak prior in the language model and in the diffusion model (Ruiz et al. 2023, section 3.2), so
it should be a rare token that decodes to few letters without spaces. What is rare depends on the vocabulary:

- T5-XXL: ids 5000 to 10000, the paper's range; its vocabulary is sorted by frequency.
- a small Unigram vocabulary (Storybook): rarer than one word in 30 000, by its scores.
- CLIP's BPE: merge rank 40 000 and above. The paper's id range does not transfer: there it holds common words.
"""

import math
from typing import NamedTuple

from dreambooth_jax.text.tokenize import Tokenizer

T5_IDS = range(5000, 10001)  # Ruiz et al. 2023, section 3.2
RARE_LOG_PROBABILITY = -math.log(30_000)
CLIP_LOWEST_RANK = 40_000
MAX_LETTERS = 4  # the paper: at most 3 characters; with 4, ohwx is among them, which many know


class RareToken(NamedTuple):
    """One candidate; `score` as Tokenizer.scores gives it, lower for rarer."""

    id: int
    text: str
    score: float


def rare_tokens(tokenizer: Tokenizer, count: int) -> list[RareToken]:
    """Candidates for an identifier, rarest prior first.

    Each is 1-4 letters, and typing its text in a prompt gives exactly this one token.

    Args:
      count: how many at most, > 0.
    Returns: up to `count` candidates; fewer, or none, if the vocabulary has no more.
    """
    scores = tokenizer.scores()
    if tokenizer.kind == 'clip':
        rare = [i for i, score in scores.items() if -score >= CLIP_LOWEST_RANK]
    elif tokenizer.vocabulary_size > T5_IDS.stop:
        rare = [i for i in scores if i in T5_IDS]
    else:
        rare = [i for i, score in scores.items() if score < RARE_LOG_PROBABILITY]
    # Of equally rare tokens the later one first: vocabularies are sorted by frequency.
    rare.sort(key=lambda i: (scores[i], -i))
    texts = {i: tokenizer.decode(i) for i in rare}
    rare = [i for i in rare if texts[i].isalpha() and len(texts[i]) <= MAX_LETTERS]
    # Pieces of words have the same text as whole words but are not what a prompt gives.
    typed = tokenizer.token_ids([texts[i] for i in rare])
    found = [RareToken(i, texts[i], scores[i]) for i, ids in zip(rare, typed, strict=True) if list(ids) == [i]]
    return found[:count]
