"""Finds the tokenizers for a single file, which holds none.

All Stable Diffusion models read prompts with the vocabulary of OpenAI's CLIP. Their tokenizers differ only in the
padding token, which the family of the file determines (OriginalLayout.pad_tokens). So one folder tokenizer/ beside
the file is enough for any of them, and for both text encoders of SDXL. If there is no such folder, the published
tokenizer is downloaded from the hub once.
"""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights import hub
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_facts import OriginalLayout

PUBLISHED = 'openai/clip-vit-large-patch14'
# The tokenizer's files of a repository that holds much more.
_FILES = ('tokenizer_config.json', 'tokenizer.json', 'vocab.json', 'merges.txt', 'special_tokens_map.json')
_FIRST = 'tokenizer'
_FOLDERS = (_FIRST, 'tokenizer_2')


def find(path: Path, layout: OriginalLayout, given: str | os.PathLike | None = None) -> dict[str, Path]:
    """Finds the tokenizer folders for a single file.

    Args:
      path: the file.
      layout: the generation of the model.
      given: a folder that holds tokenizer/ and perhaps tokenizer_2/. By default it is the folder of the file, or the
        hub if that folder holds no tokenizer/.

    Returns:
      {'tokenizer' and, for SDXL, 'tokenizer_2': folder}. They have the padding tokens of the family: if a folder has
      another one, a copy is returned, which exists as long as this process.

    Raises:
      WeightsError: if there is no tokenizer.
      TokenizerError: if a tokenizer cannot be read.
    """
    beside = Path(given).expanduser() if given is not None else path.parent
    pads = layout.pad_tokens
    if (beside / _FIRST).is_dir():
        sources = {name: beside / name if (beside / name).is_dir() else beside / _FIRST for name in pads}
    elif given is not None:
        raise WeightsError(f'tokenizer_dir is {str(given)!r}, which holds no {_FIRST}/ folder; give one that does.')
    else:
        sources = dict.fromkeys(pads, _published(path))
    return {name: _padding_with(pad, sources[name]) for name, pad in pads.items()}


def _published(path: Path) -> Path:
    try:
        return hub.download(PUBLISHED, _FILES)
    except WeightsError as error:
        raise WeightsError(
            f'{path} is a single file, which holds no tokenizer, and {path.parent} has no {_FIRST}/ folder to take one '
            f'from; put one there, or say where one is by tokenizer_dir (setting and flag model_tokenizer_dir); the '
            f'published one could not be had: {error}'
        ) from None


@functools.cache
def _padding_with(pad: str, folder: Path) -> Path:
    tokenizer = Tokenizer.load(folder)
    # A folder in the hub's cache may hold a whole model, but a pipeline must be written with the tokenizer alone.
    if tokenizer.pad_token == pad and folder.name in _FOLDERS:
        return folder
    copy = Path(tempfile.mkdtemp(prefix='tokenizer_'))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    tokenizer.save(copy, pad_token=pad)
    return copy
