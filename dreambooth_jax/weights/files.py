"""Reads and writes named tensors as safetensors files, one file or several shards with an index.

Floating-point tensors are read as f32 (the master weights), whatever dtype the file stores, 8-bit floats included.
Quantised weights are refused, because their values mean nothing without the scales that are stored beside them. Pickled
files are refused, because unpickling runs code that the author of the file chose. Writing is atomic: a file either
appears complete under its name or does not appear.

Source: the safetensors format; Hugging Face's `*.safetensors.index.json` with {"weight_map": {tensor: file}}. The names
of tensors beside quantised weights are from ComfyUI's comfy/quant_ops.py and utils.py, bitsandbytes, GPTQ and nunchaku
(SVDQuant).
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreambooth_jax.system import disk
from dreambooth_jax.weights.errors import WeightsError

SUFFIX = '.safetensors'
INDEX_SUFFIX = '.safetensors.index.json'
PICKLED_SUFFIXES = ('.bin', '.ckpt', '.pt', '.pth', '.pkl')
CONVERT_PIPELINE = '(diffusers: pipeline.save_pretrained(folder, safe_serialization=True)) and give that folder'
STORAGE_DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
# 8-bit floats, under their names in the header. safetensors can load them only into PyTorch, so we decode them.
FLOATS_OF_8_BITS = {
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'F8_E4M3FNUZ': ml_dtypes.float8_e4m3fnuz,
    'F8_E5M2FNUZ': ml_dtypes.float8_e5m2fnuz,
}
_PLAIN_TYPES = {
    **{'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'BOOL': np.bool_},
    **{f'{kind}{bits}': np.dtype(f'{kind.lower()}{bits // 8}') for kind in 'IU' for bits in (8, 16, 32, 64)},
}
# The last part of the name of a tensor that is stored beside quantised weights, such as a scale.
_SCALES_OF_8_BITS = ('scaled_fp8', 'scale_weight', 'weight_scale', 'scale_input', 'input_scale', 'comfy_quant')
_SCALES_OF_INTEGERS = ('absmax', 'quant_map', 'nested_absmax', 'SCB', 'qweight', 'qzeros', 'wscales')
# Lower-precision copies that repositories hold beside the f32 file, or instead of it; the best comes first.
VARIANTS = ('bf16', 'fp16')
DEFAULT_SHARD_BYTES = 10_000_000_000  # the default of diffusers


def find_weights(folder: Path, stem: str, *, convert: str = CONVERT_PIPELINE) -> Path:
    """Finds the file that holds a component's tensors.

    A single file is preferred to the index of shards, and the f32 weights are preferred to the VARIANTS.

    Args:
      folder: the folder of the component, such as unet/.
      stem: 'diffusion_pytorch_model' (diffusers) or 'model' (transformers).
      convert: see refuse_pickled.

    Returns:
      The path of the .safetensors file or of the index of its shards.

    Raises:
      WeightsError: if there is no such file. The message says so if the folder holds only pickled weights.
    """
    candidates = [folder / f'{stem}{SUFFIX}', folder / f'{stem}{INDEX_SUFFIX}']
    for variant in VARIANTS:
        candidates += [folder / f'{stem}.{variant}{SUFFIX}', folder / f'{stem}{SUFFIX}.index.{variant}.json']
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in found if name.endswith(PICKLED_SUFFIXES)]
    if pickled:
        refuse_pickled(folder / pickled[0], convert=convert)
    raise WeightsError(
        f'{candidates[0]} is missing ({"the folder holds " + _listed(found) if found else "there is no such folder"}); '
        f'give a folder whose weights are {stem}{SUFFIX} or {stem}{INDEX_SUFFIX}.'
    )


def refuse_pickled(path: Path, *, convert: str = CONVERT_PIPELINE) -> None:
    """Refuses a pickled file.

    Args:
      path: the file.
      convert: the end of the sentence, which says how to convert it and what to give then.

    Raises:
      WeightsError: always. It says why such a file is refused and how to convert it.
    """
    raise WeightsError(
        f'{path} is a pickled checkpoint, which can run any code when it is opened; convert it to safetensors where '
        f'you trust it {convert}.'
    )


def read_json(path: Path, give: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
      path: the file.
      give: what the user should give where there is no such file, for the error.

    Raises:
      WeightsError: one sentence, if it is missing, unreadable or holds something else.
    """
    try:
        content = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise WeightsError(f'{path} is missing; give {give}.') from None
    except OSError as error:
        raise WeightsError(f'{path} cannot be read: {error.strerror}.') from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'{path} is no readable JSON ({error}); download it again.') from None
    if not isinstance(content, dict):
        raise WeightsError(f'{path} holds a JSON {type(content).__name__} but must hold an object; download it again.')
    return content


