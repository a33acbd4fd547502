"""Reads and writes a transformer alone as one .safetensors file, as its makers publish it and ComfyUI keeps it.

The file holds neither text encoders, VAE, tokenizers and schedule nor a configuration: all of these are those of a
pipeline folder, in which the file takes the place of the transformer's own weights. It may have the names of the
makers' code (original_transformer.py) or those of diffusers, with ComfyUI's prefix or without. It is written with the
makers' names and without a prefix, as ComfyUI's node "Load Diffusion Model" and diffusers' from_single_file read it.
The index of a file in shards is read as if it were the file.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.weights import files, lora_files, mapping, modelspec
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_transformer import OriginalTransformer, differences, own_names
from dreambooth_jax.weights.pipeline import (
    Layout,
    Network,
    Pipeline,
    abstract_network,
    filled_network,
    network_tensors,
)

SETTING = '(setting and flag model_transformer_file)'
# Names that begin so, in the original layout and in diffusers', are those of a UNet.
_OF_UNET = ('input_blocks.', 'down_blocks.')
_KINDS = ('missing', 'unused', 'wrong shape')


def check(path: str | os.PathLike, family: Layout, model: str) -> None:
    """Checks, without reading any weights, that a file may hold the transformer of a model.

    Args:
      path: the file.
      family: that of the model.
      model: name of the model for an error.

    Raises:
      WeightsError: one sentence, if the family has no such files, or there is no such file.
    """
    if family.original_transformer is None:
        raise WeightsError(
            f'transformer_file is {str(path)!r}, but {model} is a {family.class_name}, which has no transformer in a '
            f'file of its own; leave it out {SETTING}.'
        )
    if not Path(path).is_file():
        raise WeightsError(
            f'transformer_file is {str(path)!r}, which is no file; give a {files.SUFFIX} file of the transformer alone '
            f'{SETTING}.'
        )


def read_network(
    path: str | os.PathLike,
    family: Layout,
    config: Mapping[str, Any],
    *,
    families: Sequence[Layout],
    model: str,
    dtype: Any,
    frozen_dtype: str | None = None,
) -> Network:
    """Reads the transformer of a model from a file of its own.

    Args:
      path: the file, which `check` has accepted.
      family: that of the model.
      config: contents of the config.json of its transformer.
      families: those by whose names an error calls a file of another one.
      model: name of the model for an error.
      dtype: compute dtype of the network; parameters are held as functional.held says.
      frozen_dtype: as in pipeline.Network. If it is given, the file is read tensor by tensor.

    Raises:
      WeightsError: one sentence, if the file is damaged, pickled or quantised, or holds adapters, another network or
        the transformer of another family. If tensors are missing, not used or of other shapes, it lists them.
    """
    path, original = Path(path), family.original_transformer
    network = abstract_network(family.denoiser, config, dtype)
    shapes = {name: parameter.shape for name, parameter in mapping.torch_names(network).items()}
    header = files.read_header(path).shapes
    if lora_files.are_names_of_lora(header):
        raise WeightsError(
            f'{path} holds LoRA adapters, which change a transformer and are none; give the transformer that they were '
            f'trained on, and this file to sample as --lora.'
        )
    own = own_names(header)
    is_original, usual = _names(original, shapes, own)
    found = {usual[name]: header[own[name]] for name in own}
    wanted = original.shapes(shapes) if is_original else shapes
    if problems := differences(found, wanted, original.ignored):
        raise _misfit(path, family, families, model, found, problems)
    tensors = {given: usual[name] for name, given in own.items() if usual[name] in wanted}
    # Of shards all tensors are opened, which costs nothing until one is read.
    opened = files.view_tensors(path, tensors.__contains__)
    values = {tensors[name]: value for name, value in opened.items() if name in tensors}
    if is_original:
        values = original.taken_apart(values, shapes)
    return filled_network(network, family.denoiser, config, values, str(path), dtype, frozen_dtype)


def _names(
    original: OriginalTransformer, shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, str]
) -> tuple[bool, dict[str, str]]:
    """Returns whether a file has the makers' names, and {name in it, without a prefix: the usual name}."""
    others = original.other_names(shapes)
    usual = {name: others.get(name, name) for name in own}
    # Of some tensors both names are the same. So what counts is how many differ from those of either layout.
    if len(original.shapes(shapes).keys() ^ set(usual.values())) <= len(shapes.keys() ^ own.keys()):
        return True, usual
    return False, {name: name for name in own}


def _misfit(
    path: Path,
    family: Layout,
    families: Sequence[Layout],
    model: str,
    found: Mapping[str, tuple[int, ...]],
    problems: list[str],
) -> WeightsError:
    """Returns the error of a file that does not hold the tensors of this transformer: what it holds, if that is known.

    Args:
      found: {name, without a prefix: shape} of the tensors of the file.
      problems: one text for each tensor that does not fit.
    """
    wanted = f'but {model} is {family.title}; give a file of that, or the model that belongs to this one.'
    kinds = families_of(found, families)
    if kinds and family not in kinds:
        return WeightsError(f'{path} holds the transformer of {kinds[0].title}, {wanted}')
    if any(name.startswith(_OF_UNET) for name in found):
        return WeightsError(f'{path} holds a UNet, {wanted}')
    counts = {kind: sum(problem.startswith(kind) for problem in problems) for kind in _KINDS}
    if counts['unused'] == len(found):
        holds = f'it begins with {next(iter(found))}' if found else 'it has no tensors that could be of one'
        return WeightsError(f'{path} holds no transformer ({holds}), {wanted}')
    counted = ', '.join(f'{count} {kind}' for kind, count in counts.items() if count)
    return WeightsError(
        f'{path} does not fit the transformer of {model} ({counted}); give the file that belongs to its config.json, '
        f'or the model that belongs to the file:',
        problems,
    )


def families_of(names: Iterable[str], families: Sequence[Layout]) -> list[Layout]:
    """Returns the families of whose transformers these are names of tensors; none for other names.

    Args:
      names: those in a file, without ComfyUI's prefix (original_transformer.own_names).
      families: those that may be found.
    """
    names = set(names)
    known = [family for family in families if family.original_transformer is not None]
    return [family for family in known if not names.isdisjoint(family.original_transformer.marks)]


def write(
    pipeline: Pipeline, path: str | os.PathLike, *, dtype: str = 'float32', metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes the transformer of a pipeline to one file with the makers' names.

    Args:
      pipeline: a pipeline with a transformer; its other networks are not written.
      path: '<name>.safetensors'; an existing file is replaced.
      dtype: dtype of the stored weights, one of files.STORAGE_DTYPES.
      metadata: texts for the header (modelspec.build), to which the hash of the weights is added; None: no texts.

    Returns:
      The path of the file.

    Raises:
      WeightsError: if the kernels are quantised, if float16 cannot hold a value, if the metadata is malformed, or if
        the file cannot be written to the disk. Nothing is replaced then.
    """
    path, family = Path(path), pipeline.family
    tensors = family.original_transformer.joined(network_tensors(family.denoiser, pipeline.denoiser))
    header = {}
    if metadata:
        header = {f'{modelspec.PREFIX}hash_sha256': modelspec.tensor_hash(tensors, dtype), **metadata}
        modelspec.check(header)
    files.write_tensors(path, tensors, dtype=dtype, max_shard_bytes=sys.maxsize, metadata=header)
    return path
