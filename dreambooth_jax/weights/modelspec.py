"""What a model file says of itself in its safetensors header: the Stability AI model metadata standard, 1.0.1.

User interfaces read these keys to tell what a file is, how to sample from it and what to show. All are texts under
'modelspec.<key>'. Whole models have them and, with an adapter, LoRA and textual inversion files.

Source: github.com/Stability-AI/ModelSpec; the adapters' architectures as kohya-ss/sd-scripts library/sai_model_spec.py.
"""

import datetime
import hashlib
import re
from collections.abc import Mapping

import numpy as np

from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError

PREFIX = 'modelspec.'
VERSION = '1.0.1'
REQUIRED = ('sai_model_spec', 'architecture', 'implementation', 'title')
# The rest of what the standard defines for image models; 'hash_<algorithm>' is open-ended.
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
ORIGINAL_IMPLEMENTATION = 'https://github.com/Stability-AI/generative-models'  # of the original layout, "sgm"
DIFFUSERS_IMPLEMENTATION = 'diffusers'
LORA, TEXTUAL_INVERSION = ADAPTERS = ('lora', 'textual-inversion')
# diffusers' scheduler configurations and the standard name the same two things.
_PREDICTION_TYPES = {'epsilon': 'epsilon', 'v_prediction': 'v'}
# Pipelines of pixels, which the standard does not know, by whether they enlarge; ids in its manner.
PIXEL_FAMILIES = {False: 'if', True: 'if-super-resolution'}
_SHAPES = {
    'sai_model_spec': (r'1\.\d+\.\d+', 'a version such as 1.0.1'),
    'architecture': (r'[\w.-]+(/[\w.-]+)?', "an id such as 'stable-diffusion-v1' or 'stable-diffusion-v1/lora'"),
    'resolution': (r'[1-9]\d*x[1-9]\d*', "width and height such as '512x512'"),
    'prediction_type': ('epsilon|v', "'epsilon' or 'v'"),
    'hash_sha256': ('0x[0-9a-f]{64}', "'0x' and 64 hexadecimal digits"),
    'timestep_range': (r'\d+,\d+', "the first and the last step such as '0,999'"),
}


def architecture(family: str, prediction_type: str = 'epsilon', adapter: str | None = None) -> str:
    """The standard's id of a model or, with an adapter, of a file that changes one.

    Args:
      family: 'sd1', 'sd2', 'sdxl', 'upscaler', or of PIXEL_FAMILIES.
      prediction_type: 'epsilon' or 'v_prediction'; SD 2.x's id says which.
      adapter: None or one of ADAPTERS.
    """
    ids = {
        'sd1': 'stable-diffusion-v1',
        'sd2': 'stable-diffusion-v2-768-v' if prediction_type == 'v_prediction' else 'stable-diffusion-v2-512',
        'sdxl': 'stable-diffusion-xl-v1-base',
        # The standard has none of these; the names of their published repositories.
        'upscaler': 'stable-diffusion-x4-upscaler',
        'if': 'deepfloyd-if-i',
        'if-super-resolution': 'deepfloyd-if-ii',
    }
    return ids[family] + (f'/{adapter}' if adapter else '')


def kohya_version(family: str, prediction_type: str = 'epsilon') -> dict[str, str]:
    """What kohya's trainer says of a LoRA's base model: by it AUTOMATIC1111 shows the file beside the models it fits.

    Args:
      family, prediction_type: as of `architecture`.
    Returns: metadata; empty for families that kohya does not train.
    Source: kohya-ss/sd-scripts train_network.py, library/{model_util,sdxl_model_util}.py; A1111's Lora/network.py,
      which takes what does not begin with 'sdxl_' and has no ss_v2 of 'True' for Stable Diffusion 1.
    """
    if family not in ('sd1', 'sd2', 'sdxl'):
        return {}
    version = {'sd1': 'sd_v1', 'sd2': 'sd_v2'}.get(family, 'sdxl_base_v1-0')
    of_v = '_v' if prediction_type == 'v_prediction' and family != 'sdxl' else ''
    return {'ss_base_model_version': version + of_v, 'ss_v2': str(family == 'sd2')}


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
    """The metadata of one file.

    Args:
      architecture: of `architecture()`, or another id for other models.
      resolution: pixels that the model is made for, a side or (width, height).
      prediction_type: as diffusers' schedulers name it.
      date: of the training's end; now by default.
      **more: other keys of the standard (hash_sha256, trigger_phrase, description, ...); None leaves one out.
    Returns: {'modelspec.<key>': text}.
    Raises: WeightsError for a key or value that the standard does not know.
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
    """Raises: WeightsError that lists every modelspec key that is missing, unknown or malformed; others are free."""
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


def prediction_type(metadata: Mapping[str, str]) -> str | None:
    """What a file says that its network predicts, 'epsilon' or 'v_prediction'; None if it does not say."""
    named = metadata.get(PREFIX + 'prediction_type')
    for ours, theirs in _PREDICTION_TYPES.items():
        if named in (ours, theirs):
            return ours
    model = metadata.get(PREFIX + 'architecture', '').split('/')[0]
    return {architecture('sd2', kind): kind for kind in _PREDICTION_TYPES}.get(model)


def resolution(metadata: Mapping[str, str]) -> int | None:
    """The side, in pixels, of the square images that a file says it is made for; None if it does not say."""
    match = re.fullmatch(r'([1-9]\d*)x\1', metadata.get(PREFIX + 'resolution', ''))
    return int(match[1]) if match else None


def tensor_hash(tensors: Mapping[str, np.ndarray], dtype: str = 'float32') -> str:
    """What the standard calls hash_sha256: of a file's bytes after its header.

    Args:
      tensors: floating-point ones, as files.write_tensors takes them. dtype: as which they are stored.
    """
    digest = hashlib.sha256()
    # A safetensors file holds tensors of one type in the order of their names.
    for name in sorted(tensors):
        digest.update(files.as_stored(name, tensors[name], dtype).reshape(-1).view(np.uint8))
    return f'0x{digest.hexdigest()}'
