"""Tokenizes prompts with transformers' tokenizers, in the same way as the pipelines of diffusers, and without warnings.

Token ids and masks are i32[N, L], padded to L = `max_length`. A prompt that is too long keeps its beginning and, if its
tokenizer has one, its end-of-sequence token. A prompt for T5 is first lower-cased and stripped, as in IFPipeline
(`_text_preprocessing` without clean_caption), except for models that read it as it is written; CLIP's tokenizer does
this itself. A prompt for a language model (Qwen) stands in the form of a chat (chat.py).

A word of textual inversion may consist of several tokens: '<dog>', '<dog>_1', ... If a prompt contains '<dog>', all of
them are used (`maybe_convert_prompt` of diffusers' Stable Diffusion pipelines). IFPipeline requires all tokens to be
written out, which is accepted here too.
"""

import copy
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

MAX_LENGTH = 77  # tokens; the length in diffusers for IF's T5, and the longest input of CLIP's text encoder
QWEN_MAX_LENGTH = 512  # tokens; the length in diffusers for FLUX.2 Klein and Z-Image
KINDS = {
    'T5Tokenizer': 't5',
    'T5TokenizerFast': 't5',
    'CLIPTokenizer': 'clip',
    'CLIPTokenizerFast': 'clip',
    'Qwen2Tokenizer': 'qwen',
    'Qwen2TokenizerFast': 'qwen',
}
_FILES = {
    't5': ('tokenizer.json', 'spiece.model'),
    'clip': ('tokenizer.json', 'vocab.json'),
    'qwen': ('tokenizer.json', 'vocab.json'),
}

_logger = logging.getLogger(__name__)


class TokenizerError(ValueError):
    """A tokenizer folder is unusable; one sentence says which folder, what was found there and what to do."""


def vector_names(word: str, count: int) -> tuple[str, ...]:
    """Returns the tokens of a word with `count` learned vectors, as diffusers names them."""
    return (word, *(f'{word}_{i}' for i in range(1, count)))


def _transformers():
    # Otherwise it prints advice about PyTorch, and warns of forks when a data loader or TensorBoard starts a process.
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    import transformers  # imported only here because it is slow, and --help does not need it

    return transformers


