"""Files of named tensors: safetensors, whole or in shards, and nothing else.

Reading gives f32 (the master weights) whatever the file stores, 8-bit floats included. Quantised weights, whose values
mean nothing without factors that lie beside them, are refused. Writing is atomic: a file appears whole under its name
or not at all. Pickled files are refused: unpickling runs code that the file's author chose.
Source: the safetensors format; huggingface's `*.safetensors.index.json` with {"weight_map": {tensor: file}}; names
beside quantised weights: ComfyUI's comfy/quant_ops.py and utils.py, bitsandbytes, GPTQ, nunchaku (SVDQuant).
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
STORAGE_DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
# 8-bit floats, as the header names them: safetensors gives them to PyTorch alone.
FLOATS_OF_8_BITS = {
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'F8_E4M3FNUZ': ml_dtypes.float8_e4m3fnuz,
    'F8_E5M2FNUZ': ml_dtypes.float8_e5m2fnuz,
}
_PLAIN_TYPES = ('F64', 'F32', 'F16', 'BF16', 'BOOL', 'I8', 'U8', 'I16', 'U16', 'I32', 'U32', 'I64', 'U64')
# What lies beside quantised weights: the last part of a name.
_SCALES_OF_8_BITS = ('scaled_fp8', 'scale_weight', 'weight_scale', 'scale_input', 'input_scale', 'comfy_quant')
_SCALES_OF_INTEGERS = ('absmax', 'quant_map', 'nested_absmax', 'SCB', 'qweight', 'qzeros', 'wscales')
# Lower-precision copies that repositories hold beside, or instead of, the f32 file; best first.
VARIANTS = ('bf16', 'fp16')
DEFAULT_SHARD_BYTES = 10_000_000_000  # as diffusers


def find_weights(folder: Path, stem: str) -> Path:
    """The file that holds a component's tensors: whole, or the index of its shards, and f32 before its variants.

    Args:
      folder: of the component, such as unet/.
      stem: 'diffusion_pytorch_model' (diffusers) or 'model' (transformers).
    Raises: WeightsError if there is none; it says so if there are only pickled weights.
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
        refuse_pickled(folder / pickled[0])
    raise WeightsError(
        f'{candidates[0]} is missing ({"the folder holds " + _listed(found) if found else "there is no such folder"}); '
        f'give a folder whose weights are {stem}{SUFFIX} or {stem}{INDEX_SUFFIX}.'
    )


def refuse_pickled(path: Path) -> None:
    """Raises: WeightsError with the reason and the way out."""
    raise WeightsError(
        f'{path} is a pickled checkpoint, which can run any code when it is opened; convert it to safetensors where '
        f'you trust it (diffusers: pipeline.save_pretrained(folder, safe_serialization=True)) and give that folder.'
    )


class Header(NamedTuple):
    """What a .safetensors file says before its values."""

    shapes: dict[str, tuple[int, ...]]  # of the tensors, by name
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Reads names, shapes and metadata of a .safetensors file, not its values.

    Raises: WeightsError, one sentence, as read_tensors.
    """
    with _opened(Path(path)) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Header(shapes, file.metadata() or {})


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file or of a .safetensors.index.json and its shards.

    Args:
      wanted: whether to read the tensor of a name; of shards, all are read.
    Returns: {name: array}; floating-point tensors as f32, others as they are stored.
    Raises: WeightsError, one sentence, for a file that is missing, pickled, cut off, damaged, no safetensors file or
      quantised, and for an index that does not describe its shards.
    """
    path = Path(path)
    if path.name.endswith('.json'):
        return _read_shards(path)
    with _opened(path) as file:
        types = _types(file)
        names = [name for name in types if wanted(name)]
        narrow = {name: FLOATS_OF_8_BITS[types[name]] for name in names if types[name] in FLOATS_OF_8_BITS}
        eights = _read_floats_of_8_bits(path, narrow) if narrow else {}
        return {name: eights[name] if name in eights else _wide(file.get_tensor(name)) for name in names}


