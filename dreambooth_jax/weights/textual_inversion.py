"""Reads and writes files of textual inversion: the learned table rows of a token, without a text encoder.

    one text encoder     {token: f32[n, width]}, as diffusers loads it
    SDXL's two           {'clip_l': f32[n, 768], 'clip_g': f32[n, 1280]}, as kohya, AUTOMATIC1111 and ComfyUI name them

Our files also hold the token in their header. In AUTOMATIC1111 and ComfyUI the name of the file is the word to write in
a prompt. So <sks-dog> is stored in `sks-dog.safetensors`, and its word is `sks-dog` in AUTOMATIC1111 and
`embedding:sks-dog` in ComfyUI. A token with n table rows stands for n consecutive tokens ('<dog>', '<dog>_1', ... in
diffusers).

Source: diffusers 0.42.1 loaders/textual_inversion.py; AUTOMATIC1111 modules/textual_inversion/textual_inversion.py.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError

_KEYS = {'text_encoder': 'clip_l', 'text_encoder_2': 'clip_g'}
_NAMELESS = ('emb_params', 'string_to_param.*', '*')  # in files converted from AUTOMATIC1111's pickled ones
_TOKEN = 'token'


def file_name(token: str) -> str:
    """Returns the name of a token's file, such as 'sks-dog.safetensors'; it keeps letters, digits, '-', '_' and '.'."""
    stem = re.sub(r'[^\w.-]+', '_', token.strip('<>')).strip('._')
    return f'{stem or "learned_embeds"}{files.SUFFIX}'


def write_textual_inversion(
    path: str | os.PathLike,
    token: str,
    rows: Mapping[str, Any],
    *,
    dtype: str = 'float32',
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes the learned table rows of one token.

    Args:
      path: path of the .safetensors file; other programs use its name as the token, see file_name.
      token: the token, such as '<sks-dog>'.
      rows: {component: f32[n, width] or f32[width]} for 'text_encoder' and, for SDXL, 'text_encoder_2'.
      dtype: dtype of the stored rows, one of files.STORAGE_DTYPES.
      metadata: additional texts for the header.

    Returns:
      The path of the file.

    Raises:
      WeightsError: if the token is empty or reserved, for other components or shapes, or if the file cannot be written
        to the disk.
    """
    path = Path(path)
    if not token or token in (*_NAMELESS, *_KEYS.values()):
        raise WeightsError(f'{path}: the token is {token!r} but must be a new word, such as <dog>.')
    if tuple(rows) not in (('text_encoder',), tuple(_KEYS)):
        raise WeightsError(f'{path} would hold rows of {tuple(rows)}; it can hold text_encoder, or {tuple(_KEYS)}.')
    arrays = {component: _two_axes(path, component, np.asarray(value)) for component, value in rows.items()}
    names = _KEYS if len(arrays) > 1 else {'text_encoder': token}
    tensors = {names[component]: value for component, value in arrays.items()}
    files.write_tensors(path, tensors, dtype=dtype, metadata={_TOKEN: token, **(metadata or {})})
    return path


def read_textual_inversion(path: str | os.PathLike, widths: Mapping[str, int]) -> tuple[str, dict[str, np.ndarray]]:
    """Reads the learned table rows of one token.

    Args:
      path: the file.
      widths: {component: width of its token table} for the text encoders that will use the rows.

    Returns:
      (token, {component: f32[n, width]}).

    Raises:
      WeightsError: if the file is not a textual inversion, or is one for other text encoders.
    """
    path = Path(path)
    tensors, header = files.read_tensors(path), files.read_metadata(path)
    token = header.get(_TOKEN, path.stem)
    if tensors.keys() == set(_KEYS.values()):
        rows = {component: tensors[key] for component, key in _KEYS.items()}
    elif len(tensors) == 1:
        key, value = next(iter(tensors.items()))
        token = token if key in (*_NAMELESS, *_KEYS.values()) else key
        rows = {'text_encoder': value}
    else:
        raise WeightsError(
            f'{path} holds {len(tensors)} tensors; a textual inversion holds one, named after its token, or clip_l and '
            f'clip_g.'
        )
    rows = {component: _two_axes(path, component, value) for component, value in rows.items()}
    found = {component: value.shape[1] for component, value in rows.items()}
    if found != dict(widths):
        raise WeightsError(
            f'{path} holds rows of widths {found} but the text encoders take {dict(widths)}; use one that was learned '
            f'with a model of the same kind.'
        )
    return token, rows


def _two_axes(path, component, value) -> np.ndarray:
    value = value[None] if value.ndim == 1 else value
    if value.ndim != 2 or not value.size:
        raise WeightsError(f'{path}: the rows of {component} have shape {list(value.shape)} but must be [n, width].')
    return value