class Header(NamedTuple):
    """What the header of a .safetensors file says about its tensors."""

    shapes: dict[str, tuple[int, ...]]  # {tensor name: shape}
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Reads the names, shapes and metadata of a .safetensors file, or of an index, without reading its values.

    An index has no metadata.

    Raises:
      WeightsError: for the same files as read_tensors.
    """
    if str(path).endswith(INDEX_SUFFIX):
        return Header(_read_shards(Path(path), lambda shard: read_header(shard).shapes), {})
    with _opened(Path(path)) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Header(shapes, file.metadata() or {})


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file, or of a .safetensors.index.json and its shards.

    Args:
      path: the file or the index.
      wanted: takes a tensor's name and says whether to read that tensor. It has no effect on shards, which are read
        completely.

    Returns:
      {name: array}. Floating-point tensors are f32; the others keep their stored dtype.

    Raises:
      WeightsError: one sentence, if the file is missing, pickled, truncated, damaged, quantised or not a safetensors
        file, or if an index does not describe its shards.
    """
    path = Path(path)
    if path.name.endswith('.json'):
        return _read_shards(path, read_tensors)
    with _opened(path) as file:
        types = _types(file)
        names = [name for name in types if wanted(name)]
        narrow = {name: FLOATS_OF_8_BITS[types[name]] for name in names if types[name] in FLOATS_OF_8_BITS}
        eights = _views(path, narrow) if narrow else {}
        return {name: _wide(eights[name] if name in eights else file.get_tensor(name)) for name in names}


def view_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Opens the same tensors without reading them, so that one after the other can be converted.

    Returns:
      {name: array} in the stored dtypes: read-only views of the file, whose values are read when they are used.

    Raises:
      WeightsError: for the same files as read_tensors.
    """
    path = Path(path)
    if path.name.endswith('.json'):
        return _read_shards(path, view_tensors)
    with _opened(path) as file:
        types = {name: kind for name, kind in _types(file).items() if wanted(name)}
        return _views(path, {name: (_PLAIN_TYPES | FLOATS_OF_8_BITS)[kind] for name, kind in types.items()})


def _types(file) -> dict[str, str]:
    return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def _views(path: Path, dtypes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Opens tensors by the byte offsets in the header of a file that safetensors has already checked."""
    with open(path, 'rb') as file:
        start = 8 + (length := int.from_bytes(file.read(8), 'little'))
        header = json.loads(file.read(length))
    whole = np.memmap(path, np.uint8, 'r')
    views = {}
    for name, dtype in dtypes.items():
        first, last = header[name]['data_offsets']
        views[name] = np.asarray(whole[start + first : start + last]).view(dtype).reshape(header[name]['shape'])
    return views


def _refuse_quantised(path: Path, types: Mapping[str, str]) -> None:
    """Refuses a file whose values cannot be used without further tensors, or whose dtypes are not supported.

    Args:
      path: the file, for the error.
      types: {tensor name: dtype as the header writes it}.

    Raises:
      WeightsError: one sentence, for the first such tensor.
    """
    for name, kind in types.items():
        last = name.rpartition('.')[2]
        what = None
        if last in _SCALES_OF_8_BITS:
            what = f'scaled 8-bit weights (it has {name})'
        elif last in _SCALES_OF_INTEGERS or '.quant_state.' in name:
            what = f'quantised weights (it has {name})'
        elif last == 'weight' and kind in ('I8', 'U8'):
            what = f'quantised weights ({name} is {kind})'
        elif kind not in FLOATS_OF_8_BITS and kind not in _PLAIN_TYPES:
            what = f'tensors of a type that is not supported ({name} is {kind})'
        if what is not None:
            raise WeightsError(
                f'{path} holds {what}; give the file whose weights are float32, float16, bfloat16 or plain float8.'
            )