def _types(file) -> dict[str, str]:
    return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def _read_floats_of_8_bits(path: Path, dtypes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of a file that safetensors has checked, in f32: its header says where each one's bytes lie."""
    with open(path, 'rb') as file:
        start = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(start))
        start += 8
        tensors = {}
        for name, dtype in dtypes.items():
            first, last = header[name]['data_offsets']
            file.seek(start + first)
            stored = np.frombuffer(file.read(last - first), dtype)
            tensors[name] = stored.astype(np.float32).reshape(header[name]['shape'])
    return tensors


def _refuse_quantised(path: Path, types: Mapping[str, str]) -> None:
    """Raises: WeightsError for values that are no numbers of the model without more than their type."""
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
        with safe_open(path, framework='np') as file:  # no mapping: it has keys() and is not iterable
            _refuse_quantised(path, _types(file))
            yield file
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise WeightsError(_damaged(path, error)) from None
    except MemoryError:
        raise WeightsError(f"{path} does not fit into this machine's memory; use one with more.") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The text that the header of a .safetensors file holds beside the tensors.

    Raises: WeightsError as read_tensors does.
    """
    with _opened(Path(path)) as file:
        return file.metadata() or {}


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype in (np.float16, np.float64, ml_dtypes.bfloat16) else value


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


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        weight_map = json.loads(index.read_text('utf-8'))['weight_map']
        files = sorted(set(weight_map.values()))
    except FileNotFoundError:
        raise WeightsError(f'{index} does not exist; give the weights of a complete folder.') from None
    except OSError as error:
        raise WeightsError(f'{index} cannot be read: {error.strerror}.') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f'{index} is no readable index of shards ({error!r}); download it again.') from None
    # A shard lies beside its index: a name with a path would read any file.
    outside = [
        name for name in files if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIX)
    ]
    absent = [name for name in files if name not in outside and not (index.parent / name).is_file()]
    if outside or absent:
        problem = f'needs {_listed(absent)}, missing beside it'
        if outside:
            problem = f'names {_listed(map(str, outside))}, no {SUFFIX} file beside it'
        raise WeightsError(f'{index} {problem}; download the whole folder again.')
    tensors = {}
    for name in files:
        shard = read_tensors(index.parent / name)
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
    """Writes tensors to one .safetensors file or, if they are larger than a shard, to several and their index.

    Args:
      path: the file if it is one, '<folder>/<stem>.safetensors'; the shards are '<stem>-00001-of-00002.safetensors',
        their index is '<stem>.safetensors.index.json'. What lies there under these names is replaced.
      tensors: {name: array}; floating-point ones are stored as `dtype`, one of STORAGE_DTYPES, others as they are.
      max_shard_bytes: of one file; a tensor that is larger has a file of its own.
      metadata: more text for the files' headers; 'format': 'pt' is always there, as PyTorch's readers ask for it.
    Returns: the files written.
    Raises: WeightsError for an unknown dtype, or if the disk does not take the file; then nothing is replaced.
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
    temporary = [file.with_name(f'.{file.name}.{os.getpid()}.tmp') for file in (*written, index)]
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
    """A tensor as write_tensors stores it: contiguous and, if it is floating-point, as `dtype`, one of STORAGE_DTYPES.

    Raises: WeightsError for an unknown dtype, or for a finite value that float16 cannot hold.
    """
    value, dtype = np.asarray(value), _storage_dtype(dtype)
    with np.errstate(over='ignore'):
        # Not ascontiguousarray, which would give a scalar an axis.
        stored = np.array(value, dtype if _is_float(value.dtype) else value.dtype, order='C')
    if dtype == np.float16 and not np.array_equal(np.isfinite(stored), np.isfinite(value)):
        raise WeightsError(f'{name} has values beyond the range of float16 (65504); store bfloat16 or float32 instead.')
    return stored


def _remove_stale(path: Path, index: Path, written: list[Path]) -> None:
    # Readers take the whole file first and then the index: leftovers of another split would shadow what was written.
    shard = re.compile(re.escape(path.name.removesuffix(SUFFIX)) + r'-\d{5}-of-\d{5}\.safetensors')
    others = [file for file in path.parent.iterdir() if file in (path, index) or shard.fullmatch(file.name)]
    for file in others:
        if file not in written:
            file.unlink()
