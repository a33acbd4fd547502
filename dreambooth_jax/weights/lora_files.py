"""Files of LoRA adapters: `lora_peft`, for diffusers and PEFT, and `lora_kohya`, for everything else that generates.

    lora_peft    unet.<path>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector.weight
                 text_encoder.<path> likewise, but for T5 .lora_linear_layer.down.weight, .lora_linear_layer.up.weight
    lora_kohya   lora_unet_<path with underscores>.lora_down.weight, .lora_up.weight, .alpha

lora_kohya is what ComfyUI, AUTOMATIC1111, Forge, kohya and OneTrainer take, and diffusers too. Of lora_peft ComfyUI and
Forge read no attention of a UNet, which they know only by the names of 2023 there, and AUTOMATIC1111 and kohya nothing.
Both are read, and what other programs write (lora_names.py, _ENDS).

Tensors are ordered as torch does: down [rank, in] or [rank, in, h, w], up [out, rank] or [out, rank, 1, 1].
The networks' own parameters are not in the file. Names of layers are in lora_names.py.
Source: diffusers 0.42.1 loaders/{lora_base,lora_pipeline,lora_conversion_utils}.py, utils/{peft,state_dict}_utils.py;
for lora_mid and dora_scale LyCORIS lycoris/modules/locon.py, for the latter OneTrainer modules/module/LoRAModule.py.
"""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax.models.lora import MAGNITUDE, A, B
from dreambooth_jax.weights import files, lora_kinds
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_names import PEFT_PREFIX, kohya_name, owners

FORMATS = PEFT, KOHYA = ('lora_peft', 'lora_kohya')
PEFT_FILE = 'pytorch_lora_weights.safetensors'  # what diffusers looks for in a folder
_PEFT_METADATA = 'lora_adapter_metadata'
_PEFT_CONFIG = 'adapter_config.json'  # beside the files that PEFT writes
# Parts of a layer in a file, beside our last names: kohya's strength, LoCon's core tensor, and DoRA's lengths as kohya
# and LyCORIS hold them, of the outputs ([out, 1]) or of the inputs ([1, in]) by the shape.
ALPHA, MID, DORA_SCALE = 'alpha', 'mid', 'dora_scale'

# The end of a key -> what it holds.
_ENDS = {
    '.lora_A.weight': A,
    '.lora.down.weight': A,
    '.lora_linear_layer.down.weight': A,
    '_lora.down.weight': A,
    '.lora_down.weight': A,
    '.lora_B.weight': B,
    '.lora.up.weight': B,
    '.lora_linear_layer.up.weight': B,
    '_lora.up.weight': B,
    '.lora_up.weight': B,
    '.lora_mid.weight': MID,
    '.alpha': ALPHA,
    '.dora_scale': DORA_SCALE,
    '.lora_magnitude_vector.weight': MAGNITUDE,
    '.lora_magnitude_vector': MAGNITUDE,
}
# PEFT's own name of an adapter, in files that were not saved through it: .lora_A.default.weight
_OF_ONE_ADAPTER = re.compile(r'\.(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)\w+(\.weight)?$')
_DIFFERENCES = ('.diff', '.diff_b')
# transformers drops a magnitude without `.weight`, which is the name that peft itself writes.
_WRITTEN = {A: '.lora_A.weight', B: '.lora_B.weight', MAGNITUDE: '.lora_magnitude_vector.weight'}
# diffusers refuses a T5's lora_A ('could not automatically infer state dict type') and takes the older names of it.
_WRITTEN_OF_T5 = _WRITTEN | {A: '.lora_linear_layer.down.weight', B: '.lora_linear_layer.up.weight'}
_T5 = 'encoder.block.'  # how the paths of its layers begin
_KOHYA = {A: '.lora_down.weight', B: '.lora_up.weight', ALPHA: '.alpha'}

