"""Prompts as token ids: a thin, quiet layer over transformers' tokenizers, fed as diffusers' pipelines feed them.

Conventions: ids and mask are i32[N, L], padded to L = `max_length`; a prompt that is too long keeps its head and its
end-of-sequence token. A prompt for T5 is lower-cased and stripped first, as IFPipeline does (`_text_preprocessing`
without clean_caption); CLIP's tokenizer does so by itself.

A word of textual inversion may be several tokens: '<dog>', '<dog>_1', ... A prompt says '<dog>' and all are read
(`maybe_convert_prompt` of diffusers' Stable Diffusion pipelines; IFPipeline wants them written out, which is read here
too).
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAX_LENGTH = 77  # tokens; diffusers' value for IF's T5, and the context length of CLIP's text encoder
KINDS = {'T5Tokenizer': 't5', 'T5TokenizerFast': 't5', 'CLIPTokenizer': 'clip', 'CLIPTokenizerFast': 'clip'}

_logger = logging.getLogger(__name__)


class TokenizerError(ValueError):
    """One sentence: the folder, what was found there, what to do."""


def vector_names(word: str, count: int) -> tuple[str, ...]:
    """The tokens that a word of `count` learned vectors stands for, as diffusers names them."""
    return (word, *(f'{word}_{i}' for i in range(1, count)))


def _transformers():
    # Without these it prints advice about PyTorch, and about forks when a data loader or TensorBoard starts one.
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    import transformers  # slow to import, and not needed to look at --help

    return transformers


class Tokenizer:
    """A tokenizer folder (`tokenizer/` of a pipeline), ready to read prompts.

    Attributes:
      kind: 't5' or 'clip'.
      max_length: L, the length that every prompt is padded or cut to.
      wrapped: the transformers tokenizer.
    """

    def __init__(self, wrapped, kind: str, *, max_length: int = MAX_LENGTH):
        self.wrapped = wrapped
        self.kind = kind
        self.max_length = max_length
        self._note_words()

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, max_length: int | None = None, added: Sequence[str] = ()
    ) -> 'Tokenizer':
        """Opens a folder that holds tokenizer_config.json and a vocabulary; never asks the network.

        Args:
          max_length: None: for CLIP what the folder says, for T5, which reads any length, MAX_LENGTH.
          added: further tokens, see `add_tokens`.
        Raises: TokenizerError if the folder or its files are missing or unreadable, or of another class than KINDS, or
          if a further token is there already.
        """
        folder = Path(folder)
        config_file = folder / 'tokenizer_config.json'
        if not config_file.is_file():
            found = 'the folder does not exist' if not folder.is_dir() else 'the folder holds none'
            raise TokenizerError(f'{config_file} is missing ({found}); give the tokenizer/ folder of a pipeline.')
        try:
            name = json.loads(config_file.read_text('utf-8')).get('tokenizer_class')
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise TokenizerError(f'{config_file} is no readable JSON object ({error}); download it again.') from None
        if not isinstance(name, str) or name not in KINDS:
            raise TokenizerError(f'{config_file}: tokenizer_class is {name!r}; it must be one of {tuple(KINDS)}.')
        files = {'t5': ('tokenizer.json', 'spiece.model'), 'clip': ('tokenizer.json', 'vocab.json')}[KINDS[name]]
        if not any((folder / file).is_file() for file in files):
            raise TokenizerError(f'{folder} holds no vocabulary; one of {files} must lie there: download it again.')
        wrapper = getattr(_transformers(), name.removesuffix('Fast'))
        try:
            wrapped = wrapper.from_pretrained(str(folder), local_files_only=True)
            if max_length is None:
                # Folders that do not say have a number beyond all bounds there.
                says = wrapped.model_max_length if KINDS[name] == 'clip' else MAX_LENGTH
                max_length = says if says < 10**6 else MAX_LENGTH
            if type(max_length) is not int or max_length < 2:  # a start and an end
                raise ValueError(f'model_max_length is {max_length!r}')
            tokenizer = cls(wrapped, KINDS[name], max_length=max_length)
            tokenizer(['a'])  # whether it pads, cuts and ends a prompt, which its files may not say
        # The Rust backend raises bare Exceptions for files it cannot parse, and anything for values of another type.
        except Exception as error:
            reason = ' '.join(str(error).split())[:200]
            raise TokenizerError(f'{folder} holds no readable {name} ({reason}); download it again.') from error
        tokenizer.add_tokens(added)
        return tokenizer

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Adds tokens behind the vocabulary, which are found anywhere in a text, inside words too.

        Args:
          tokens: lower-case texts without spaces.
        Returns: their ids.
        Raises: TokenizerError, before anything is added, if one is in the vocabulary.
        """
        vocabulary = self.wrapped.get_vocab()
        for token in tokens:
            if token in vocabulary:
                raise TokenizerError(f'{token!r} is a token of this tokenizer already; choose a new one.')
        self.wrapped.add_tokens(list(tokens))
        self._note_words()
        return self.ids_of(tokens)

    def ids_of(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens that are in the vocabulary."""
        return self.wrapped.convert_tokens_to_ids(list(tokens))

    def save(self, folder: str | os.PathLike, *, pad_token: str | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and added_tokens.json; other files there stay.

        Args:
          pad_token: fill up with this token of the vocabulary instead.
        """
        before = self.wrapped.pad_token
        self.wrapped.pad_token = pad_token or before
        self.wrapped.save_pretrained(str(folder))
        self.wrapped.pad_token = before
        # transformers 4 has tokenizers that read vocab.json instead of tokenizer.json: they find added tokens here.
        added = dict(self.wrapped.added_tokens_encoder)
        (Path(folder) / 'added_tokens.json').write_text(json.dumps(added, indent=2) + '\n', 'utf-8')

    def _note_words(self) -> None:
        # (pattern of a word, all its tokens). A word whose tokens are written out already is left alone.
        added = self.wrapped.added_tokens_encoder
        self._words = []
        for word in (word for word in added if f'{word}_1' in added):
            count = 1
            while f'{word}_{count}' in added:
                count += 1
            alone = re.escape(word) + rf'(?!_\d)(?! {re.escape(word)}_1)'
            self._words.append((alone, ' '.join(vector_names(word, count))))

    @property
    def pad_token(self) -> str:
        """The text of the token that fills a prompt up."""
        return self.wrapped.pad_token

    def prepare(self, prompt: str) -> str:
        """The text that is really tokenized."""
        prompt = prompt.lower().strip() if self.kind == 't5' else prompt
        for alone, tokens in self._words:
            prompt = re.sub(alone, lambda _, tokens=tokens: tokens, prompt, flags=re.IGNORECASE)
        return prompt

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes prompts; warns (logging) of each one that has to be cut, with the part that is lost.

        Args:
          prompts: N texts; an empty text is the unconditional prompt.
        Returns: ids i32[N, L], mask i32[N, L] with 0 where the token is padding.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return (np.zeros((0, self.max_length), np.int32),) * 2
        texts = [self.prepare(prompt) for prompt in prompts]
        whole = self.wrapped(texts, verbose=False).input_ids
        for prompt, ids in zip(prompts, whole, strict=True):
            if len(ids) > self.max_length:
                lost = self.wrapped.decode(ids[self.max_length - 1 : -1], skip_special_tokens=True)
                _logger.warning(
                    'prompt %r has %d tokens but the model reads %d: %r is cut off; shorten the prompt.',
                    prompt,
                    len(ids),
                    self.max_length,
                    lost,
                )
        padded = self.wrapped(
            texts, padding='max_length', max_length=self.max_length, truncation=True, return_attention_mask=True
        )
        return np.array(padded.input_ids, np.int32), np.array(padded.attention_mask, np.int32)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone: not padded, not cut, without special tokens."""
        texts = [self.prepare(text) for text in texts]
        return self.wrapped(texts, add_special_tokens=False, verbose=False).input_ids if texts else []

    @property
    def vocabulary_size(self) -> int:
        """Number of ids; the text encoder's vocab_size must be at least this."""
        return len(self.wrapped)

    @property
    def end_id(self) -> int:
        """The id that ends every prompt."""
        return self.wrapped.eos_token_id

    def decode(self, token_id: int) -> str:
        """The text of one token, without marks for the start or end of a word."""
        return self.wrapped.decode([int(token_id)]).strip()

    def scores(self) -> dict[int, float]:
        """How probable each token is: log-probabilities (T5's Unigram), or minus the rank of its merge (CLIP's BPE).

        Returns: {id: score} of every token that has one; special tokens and single bytes have none.
        """
        model = json.loads(self.wrapped.backend_tokenizer.to_str())['model']
        if model['type'] == 'Unigram':
            special = set(self.wrapped.all_special_ids)
            return {i: float(score) for i, (_, score) in enumerate(model['vocab']) if i not in special}
        merges = (merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges'])
        return {model['vocab'][''.join(merge)]: -float(rank) for rank, merge in enumerate(merges)}