@contextlib.contextmanager
def _opened(path: Path):
    if path.name.endswith(PICKLED_SUFFIXES):
        refuse_pickled(path)
    _check_head(path)
    try:
        with safe_open(path, framework='np') as file:  # it has keys() but cannot be iterated over
            _refuse_quantised(path, _types(file))
            yield file
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise WeightsError(_damaged(path, error)) from None
    except MemoryError:
        raise WeightsError(f"{path} does not fit into this machine's memory; use one with more.") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata in the header of a .safetensors file.

    Returns:
      {key: text}; empty if the file has none.

    Raises:
      WeightsError: for the same files as read_tensors.
    """
    with _opened(Path(path)) as file:
        return file.metadata() or {}


def _wide(value: np.ndarray) -> np.ndarray:
    wide = (np.float16, np.float64, ml_dtypes.bfloat16, *FLOATS_OF_8_BITS.values())
    return value.astype(np.float32) if value.dtype in wide else value


def _check_head(path: Path) -> None:
    try:
        with open(path, 'rb') as file:
            head = file.read(64)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist; give the weights of a complete folder.') from None
    except OSError as error:
        raise WeightsError(f'{path} cannot be read: {error.strerror}.') from None
    if head.startswith(b'version https://git-lfs'):
        raise WeightsError(f'{path} is a Git LFS pointer and not the weights; run `git lfs pull` in its repository.')


def _damaged(path: Path, error: Exception) -> str:
    reason = ' '.join(str(error).split()).removeprefix('Error while deserializing header: ')
    size = f'{path.stat().st_size} bytes'
    return f'{path} ({size}) is no complete safetensors file: {reason}; download or export it again.'


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _read_shards(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    try:
        weight_map = json.loads(index.read_text('utf-8'))['weight_map']
        files = sorted(set(weight_map.values()))
    except FileNotFoundError:
        raise WeightsError(f'{index} does not exist; give the weights of a complete folder.') from None
    except OSError as error:
        raise WeightsError(f'{index} cannot be read: {error.strerror}.') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f'{index} is no readable index of shards ({error!r}); download it again.') from None
    # A shard must be in the same folder as its index. A name that contains a path could make us read any file.
    outside = [
        name for name in files if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIX)
    ]
    absent = [name for name in files if name not in outside and not (index.parent / name).is_file()]
    if outside or absent:
        problem = f'needs {_listed(absent)}, missing beside it'
        if outside:
            problem = f'names {_listed(map(str, outside))}, no {SUFFIX} file beside it'
        raise WeightsError(f'{index} {problem}; download the whole folder again.')
    # A shard of another download may have the right name, so its tensors are compared with the index.
    tensors = {}
    for name in files:
        shard = read(index.parent / name)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if listed != shard.keys():
            different = sorted(listed ^ shard.keys())
            raise WeightsError(
                f'{index} and {name} disagree about which tensors it holds ({_listed(different)}); download both again.'
            )
        tensors |= shard
    return tensors


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str = 'float32',
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes tensors to one .safetensors file or, if they are larger than a shard, to several files and an index.

    Args:
      path: '<folder>/<stem>.safetensors', the name of a single file. Shards are named
        '<stem>-00001-of-00002.safetensors' and their index '<stem>.safetensors.index.json'. Existing files of these
        names are replaced.
      tensors: {name: array}. Floating-point tensors are stored as `dtype`; the others keep their dtype.
      dtype: one of STORAGE_DTYPES.
      max_shard_bytes: the largest size of one file, in bytes. A larger tensor gets a file of its own.
      metadata: additional texts for the headers of the files. The entry 'format': 'pt' is always written, because
        PyTorch's readers require it.

    Returns:
      The paths of the files that were written.

    Raises:
      WeightsError: if the dtype is unknown or the file cannot be written to the disk; nothing is replaced then.
    """
    path = Path(path)
    storage = _storage_dtype(dtype)
    stem = path.name.removesuffix(SUFFIX)
    shards = _shards(tensors, storage, max_shard_bytes)
    if len(shards) == 1:
        names = [path.name]
    else:
        names = [f'{stem}-{i + 1:05d}-of-{len(shards):05d}{SUFFIX}' for i in range(len(shards))]
    index = path.with_name(stem + INDEX_SUFFIX)
    written = [path.with_name(name) for name in names]
    # All files are first written under temporary names: a full disk must not damage the old files, and a signal must
    # not leave an incomplete file. A kill may leave one, so the names are the same at the next attempt.
    temporary = [file.with_name(f'.{file.name}.part') for file in (*written, index)]
    header = {**(metadata or {}), 'format': 'pt'}
    leftovers = contextlib.ExitStack()
    try:
        for file in temporary:
            leftovers.enter_context(disk.unfinished(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, shard in zip(temporary, shards, strict=False):
            save_file({name: as_stored(name, tensors[name], dtype) for name in shard}, file, header)
        if len(shards) > 1:
            total = sum(_stored_bytes(value, storage) for value in tensors.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            content = {'metadata': {'total_size': total}, 'weight_map': weight_map}
            written.append(index)
            temporary[-1].write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', 'utf-8')
        for file, target in zip(temporary, written, strict=False):
            os.replace(file, target)
    except (SafetensorError, OSError) as error:
        reason = disk.reason(error) or error
        raise WeightsError(f'{path} could not be written: {reason}; nothing there was replaced.') from None
    finally:
        leftovers.close()
    _remove_stale(path, index, written)
    return written


def _shards(tensors, dtype, most) -> list[list[str]]:
    shards, size = [[]], 0
    for name, value in tensors.items():
        bytes_needed = _stored_bytes(value, dtype)
        if shards[-1] and size + bytes_needed > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_needed
    return shards


def _storage_dtype(name: str):
    if name not in STORAGE_DTYPES:
        raise WeightsError(f'dtype is {name!r}; weights can be stored as one of {tuple(STORAGE_DTYPES)}.')
    return STORAGE_DTYPES[name]


def _is_float(dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def _stored_bytes(value, dtype) -> int:
    return value.size * (np.dtype(dtype).itemsize if _is_float(value.dtype) else value.dtype.itemsize)


def as_stored(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """Converts a tensor to what write_tensors stores.

    Args:
      name: the tensor's name, for the error.
      value: the tensor.
      dtype: one of STORAGE_DTYPES; only floating-point tensors are converted to it.

    Returns:
      A contiguous array.

    Raises:
      WeightsError: if the dtype is unknown, or if float16 cannot hold a finite value of the tensor.
    """
    value, dtype = np.asarray(value), _storage_dtype(dtype)
    with np.errstate(over='ignore'):
        # np.ascontiguousarray is not used here because it turns a scalar into an array with one axis.
        stored = np.array(value, dtype if _is_float(value.dtype) else value.dtype, order='C')
    if dtype == np.float16 and not np.array_equal(np.isfinite(stored), np.isfinite(value)):
        raise WeightsError(f'{name} has values beyond the range of float16 (65504); store bfloat16 or float32 instead.')
    return stored


def _remove_stale(path: Path, index: Path, written: list[Path]) -> None:
    # Readers look for the single file first and then for the index, so files that an earlier write left here with
    # another number of shards would be read instead of the new ones.
    shard = re.compile(re.escape(path.name.removesuffix(SUFFIX)) + r'-\d{5}-of-\d{5}\.safetensors')
    others = [file for file in path.parent.iterdir() if file in (path, index) or shard.fullmatch(file.name)]
    for file in others:
        if file not in written:
            file.unlink()
