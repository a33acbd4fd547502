"""A CLIP tokenizer of letters and a few words, with the numbers that its text encoders must share."""

import functools
import string

import transformers

VOCABULARY_SIZE, LENGTH = 50, 20
START, END = 48, 49  # the highest ids, as in the published tokenizer


@functools.cache
def tokenizer(pad_token: str = '<|endoftext|>'):
    letters = string.ascii_lowercase[:20]
    merges = [('d', 'o'), ('do', 't</w>'), ('do', 'g</w>'), ('c', 'a'), ('s', 'k'), ('sk', 's</w>')]
    pieces = ['!', *letters, '!</w>', *(f'{letter}</w>' for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    vocabulary |= {'<|startoftext|>': START, '<|endoftext|>': END}
    assert sorted(vocabulary.values()) == list(range(VOCABULARY_SIZE))
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=LENGTH)
