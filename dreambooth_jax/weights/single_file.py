"""A whole model in one .safetensors file of the original layout, which A1111, ComfyUI and diffusers read.

The file holds the weights of the UNet, the VAE and the text encoders (original_layout.py) and, in its header, what the
model is (modelspec.py). It holds no tokenizer, and its configurations are derived (original_configs.py).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.weights import files, modelspec, original_configs, original_layout, original_names
from dreambooth_jax.weights.errors import WeightsError


class SingleFile(NamedTuple):
    """What a single file holds.

    Attributes:
      family: one of original_configs.FAMILIES.
      configs: {entry of a pipeline folder: contents of its JSON file}, see original_configs.derive.
      components: {network: {name in diffusers' or transformers' checkpoints: f32 array}}.
      metadata: texts of the header.
    """

    family: str
    configs: dict[str, dict[str, Any]]
    components: dict[str, dict[str, np.ndarray]]
    metadata: dict[str, str]


def write_single_file(
    path: str | os.PathLike,
    components: Mapping[str, original_layout.Tensors],
    configs: original_layout.Configs,
    *,
    dtype: str = 'float32',
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a whole model into one file.

    Args:
      path: '<name>.safetensors'; what lies there is replaced.
      components: {'unet', 'vae', 'text_encoder' and, for SDXL, 'text_encoder_2': {name in diffusers' or transformers'
        checkpoints: array}}.
      configs: {component: contents of its config.json}, and those of 'scheduler', whose prediction_type goes into the
        metadata.
      dtype: of the stored weights, one of files.STORAGE_DTYPES.
      metadata: more texts for the header; 'modelspec.*' keys come before those that are made here, such as the title,
        which is the file's name.
    Returns: the file.
    Raises: WeightsError if the networks are of no family that has this layout or do not fit their configurations, for
      malformed metadata, or if the disk does not take the file; nothing is replaced then.
    """
    path = Path(path)
    if path.suffix != files.SUFFIX:
        raise WeightsError(f'{path} is no name of a single file; it must end in {files.SUFFIX}.')
    if 'scheduler' not in configs:
        raise WeightsError('configs holds no scheduler, which says what the UNet predicts; give its configuration too.')
    tensors = original_layout.to_original(components, configs)
    family = original_configs.family_of(configs)
    scheduler, sample_size = configs['scheduler'], {'sample_size': None, **configs['unet']}['sample_size']
    predicts = {'prediction_type': original_configs.EPSILON, **scheduler}['prediction_type']  # diffusers' default
    if family == 'sdxl':
        # ComfyUI and Forge know an SDXL that predicts v by these tensors alone.
        zero_snr = {'rescale_betas_zero_snr': False, **scheduler}['rescale_betas_zero_snr']
        markers = [original_names.V_MARKER] if predicts == original_configs.V_PREDICTION else []
        markers += [original_names.ZERO_SNR_MARKER] if zero_snr else []
        tensors |= {name: np.zeros(0, np.float32) for name in markers}
    header = modelspec.build(
        architecture=modelspec.architecture(family, predicts),
        title=path.stem,
        resolution=sample_size * _reduction(configs) if sample_size else None,
        prediction_type=predicts,
        hash_sha256=modelspec.tensor_hash(tensors, dtype),
    )
    header |= metadata or {}
    modelspec.check(header)
    files.write_tensors(path, tensors, dtype=dtype, max_shard_bytes=sys.maxsize, metadata=header)
    return path


def _reduction(configs: original_layout.Configs) -> int:
    """Pixels to a latent."""
    return 2 ** (len(configs['vae']['block_out_channels']) - 1)


def read_single_file(
    path: str | os.PathLike,
    *,
    prediction_type: str | None = None,
    configs: original_layout.Configs | None = None,
) -> SingleFile:
    """Reads a whole model.

    Where a file holds averaged weights beside the trained ones, as the first published ones do, the trained ones are
    read: fine-tuning goes on from those.

    Args:
      prediction_type: 'epsilon' or 'v_prediction', above what the file says of itself. An SD 2.x file that was neither
        published with the model nor says it in its metadata cannot be read without.
      configs: {component: keys of its configuration} that the file is known to have, above those that are derived.
    Raises: WeightsError, one sentence (and a line per tensor): for a file that is missing, damaged or pickled, that is
      no whole model of a supported family, or that does not tell what it predicts.
    """
    path = Path(path)
    given, metadata = files.read_header(path)
    shapes = {original_names.canonical(name): shape for name, shape in given.items()}
    family = original_configs.detect(shapes, source=str(path))
    prediction_type = prediction_type or _prediction_type(path, family, shapes, metadata)
    derived = original_configs.derive(
        shapes,
        family,
        prediction_type=prediction_type,
        resolution=modelspec.resolution(metadata),
        source=str(path),
    )
    if original_names.ZERO_SNR_MARKER in shapes:
        derived['scheduler']['rescale_betas_zero_snr'] = True
    for component, known in (configs or {}).items():
        derived[component] = {**derived.get(component, {}), **known}
    tensors = files.read_tensors(path, wanted=lambda name: not original_names.IGNORED.fullmatch(name))
    tensors = {original_names.canonical(name): value for name, value in tensors.items()}
    return SingleFile(family, derived, original_layout.from_original(tensors, derived, source=str(path)), metadata)


def _prediction_type(path: Path, family: str, shapes: original_configs.Shapes, metadata: Mapping[str, str]):
    """What the file or its name says; None if nothing does and the family leaves no doubt."""
    if original_names.V_MARKER in shapes:
        return original_configs.V_PREDICTION
    published = original_configs.PUBLISHED_PREDICTION_TYPES.get(path.name.partition('.')[0])  # also '<name>.fp16'
    said = modelspec.prediction_type(metadata) or published
    if said is None and family == 'sd2':
        # A wrong guess would train on the wrong target without a word.
        raise WeightsError(
            f'{path} is a Stable Diffusion 2.x model and does not say what it predicts; give prediction_type, '
            f"'epsilon' for those made from 2.0-base or 2.1-base (512 pixels), 'v_prediction' for 2.0 or 2.1 (768)."
        )
    return said