class Tokenizer:
    """The tokenizer of a pipeline folder's `tokenizer/`.

    Attributes:
      kind: 't5', 'clip' or 'qwen'.
      lowers: whether prompts are lower-cased and stripped; see `as_written`.
      max_length: L, the length to which every prompt is padded or cut.
      wrapped: the transformers tokenizer.
      template: function from a prompt to the text that is tokenized for it, or None; see `with_template`.
    """

    template: Callable[[str], str] | None = None

    def __init__(self, wrapped, kind: str, *, max_length: int = MAX_LENGTH):
        self.wrapped = wrapped
        self.kind = kind
        self.lowers = kind == 't5'
        self.max_length = max_length
        self._note_words()

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, max_length: int | None = None, added: Sequence[str] = ()
    ) -> 'Tokenizer':
        """Loads a folder that holds tokenizer_config.json and a vocabulary; never uses the network.

        Args:
          folder: the tokenizer folder.
          max_length: length of tokenized prompts. None means what the folder says for CLIP, MAX_LENGTH for T5, which
            has no fixed length, and for Qwen what the folder says up to QWEN_MAX_LENGTH, since the limit of published
            ones is far longer than any prompt.
          added: further tokens; see `add_tokens`.

        Raises:
          TokenizerError: if the folder or its files are missing or unreadable, if the class is not one of KINDS, or if
            a further token is already in the vocabulary.
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
        files = _FILES[KINDS[name]]
        if not any((folder / file).is_file() for file in files):
            raise TokenizerError(f'{folder} holds no vocabulary; one of {files} must lie there: download it again.')
        wrapper = getattr(_transformers(), name.removesuffix('Fast'))
        try:
            wrapped = wrapper.from_pretrained(str(folder), local_files_only=True)
            if max_length is None:
                # A folder that does not say its length is loaded with a huge number.
                says, kind = wrapped.model_max_length, KINDS[name]
                usual = {'clip': says if says < 10**6 else MAX_LENGTH, 'qwen': min(says, QWEN_MAX_LENGTH)}
                max_length = usual.get(kind, MAX_LENGTH)
            if type(max_length) is not int or max_length < 2:  # a start and an end token must fit
                raise ValueError(f'model_max_length is {max_length!r}')
            tokenizer = cls(wrapped, KINDS[name], max_length=max_length)
            tokenizer(['a'])  # tests padding and truncation, which the files may leave undefined
        # The Rust backend raises bare Exceptions for files that it cannot parse, and others for values of a wrong type.
        except Exception as error:
            reason = ' '.join(str(error).split())[:200]
            raise TokenizerError(f'{folder} holds no readable {name} ({reason}); download it again.') from error
        tokenizer.add_tokens(added)
        return tokenizer

    def as_written(self, max_length: int) -> 'Tokenizer':
        """Returns the same tokenizer for prompts of another length, which are neither lower-cased nor stripped."""
        other = copy.copy(self)
        other.lowers, other.max_length = False, max_length
        return other

    def with_template(self, template: Callable[[str], str] | None) -> 'Tokenizer':
        """Returns the same tokenizer with a function that is applied to prompts before they are tokenized.

        Args:
          template: function from a prompt to a text, such as chat.asked_without_thought; None for none.
        """
        other = copy.copy(self)
        other.template = template
        return other

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Adds tokens at the end of the vocabulary. They are recognised everywhere in a text, also inside words.

        Args:
          tokens: lower-case texts without spaces.

        Returns:
          Their ids.

        Raises:
          TokenizerError: if one is already in the vocabulary; then none is added.
        """
        vocabulary = self.wrapped.get_vocab()
        for token in tokens:
            if token in vocabulary:
                raise TokenizerError(f'{token!r} is a token of this tokenizer already; choose a new one.')
        self.wrapped.add_tokens(list(tokens))
        self._note_words()
        return self.ids_of(tokens)

    def ids_of(self, tokens: Sequence[str]) -> list[int]:
        """Returns the ids of tokens that are in the vocabulary."""
        return self.wrapped.convert_tokens_to_ids(list(tokens))

    def save(self, folder: str | os.PathLike, *, pad_token: str | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and added_tokens.json; other files in the folder stay.

        Args:
          folder: where to write the files.
          pad_token: a token of the vocabulary that is written as the padding token instead of the present one.
        """
        before = self.wrapped.pad_token
        self.wrapped.pad_token = pad_token or before
        self.wrapped.save_pretrained(str(folder))
        self.wrapped.pad_token = before
        # Some tokenizers of transformers 4 read vocab.json instead of tokenizer.json, and added tokens from this file.
        added = dict(self.wrapped.added_tokens_encoder)
        (Path(folder) / 'added_tokens.json').write_text(json.dumps(added, indent=2) + '\n', 'utf-8')

    def _note_words(self) -> None:
        # (pattern for a word, all its tokens). The pattern excludes a word whose other tokens are already written out.
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
        """The text of the padding token."""
        return self.wrapped.pad_token

    def prepare(self, prompt: str) -> str:
        """Returns the text that is tokenized for a prompt.

        It is lower-cased if `lowers` says so, has all tokens of added words, and stands in the template.
        """
        prompt = self._spelled(prompt)
        return self.template(prompt) if self.template else prompt

    def _spelled(self, prompt: str) -> str:
        prompt = prompt.lower().strip() if self.lowers else prompt
        for alone, tokens in self._words:
            prompt = re.sub(alone, lambda _, tokens=tokens: tokens, prompt, flags=re.IGNORECASE)
        return prompt

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes prompts. For each prompt that is too long, it logs a warning that quotes the part that is cut off.

        Args:
          prompts: N texts; an empty text is the unconditional prompt.

        Returns:
          (ids i32[N, L], mask i32[N, L]); the mask is 0 for padding tokens.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return (np.zeros((0, self.max_length), np.int32),) * 2
        texts = [self.prepare(prompt) for prompt in prompts]
        whole = self.wrapped(texts, verbose=False).input_ids
        for prompt, ids in zip(prompts, whole, strict=True):
            if len(ids) > self.max_length:
                # T5 and CLIP keep the end-of-sequence token; Qwen has none, and the end of its template is cut off too.
                cut = ids[self.max_length :] if self.kind == 'qwen' else ids[self.max_length - 1 : -1]
                lost = self.wrapped.decode(cut, skip_special_tokens=self.kind != 'qwen')
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
        """Returns the ids of each text without padding, truncation, special tokens or template."""
        texts = [self._spelled(text) for text in texts]
        return self.wrapped(texts, add_special_tokens=False, verbose=False).input_ids if texts else []

    @property
    def vocabulary_size(self) -> int:
        """The number of ids; vocab_size of the text encoder must be at least this."""
        return len(self.wrapped)

    @property
    def end_id(self) -> int:
        """The id of the token that ends every prompt, or, for Qwen, every message."""
        return self.wrapped.eos_token_id

    def decode(self, token_id: int) -> str:
        """Returns the text of one token, without marks for the start or end of a word."""
        return self.wrapped.decode([int(token_id)]).strip()

    def scores(self) -> dict[int, float]:
        """Returns how probable each token is: log-probabilities (T5's Unigram) or minus the merge rank (BPE).

        Returns:
          {id: score} for every token that has one; special tokens and single bytes have none.
        """
        model = json.loads(self.wrapped.backend_tokenizer.to_str())['model']
        if model['type'] == 'Unigram':
            special = set(self.wrapped.all_special_ids)
            return {i: float(score) for i, (_, score) in enumerate(model['vocab']) if i not in special}
        merges = (merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges'])
        return {model['vocab'][''.join(merge)]: -float(rank) for rank, merge in enumerate(merges)}
