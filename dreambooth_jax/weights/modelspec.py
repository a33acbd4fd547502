"""Metadata in the safetensors header of a model file, after the Stability AI model metadata standard 1.0.1.

User interfaces read these keys to learn what a file is, how to sample with it and what to show. All values are texts
under 'modelspec.<key>'. Whole models have them, and so have LoRA and textual inversion files, which name an adapter.

Source: github.com/Stability-AI/ModelSpec; architecture ids of adapters: kohya-ss/sd-scripts library/sai_model_spec.py.
"""

import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_facts import EPSILON, OriginalLayout

PREFIX = 'modelspec.'
VERSION = '1.0.1'
REQUIRED = ('sai_model_spec', 'architecture', 'implementation', 'title')
# The other keys that the standard defines for image models. It also allows 'hash_<algorithm>' for any algorithm.
OPTIONAL = (
    'description',
    'author',
    'date',
    'hash_sha256',
    'implementation_version',
    'license',
    'usage_hint',
    'category',
    'thumbnail',
    'tags',
    'merged_from',
    'resolution',
    'trigger_phrase',
    'prediction_type',
    'timestep_range',
    'encoder_layer',
    'is_negative_embedding',
    'unet_dtype',
    'vae_dtype',
    'preprocessor',
)
ORIGINAL_IMPLEMENTATION = 'https://github.com/Stability-AI/generative-models'  # "sgm", the original layout
DIFFUSERS_IMPLEMENTATION = 'diffusers'
LORA, TEXTUAL_INVERSION = ADAPTERS = ('lora', 'textual-inversion')
# Scheduler configurations of diffusers -> names of the same prediction types in the standard.
_PREDICTION_TYPES = {'epsilon': 'epsilon', 'v_prediction': 'v'}
_SHAPES = {
    'sai_model_spec': (r'1\.\d+\.\d+', 'a version such as 1.0.1'),
    'architecture': (r'[\w.-]+(/[\w.-]+)?', "an id such as 'stable-diffusion-v1' or 'stable-diffusion-v1/lora'"),
    'resolution': (r'[1-9]\d*x[1-9]\d*', "width and height such as '512x512'"),
    'prediction_type': ('epsilon|v', "'epsilon' or 'v'"),
    'hash_sha256': ('0x[0-9a-f]{64}', "'0x' and 64 hexadecimal digits"),
    'timestep_range': (r'\d+,\d+', "the first and the last step such as '0,999'"),
}


def adapter_of(architecture: str, adapter: str) -> str:
    """Returns the standard's id of a file that changes a model.

    Args:
      architecture: the id of the model.
      adapter: one of ADAPTERS.
    """
    return f'{architecture}/{adapter}'


def kohya_version(layout: OriginalLayout, prediction_type: str = EPSILON) -> dict[str, str]:
    """Returns the metadata in which kohya's trainer records the base model of a LoRA.

    AUTOMATIC1111 uses it to show a LoRA only beside the models that it fits.

    Args:
      layout: the generation of the model.
      prediction_type: what the model predicts.

    Returns:
      {key: text}; empty for models that kohya does not train.

    Source: kohya-ss/sd-scripts train_network.py, library/{model_util,sdxl_model_util}.py; AUTOMATIC1111's
      Lora/network.py, which takes a file for Stable Diffusion 1 unless its version begins with 'sdxl_' or its ss_v2 is
      'True'.
    """
    versions = layout.kohya_versions
    if not versions:
        return {}
    version = versions.get(prediction_type, versions[EPSILON])
    return {'ss_base_model_version': version, 'ss_v2': str(layout.kohya_is_v2)}


