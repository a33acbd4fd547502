"""Finds rare tokens as names for a subject: words of one token that mean little to a model before it is fine-tuned.

The language model and the diffusion model should have a weak prior for an identifier (Ruiz et al. 2023, section 3.2).
So it should be a rare token that decodes to few letters without spaces. Which tokens are rare depends on the
vocabulary:

- T5-XXL: ids 5000 to 10000, the paper's range. Its vocabulary is sorted by frequency.
- A small Unigram vocabulary (Storybook): tokens that are rarer than one word in 30 000 according to their scores.
- CLIP's BPE: merge rank 40 000 and above. The paper's range of ids does not work here, as it holds common words.
"""

import math
from typing import NamedTuple

from dreambooth_jax.text.tokenize import Tokenizer

T5_IDS = range(5000, 10001)  # Ruiz et al. 2023, section 3.2
RARE_LOG_PROBABILITY = -math.log(30_000)
CLIP_LOWEST_RANK = 40_000
MAX_LETTERS = 4  # the paper allows 3 characters; 4 also allow ohwx, which many users know


class RareToken(NamedTuple):
    """A candidate for an identifier; a lower `score`, from Tokenizer.scores, means a rarer token."""

    id: int
    text: str
    score: float


def rare_tokens(tokenizer: Tokenizer, count: int) -> list[RareToken]:
    """Returns candidates for an identifier, the rarest first.

    Each has 1 to 4 letters, and its text in a prompt is tokenized to exactly this one token.

    Args:
      tokenizer: the model's tokenizer.
      count: largest number of candidates, > 0.

    Returns:
      Up to `count` candidates; fewer, or none, if the vocabulary has no more.
    """
    # What counts as rare depends on the kind of the vocabulary; see the module's docstring.
    scores = tokenizer.scores()
    if tokenizer.kind == 'clip':
        rare = [i for i, score in scores.items() if -score >= CLIP_LOWEST_RANK]
    elif tokenizer.vocabulary_size > T5_IDS.stop:
        rare = [i for i in scores if i in T5_IDS]
    else:
        rare = [i for i, score in scores.items() if score < RARE_LOG_PROBABILITY]
    # Of equally rare tokens the later one comes first, because vocabularies are sorted by frequency.
    rare.sort(key=lambda i: (scores[i], -i))
    texts = {i: tokenizer.decode(i) for i in rare}
    rare = [i for i in rare if texts[i].isalpha() and len(texts[i]) <= MAX_LETTERS]
    # A piece of a word may have the same text as a whole word, but a prompt with this text gives the whole word.
    typed = tokenizer.token_ids([texts[i] for i in rare])
    found = [RareToken(i, texts[i], scores[i]) for i, ids in zip(rare, typed, strict=True) if list(ids) == [i]]
    return found[:count]
