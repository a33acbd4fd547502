"""Files of LoRA adapters: `lora_peft`, for diffusers and ComfyUI, and `lora_kohya`, for AUTOMATIC1111 and kohya too.

    lora_peft    unet.<path>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector.weight
                 text_encoder.<path>.lora_linear_layer.down.weight, .up.weight, .lora_magnitude_vector.weight
    lora_kohya   lora_unet_<path with underscores>.lora_down.weight, .lora_up.weight, .alpha

Tensors are ordered as torch does: down [rank, in] or [rank, in, h, w], up [out, rank] or [out, rank, 1, 1].
The networks' own parameters are not in the file. Names of layers are in lora_names.py.
Source: diffusers 0.42.1 loaders/{lora_base,lora_pipeline,lora_conversion_utils}.py, utils/{peft,state_dict}_utils.py.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax.models.lora import MAGNITUDE, A, B
from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_names import kohya_name, kohya_names

FORMATS = PEFT, KOHYA = ('lora_peft', 'lora_kohya')
PEFT_FILE = 'pytorch_lora_weights.safetensors'  # what diffusers looks for in a folder
_PEFT_METADATA = 'lora_adapter_metadata'
ALPHA = 'alpha'  # beside our last names: kohya's files hold it for each layer

# Our last name -> the ends of a key. The first is written; a text encoder's are the older names, because diffusers
# refuses a T5's lora_A ('could not automatically infer state dict type') and takes these of any text encoder.
_PEFT_ENDS = {
    A: ('.lora_A.weight', '.lora.down.weight', '.lora_linear_layer.down.weight'),
    B: ('.lora_B.weight', '.lora.up.weight', '.lora_linear_layer.up.weight'),
    # transformers drops the key without `.weight`, which is the one that peft itself writes.
    MAGNITUDE: ('.lora_magnitude_vector.weight', '.lora_magnitude_vector'),
}
_KOHYA_ENDS = {A: ('.lora_down.weight',), B: ('.lora_up.weight',), ALPHA: ('.alpha',)}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The adapters of a pipeline's networks.

    Attributes:
      params: {component: {'<path>.lora_a' ...: f32 array}}, as models/lora.py names and orders them.
      rank: of all of them. alpha: the factor on their output is alpha / rank.
    """

    params: Mapping[str, Mapping[str, Any]]
    rank: int
    alpha: float