def build(
    *,
    architecture: str,
    title: str,
    implementation: str = ORIGINAL_IMPLEMENTATION,
    resolution: int | tuple[int, int] | None = None,
    prediction_type: str | None = None,
    date: datetime.datetime | None = None,
    **more: str | None,
) -> dict[str, str]:
    """Builds the metadata of one file.

    Args:
      architecture: the id of the model, such as OriginalLayout.architecture gives, or of an adapter.
      title: the name of the model that user interfaces show.
      implementation: the code or layout that the file belongs to, such as ORIGINAL_IMPLEMENTATION.
      resolution: size in pixels of the images that the model is made for: the side of a square, or (width, height).
      prediction_type: as schedulers of diffusers name it, 'epsilon' or 'v_prediction'.
      date: when the training ended; the default is now.
      **more: other keys of the standard (hash_sha256, trigger_phrase, description, ...); a key with None is left out.

    Returns:
      {'modelspec.<key>': text}.

    Raises:
      WeightsError: for a key or a value that the standard does not allow.
    """
    if prediction_type is not None and prediction_type not in _PREDICTION_TYPES:
        raise WeightsError(f'prediction_type is {prediction_type!r}; it must be one of {tuple(_PREDICTION_TYPES)}.')
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution or (None, None)
    date = date or datetime.datetime.now(datetime.UTC)
    values = {
        'sai_model_spec': VERSION,
        'architecture': architecture,
        'implementation': implementation,
        'title': title,
        'date': date.isoformat(timespec='seconds'),
        'resolution': f'{width}x{height}' if width else None,
        'prediction_type': _PREDICTION_TYPES[prediction_type] if prediction_type else None,
        **more,
    }
    metadata = {PREFIX + key: value for key, value in values.items() if value is not None}
    check(metadata)
    return metadata


def check(metadata: Mapping[str, str]) -> None:
    """Checks the 'modelspec.*' keys of some metadata; other keys may have any value.

    Raises:
      WeightsError: it lists every key that is missing, unknown or malformed.
    """
    found = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    problems = [f'missing: {PREFIX}{key}' for key in REQUIRED if not found.get(key)]
    for key, value in found.items():
        pattern, allowed = _SHAPES.get(key, ('(?s:.*)', 'a text'))
        if key not in REQUIRED + OPTIONAL and not key.startswith('hash_'):
            problems.append(f'unknown: {PREFIX}{key}')
        elif not isinstance(value, str) or not re.fullmatch(pattern, value):
            problems.append(f'malformed: {PREFIX}{key} is {value!r} but must be {allowed}')
    if problems:
        raise WeightsError(f'this metadata does not follow the model metadata standard {VERSION}:', problems)


def prediction_type(metadata: Mapping[str, str], layouts: Sequence[OriginalLayout] = ()) -> str | None:
    """Returns what a file says its network predicts, 'epsilon' or 'v_prediction'; None if it does not say.

    Args:
      metadata: that of the file.
      layouts: generations of models. An id says it too, if its generation has one for each prediction type.
    """
    named = metadata.get(PREFIX + 'prediction_type')
    for ours, theirs in _PREDICTION_TYPES.items():
        if named in (ours, theirs):
            return ours
    model = metadata.get(PREFIX + 'architecture', '').split('/')[0]
    telling = (layout.architectures for layout in layouts if len(layout.architectures) > 1)
    return {name: kind for ids in telling for kind, name in ids.items()}.get(model)


def resolution(metadata: Mapping[str, str]) -> int | None:
    """Returns the side in pixels of the square images that a file says it is made for; None if it does not say."""
    match = re.fullmatch(r'([1-9]\d*)x\1', metadata.get(PREFIX + 'resolution', ''))
    return int(match[1]) if match else None


def tensor_hash(tensors: Mapping[str, np.ndarray], dtype: str = 'float32') -> str:
    """Computes the standard's hash_sha256: the hash of all bytes of a file after its header.

    Args:
      tensors: {name: floating-point array}, as files.write_tensors takes them.
      dtype: the dtype in which they are stored.

    Returns:
      '0x' and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    # In a safetensors file, tensors of one dtype are stored in the order of their names.
    for name in sorted(tensors):
        digest.update(files.as_stored(name, tensors[name], dtype).reshape(-1).view(np.uint8))
    return f'0x{digest.hexdigest()}'