_logger = logging.getLogger(__name__)


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
    """Whether these are the tensors of a LoRA file, in any spelling, rather than of a model."""
    ends = tuple(end for end, part in _ENDS.items() if part != ALPHA)
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
        is the rank: diffusers before 0.35 does not read an alpha there and would generate with another strength.
        Of a text encoder in `lora_kohya`, diffusers asks that out_proj or the mlp be among its layers; else it raises.
      sdxl: whether the model is SDXL, whose layers `lora_kohya` names differently.
      dtype: of the stored tensors, one of files.STORAGE_DTYPES.
      metadata: more text for the header, such as ss_base_model_version for kohya's readers.
    Returns: the file.
    Raises: WeightsError for an unknown format, an adapter without parameters, layers that lora_kohya has no name for,
      DoRA in lora_kohya, one of the inputs' lengths in lora_peft, and if the disk does not take the file.
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
            if layer.get(MAGNITUDE, np.zeros(1)).ndim > 1:
                raise WeightsError(
                    f'{path} cannot hold the DoRA of {component}.{layer_path}, which holds lengths of the inputs; '
                    f'merge it into the model.'
                )
            layer = _to_torch({**layer, B: layer[B] * (adapter.alpha / adapter.rank)})
            # What peft saves of a convolution's magnitudes.
            shape = (1, -1, 1, 1) if layer[A].ndim == 4 else (-1,)
            ends = _WRITTEN_OF_T5 if layer_path.startswith(_T5) else _WRITTEN
            for part, value in layer.items():
                value = value.reshape(shape) if part == MAGNITUDE else value
                tensors[f'{component}.{layer_path}{ends[part]}'] = value
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
        tensors |= {f'{name}{_KOHYA[part]}': value for part, value in layer.items()}
    if nameless:
        raise WeightsError(
            f'{path} cannot hold these LoRA layers, since not all readers of lora_kohya find them; export lora_peft, '
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
    """Reads a LoRA file in any of the spellings of diffusers, PEFT, kohya, LyCORIS, OneTrainer and ComfyUI.

    That is LoRA on dense layers and convolutions (LoCon, with lora_mid too) and DoRA, of diffusers and of kohya.

    Args:
      networks: {component: the network's own parameters}, arrays or ShapeDtypeStructs, that the adapters are for.
    Returns: an Adapter that does what the file says. If its layers differ in rank or in alpha / rank, they are padded
      with zeros to the largest rank and the factors are multiplied into B, so that alpha = rank holds for all.
    Raises: WeightsError, one sentence that says what the file is instead (lora_kinds.py), or one that lists every key
      of no layer of these networks, every wrong shape and every missing part.
    """
    path = Path(path)
    tensors, header = files.read_tensors(path), files.read_metadata(path)
    # ComfyUI's save node writes the differences of all biases and norms, which adapters leave as they were.
    tensors = {key: value for key, value in tensors.items() if not key.endswith(_DIFFERENCES) or np.any(value)}
    layers, unused, problems = _grouped(tensors, networks)
    for (component, layer_path), layer in layers.items():
        kernel = networks[component][f'{layer_path}.kernel'].shape
        problems += [f'{problem} of {component}.{layer_path}' for problem in _problems(layer, kernel)]
        if not problems and not unused:
            layers[component, layer_path] = _from_torch(layer, kernel)
    if unused or problems or not layers:
        instead = lora_kinds.foreign(tensors, unused, networks)
        if instead:
            raise WeightsError(f'{path} {instead}')
        raise WeightsError(
            f'{path} is no LoRA of this model; use one that was trained on a model of the same kind:',
            [f'unused: {key} {list(tensors[key].shape)}' for key in unused] + problems or ['it holds no tensors'],
        )
    return _uniform(layers, _scales(path, layers, _settings(path, tensors, header, layers)))


def _grouped(tensors, networks):
    """({(component, path): {part: tensor}}, the keys of no layer, the keys of a part that is there already)."""
    names = owners(
        (component, name.removesuffix('.kernel'))
        for component, params in networks.items()
        for name in params
        if name.endswith('.kernel')
    )
    layers, unused, problems = {}, [], []
    for key, value in tensors.items():
        plain = _OF_ONE_ADAPTER.sub(r'.\1.weight', key)
        found = ((names.get(plain.removesuffix(end)), part) for end, part in _ENDS.items() if plain.endswith(end))
        owner, part = next(((owner, part) for owner, part in found if owner), (None, None))
        if owner is None:
            unused.append(key)
        elif part in layers.setdefault(owner, {}):
            problems.append(f'twice: {part} as {key}')
        else:
            layers[owner][part] = value
    return layers, unused, problems


def _problems(layer, kernel) -> list[str]:
    """What is wrong with a layer's tensors, torch's axes, for a kernel of shape [..., in, out]."""
    missing = [f'missing: {part}' for part in (A, B) if part not in layer]
    missing += [f'empty: {part}' for part, value in layer.items() if not value.size]
    if missing:
        return missing
    *window, inputs, outputs = kernel
    rank = layer[A].shape[0] if layer[A].ndim else 0
    ones = [1 for _ in window]
    wanted = {A: (rank, inputs, *window), B: (outputs, rank, *ones), MAGNITUDE: (outputs,), ALPHA: ()}
    if MID in layer:
        wanted |= {A: (rank, inputs, *ones), MID: (rank, rank, *window)}
    # Length-one axes aside: 1x1 convolutions are stored as dense layers too, magnitudes with the axes of the kernel.
    problems = [
        f'wrong shape: {part} is {list(value.shape)} but must be {list(wanted[part])}'
        for part, value in layer.items()
        if part in wanted and [n for n in value.shape if n != 1] != [n for n in wanted[part] if n != 1]
    ]
    if DORA_SCALE in layer and _dora_axis(layer[DORA_SCALE], inputs, outputs) is None:
        problems.append(
            f'wrong shape: {DORA_SCALE} is {list(layer[DORA_SCALE].shape)} but must be [{outputs}, 1] or [1, {inputs}]'
        )
    return problems


def _dora_axis(scale, inputs, outputs) -> str | None:
    """Of what kohya's and LyCORIS' DoRA learns the lengths: 'outputs', 'inputs', or None if the shape does not say."""
    first, second, *others = scale.shape if scale.ndim > 1 else (0, 0)
    if any(n != 1 for n in others):
        return None
    return {(outputs, 1): 'outputs', (1, inputs): 'inputs'}.get((first, second))


def _from_torch(layer, kernel):
    *window, inputs, outputs = kernel
    a, b = layer[A], layer[B].reshape(outputs, -1).T
    if MID in layer:
        # Tucker's core tensor between the two, of which a convolution to `rank` channels remains.
        middle = layer[MID].reshape(len(a), len(a), *window)
        a = np.einsum('rs...,si->ri...', middle, a.reshape(len(a), inputs))
    a = a.reshape(-1, inputs, *window)
    converted = {A: a.transpose(*range(2, a.ndim), 1, 0), B: b}
    converted |= {ALPHA: layer[ALPHA]} if ALPHA in layer else {}
    if MAGNITUDE in layer:
        converted[MAGNITUDE] = layer[MAGNITUDE].reshape(-1)
    elif DORA_SCALE in layer:
        # Of the lengths of W + BA, as it is trained; ComfyUI divides the outputs' by those of W alone.
        by_output = _dora_axis(layer[DORA_SCALE], inputs, outputs) == 'outputs'
        shape = (-1,) if by_output else (*(1 for _ in window), inputs, 1)
        converted[MAGNITUDE] = layer[DORA_SCALE].reshape(shape)
    return converted


def _settings(path, tensors, header, layers) -> dict[str, Any]:
    """PEFT's settings, {'<component>.<name>': value}: from the header or, of PEFT's own files, from beside them."""
    source = _PEFT_METADATA
    try:
        if _PEFT_METADATA in header:
            return json.loads(header[_PEFT_METADATA])
        source = _PEFT_CONFIG
        if not any(PEFT_PREFIX in key for key in tensors) or any(ALPHA in layer for layer in layers.values()):
            return {}
        beside = path.parent / _PEFT_CONFIG
        if not beside.is_file():
            _logger.warning(
                '%s does not say its alpha, and no %s lies beside it: alpha is taken to be the rank', path, _PEFT_CONFIG
            )
            return {}
        config = json.loads(beside.read_text('utf-8'))
        return {f'{component}.{name}': value for component, _ in layers for name, value in config.items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f'{path} has an unreadable {source} ({error!r}); export it again.') from None


def _scales(path, layers, settings) -> dict[tuple[str, str], float]:
    """alpha / rank of every layer; 1 where nothing says it."""
    try:
        scales = {}
        for (component, layer_path), layer in layers.items():
            rank = layer[A].shape[-1]
            alpha = layer.get(ALPHA, np.float32(rank)).item()
            if f'{component}.lora_alpha' in settings:
                patterns = settings.get(f'{component}.alpha_pattern') or {}
                named = (value for key, value in patterns.items() if re.fullmatch(rf'(.*\.)?({key})', layer_path))
                alpha = next(named, settings[f'{component}.lora_alpha'])
                if settings.get(f'{component}.use_rslora'):
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