def are_names_of_lora(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a LoRA file, of either format, rather than of a model."""
    ends = tuple(end for ends in (*_PEFT_ENDS.values(), *_KOHYA_ENDS.values()) for end in ends if end != '.alpha')
    return any(name.endswith(ends) for name in names)


def write_lora(
    path: str | os.PathLike,
    adapter: Adapter,
    format: str,
    *,
    sdxl: bool = False,
    dtype: str = 'float32',
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes adapters to one .safetensors file.

    Args:
      path: of the file; diffusers finds it in a folder under the name PEFT_FILE.
      format: one of FORMATS. In `lora_peft` the factor alpha / rank is multiplied into B and the file says that alpha
        is the rank: ComfyUI and diffusers before 0.35 do not read an alpha there and would draw with another strength.
        Of a text encoder in `lora_kohya`, diffusers asks that out_proj or the mlp be among its layers; else it raises.
      sdxl: whether the model is SDXL, whose layers `lora_kohya` names differently.
      dtype: of the stored tensors, one of files.STORAGE_DTYPES.
      metadata: more text for the header, such as ss_base_model_version for kohya's readers.
    Returns: the file.
    Raises: WeightsError for an unknown format, an adapter without parameters, layers that lora_kohya has no name for,
      DoRA in lora_kohya, and if the disk does not take the file.
    """
    path = Path(path)
    if format not in FORMATS:
        raise WeightsError(f'format is {format!r}; LoRA files are written as one of {FORMATS}.')
    layers = {component: _layers(params) for component, params in adapter.params.items() if params}
    if not layers:
        raise WeightsError(f'{path} would hold no LoRA layer; give the parameters of an adapter.')
    write = _to_peft if format == PEFT else _to_kohya
    tensors, header = write(path, layers, adapter, sdxl)
    files.write_tensors(path, tensors, dtype=dtype, metadata={**header, **(metadata or {})})
    return path


def _layers(params) -> dict[str, dict[str, np.ndarray]]:
    """{'<path>.lora_a': array} -> {path: {'lora_a': array}}."""
    layers = {}
    for name, value in params.items():
        path, _, part = name.rpartition('.')
        layers.setdefault(path, {})[part] = np.asarray(value, np.float32)
    return layers


def _to_torch(layer) -> dict[str, np.ndarray]:
    a, b = layer[A], layer[B]
    if a.ndim == 2:
        return {**layer, A: a.T, B: b.T}
    return {**layer, A: a.transpose(3, 2, 0, 1), B: b.T[:, :, None, None]}


def _to_peft(path, layers, adapter, sdxl):
    tensors, configs = {}, {}
    for component, paths in layers.items():
        for layer_path, layer in paths.items():
            layer = _to_torch({**layer, B: layer[B] * (adapter.alpha / adapter.rank)})
            # What peft saves of a convolution's magnitudes.
            shape = (1, -1, 1, 1) if layer[A].ndim == 4 else (-1,)
            for part, value in layer.items():
                end = _PEFT_ENDS[part][0 if component == 'unet' or part == MAGNITUDE else 2]
                tensors[f'{component}.{layer_path}{end}'] = value.reshape(shape) if part == MAGNITUDE else value
        # peft's LoraConfig of each network. Whole paths, so that no other layer gets an adapter; recent transformers
        # have no `text_model` in a CLIP, and peft compares the ends of paths.
        config = {
            'r': adapter.rank,
            'lora_alpha': adapter.rank,
            'target_modules': [layer_path.removeprefix('text_model.') for layer_path in paths],
            'use_dora': any(MAGNITUDE in layer for layer in paths.values()),
        }
        configs |= {f'{component}.{key}': value for key, value in config.items()}
    return tensors, {_PEFT_METADATA: json.dumps(configs, indent=2, sort_keys=True)}


def _to_kohya(path, layers, adapter, sdxl):
    flat = {(component, name): layer for component, named in layers.items() for name, layer in named.items()}
    if any(MAGNITUDE in layer for layer in flat.values()):
        raise WeightsError(
            f"{path} cannot hold DoRA's magnitudes: kohya's own code has none, diffusers drops them from this format, "
            f'and AUTOMATIC1111 and ComfyUI compute other norms; export lora_peft, or the merged model.'
        )
    tensors, nameless = {}, []
    for (component, layer_path), layer in flat.items():
        try:
            name = kohya_name(component, layer_path, sdxl=sdxl)
        except WeightsError as error:
            nameless.append(str(error))
            continue
        layer = _to_torch(layer) | {ALPHA: np.float32(adapter.alpha)}
        tensors |= {f'{name}{_KOHYA_ENDS[part][0]}': value for part, value in layer.items()}
    if nameless:
        raise WeightsError(
            f'{path} cannot hold these LoRA layers, since no reader of lora_kohya would find them; export lora_peft, '
            f'or train other targets:',
            nameless,
        )
    header = {
        'ss_network_module': 'networks.lora',
        'ss_network_dim': str(adapter.rank),
        'ss_network_alpha': str(adapter.alpha),
    }
    if any(layer[A].ndim == 4 and layer[A].shape[:2] != (1, 1) for layer in flat.values()):
        header['ss_network_args'] = json.dumps({'conv_dim': str(adapter.rank), 'conv_alpha': str(adapter.alpha)})
    return tensors, header


def read_lora(path: str | os.PathLike, networks: Mapping[str, Mapping[str, Any]]) -> Adapter:
    """Reads a LoRA file of either format, in any of the spellings that diffusers and kohya write.

    Args:
      networks: {component: the network's own parameters}, arrays or ShapeDtypeStructs, that the adapters are for.
    Returns: an Adapter that does what the file says. If its layers differ in rank or in alpha / rank, they are padded
      with zeros to the largest rank and the factors are multiplied into B, so that alpha = rank holds for all.
    Raises: WeightsError that lists every key of no layer of these networks, every wrong shape and every missing part.
    """
    path = Path(path)
    tensors, header = files.read_tensors(path), files.read_metadata(path)
    is_kohya = any(key.startswith('lora_') for key in tensors)
    owner_of = (_kohya_owner if is_kohya else _peft_owner)(networks)
    layers, problems = {}, []
    for key, value in tensors.items():
        owner, part = owner_of(key)
        if part is None:
            problems.append(f'unused: {key} {list(value.shape)}')
        else:
            layers.setdefault(owner, {})[part] = value
    for (component, layer_path), layer in layers.items():
        kernel = networks[component][f'{layer_path}.kernel'].shape
        problems += [f'{problem} of {component}.{layer_path}' for problem in _problems(layer, kernel)]
        if not problems:
            layers[component, layer_path] = _from_torch(layer, kernel)
    if problems or not layers:
        raise WeightsError(
            f'{path} is no LoRA of this model; use one that was trained on a model of the same kind:',
            problems or ['it holds no tensors'],
        )
    return _uniform(layers, _scales(path, layers, header))


def _peft_owner(networks):
    def owner(key):
        for part, ends in _PEFT_ENDS.items():
            for end in ends:
                component, _, layer_path = key.removesuffix(end).partition('.')
                # Recent transformers have no `text_model` in a CLIP, nor have the LoRA files made with them.
                for candidate in (layer_path, f'text_model.{layer_path}'):
                    if key.endswith(end) and f'{candidate}.kernel' in networks.get(component, ()):
                        return (component, candidate), part
        return None, None

    return owner


def _kohya_owner(networks):
    owners = {
        name: (component, kernel.removesuffix('.kernel'))
        for component, params in networks.items()
        for kernel in params
        if kernel.endswith('.kernel')
        for name in kohya_names(component, kernel.removesuffix('.kernel'))
    }

    def owner(key):
        for part, ends in _KOHYA_ENDS.items():
            name = key.removesuffix(ends[0])
            if key.endswith(ends) and name in owners:
                return owners[name], part
        return None, None

    return owner


def _problems(layer, kernel) -> list[str]:
    """What is wrong with a layer's tensors, torch's axes, for a kernel of shape [..., in, out]."""
    missing = [f'missing: {part}' for part in (A, B) if part not in layer]
    if missing:
        return missing
    *window, inputs, outputs = kernel
    rank = layer[A].shape[0] if layer[A].ndim else 0
    wanted = {A: (rank, inputs, *window), B: (outputs, rank, *(1 for _ in window)), MAGNITUDE: (outputs,), ALPHA: ()}
    # Length-one axes aside: 1x1 convolutions are stored as dense layers too, magnitudes with the axes of the kernel.
    return [
        f'wrong shape: {part} is {list(value.shape)} but must be {list(wanted[part])}'
        for part, value in layer.items()
        if [n for n in value.shape if n != 1] != [n for n in wanted[part] if n != 1]
    ]


def _from_torch(layer, kernel):
    *window, inputs, outputs = kernel
    layer = dict(layer)
    a = layer[A].reshape(-1, inputs, *window)
    layer[A] = a.transpose(*range(2, a.ndim), 1, 0)
    layer[B] = layer[B].reshape(outputs, -1).T
    if MAGNITUDE in layer:
        layer[MAGNITUDE] = layer[MAGNITUDE].reshape(-1)
    return layer


def _scales(path, layers, header) -> dict[tuple[str, str], float]:
    """alpha / rank of every layer; 1 where the file says nothing."""
    try:
        metadata = json.loads(header.get(_PEFT_METADATA, '{}'))
        scales = {}
        for (component, layer_path), layer in layers.items():
            rank = layer[A].shape[-1]
            alpha = layer.get(ALPHA, np.float32(rank)).item()
            if f'{component}.lora_alpha' in metadata:
                patterns = metadata.get(f'{component}.alpha_pattern') or {}
                named = (value for key, value in patterns.items() if re.fullmatch(rf'(.*\.)?({key})', layer_path))
                alpha = next(named, metadata[f'{component}.lora_alpha'])
                if metadata.get(f'{component}.use_rslora'):
                    alpha *= math.sqrt(rank)
            scales[component, layer_path] = alpha / rank
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise WeightsError(f'{path} has an unreadable {_PEFT_METADATA} ({error!r}); export it again.') from None
    return scales


def _uniform(layers, scales) -> Adapter:
    ranks = {layer[A].shape[-1] for layer in layers.values()}
    rank, scale = max(ranks), next(iter(scales.values()))
    if len(ranks) > 1 or len(set(scales.values())) > 1:
        scale = 1.0
    params = {}
    for (component, path), layer in layers.items():
        more = rank - layer[A].shape[-1]
        a = np.pad(layer[A], [(0, 0)] * (layer[A].ndim - 1) + [(0, more)])
        b = np.pad(layer[B], [(0, more), (0, 0)]) * np.float32(scales[component, path] / scale)
        of_component = params.setdefault(component, {})
        of_component |= {f'{path}.{A}': a, f'{path}.{B}': b}
        if MAGNITUDE in layer:
            of_component[f'{path}.{MAGNITUDE}'] = layer[MAGNITUDE]
    return Adapter(params, rank, scale * rank)
