"""Reads and writes files of LoRA adapters, in the formats `lora_peft`, `lora_kohya` and `lora_comfyui`.

    lora_peft    unet.<path>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector.weight
                 text_encoder.<path> likewise, but for T5 .lora_linear_layer.down.weight, .lora_linear_layer.up.weight
    lora_kohya   lora_unet_<path with underscores>.lora_down.weight, .lora_up.weight, .alpha
    lora_comfyui diffusion_model.<path>.lora_A.weight, .lora_B.weight, of transformers alone

`lora_peft` is the format of diffusers and PEFT. `lora_kohya` is read by ComfyUI, AUTOMATIC1111, Forge, kohya,
OneTrainer and diffusers. From a `lora_peft` file, ComfyUI and Forge do not load the attention layers of a UNet, for
which they know only the names of 2023, and AUTOMATIC1111 and kohya load nothing. In these two formats
transformers have the names of their makers' own code (lora_original.py); ComfyUI reads both. This module reads all
formats, and also the spellings of other programs (lora_names.py and _ENDS).

Tensors in a file have the axes of torch: down is [rank, in] or [rank, in, h, w], up is [out, rank] or
[out, rank, 1, 1]. A file does not hold the networks' own parameters. lora_names.py has the names of the layers.

Source: diffusers 0.42.1 loaders/{lora_base,lora_pipeline,lora_conversion_utils}.py, utils/{peft,state_dict}_utils.py;
for lora_mid and dora_scale LyCORIS lycoris/modules/locon.py, and for dora_scale OneTrainer
modules/module/LoRAModule.py.
"""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax.models.lora import MAGNITUDE, A, B
from dreambooth_jax.weights import files, lora_kinds
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_names import PEFT_PREFIX, kohya_name, owners
from dreambooth_jax.weights.lora_original import OriginalLayers
from dreambooth_jax.weights.original_facts import OriginalLayout

FORMATS = PEFT, KOHYA, COMFYUI = ('lora_peft', 'lora_kohya', 'lora_comfyui')
PEFT_FILE = 'pytorch_lora_weights.safetensors'  # the name that diffusers looks for in a folder
_PEFT_METADATA = 'lora_adapter_metadata'
_PEFT_CONFIG = 'adapter_config.json'  # PEFT writes it beside its own files
# Further parts of a layer in a file: kohya's alpha, LoCon's core tensor, and the norms of DoRA as kohya and LyCORIS
# store them. Their shape says whether there is one norm for each output ([out, 1]) or for each input ([1, in]).
ALPHA, MID, DORA_SCALE = 'alpha', 'mid', 'dora_scale'

# Ending of a tensor's name -> the part of the layer that it is.
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
# PEFT's name of the adapter inside a tensor's name, which only PEFT's own saving removes: .lora_A.default.weight
_OF_ONE_ADAPTER = re.compile(r'\.(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)\w+(\.weight)?$')
_DIFFERENCES = ('.diff', '.diff_b')
# peft writes a magnitude without `.weight`, but transformers ignores such a tensor.
_WRITTEN = {A: '.lora_A.weight', B: '.lora_B.weight', MAGNITUDE: '.lora_magnitude_vector.weight'}
# diffusers refuses lora_A for a T5 ('could not automatically infer state dict type') but reads these older names.
_WRITTEN_OF_T5 = _WRITTEN | {A: '.lora_linear_layer.down.weight', B: '.lora_linear_layer.up.weight'}
_T5 = 'encoder.block.'  # the paths of a T5's layers begin like this
_KOHYA = {A: '.lora_down.weight', B: '.lora_up.weight', ALPHA: '.alpha'}
_NAMELESS = (
    '{} cannot hold these LoRA layers, since not all readers of {} find them; export lora_peft, or train other targets:'
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The LoRA adapters of a pipeline's networks.

    Attributes:
      params: {component: {'<path>.lora_a' ...: f32 array}}, with the names and axes of models/lora.py.
      rank: the rank of every adapter.
      alpha: the output of every adapter is multiplied by alpha / rank.
    """

    params: Mapping[str, Mapping[str, Any]]
    rank: int
    alpha: float


def are_names_of_lora(names: Iterable[str]) -> bool:
    """Whether the names of a file's tensors are those of a LoRA, in any spelling, rather than of a model."""
    ends = tuple(end for end, part in _ENDS.items() if part != ALPHA)
    return any(name.endswith(ends) for name in names)


def write_lora(
    path: str | os.PathLike,
    adapter: Adapter,
    format: str,
    *,
    layout: OriginalLayout | None = None,
    originals: OriginalLayers | None = None,
    dtype: str = 'float32',
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes adapters to one .safetensors file.

    Args:
      path: path of the file. diffusers finds it in a folder under the name PEFT_FILE.
      adapter: the adapters to write.
      format: one of FORMATS. In `lora_peft`, B is multiplied by alpha / rank and the file says that alpha is the rank,
        because diffusers before 0.35 does not read alpha there and would generate with another strength. In
        `lora_kohya`, diffusers cannot load the LoRA of a text encoder unless it includes out_proj or the mlp.
      layout: the generation of the model, which says how its layers are named in `lora_kohya`; None if it has none.
      originals: how the layers of a transformer are named in `lora_kohya` and `lora_comfyui`; None for other networks.
      dtype: dtype of the stored tensors, one of files.STORAGE_DTYPES.
      metadata: additional texts for the header, such as ss_base_model_version for kohya's readers.

    Returns:
      The path of the file.

    Raises:
      WeightsError: if the format is unknown, if the adapter has no parameters, if the format has no name for a layer,
        for DoRA outside `lora_peft` and, with one norm for each input, there too, or if the file cannot be written to
        the disk.
    """
    path = Path(path)
    if format not in FORMATS:
        raise WeightsError(f'format is {format!r}; LoRA files are written as one of {FORMATS}.')
    layers = {component: _layers(params) for component, params in adapter.params.items() if params}
    if not layers:
        raise WeightsError(f'{path} would hold no LoRA layer; give the parameters of an adapter.')
    if format == PEFT:
        tensors, header = _to_peft(path, layers, adapter)
    elif originals is not None:
        tensors, header = _to_original(path, layers, adapter, originals, is_kohya=format == KOHYA)
    elif format == KOHYA:
        as_original = layout is not None and layout.kohya_original_names
        tensors, header = _to_kohya(path, layers, adapter, as_original)
    else:
        raise WeightsError(f'{format} is for transformers; ComfyUI reads the adapters of a UNet as {KOHYA}.')
    files.write_tensors(path, tensors, dtype=dtype, metadata={**header, **(metadata or {})})
    return path


def _layers(params) -> dict[str, dict[str, np.ndarray]]:
    """Groups parameters by layer: {'<path>.lora_a': array} -> {path: {'lora_a': array}}."""
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


def _to_peft(path, layers, adapter):
    tensors, configs = {}, {}
    for component, paths in layers.items():
        for layer_path, layer in paths.items():
            if layer.get(MAGNITUDE, np.zeros(1)).ndim > 1:
                raise WeightsError(
                    f'{path} cannot hold the DoRA of {component}.{layer_path}, which holds lengths of the inputs; '
                    f'merge it into the model.'
                )
            layer = _to_torch({**layer, B: layer[B] * (adapter.alpha / adapter.rank)})
            # PEFT saves the magnitudes of a convolution in this shape.
            shape = (1, -1, 1, 1) if layer[A].ndim == 4 else (-1,)
            ends = _WRITTEN_OF_T5 if layer_path.startswith(_T5) else _WRITTEN
            for part, value in layer.items():
                value = value.reshape(shape) if part == MAGNITUDE else value
                tensors[f'{component}.{layer_path}{ends[part]}'] = value
        # This is peft's LoraConfig of each network. The target modules are whole paths, because peft compares the ends
        # of paths and a shorter name would give other layers an adapter too. The prefix `text_model.` is removed
        # because a CLIP of recent transformers has no such module.
        config = {
            'r': adapter.rank,
            'lora_alpha': adapter.rank,
            'target_modules': [layer_path.removeprefix('text_model.') for layer_path in paths],
            'use_dora': any(MAGNITUDE in layer for layer in paths.values()),
        }
        configs |= {f'{component}.{key}': value for key, value in config.items()}
    return tensors, {_PEFT_METADATA: json.dumps(configs, indent=2, sort_keys=True)}


def _check_no_dora(path, layers):
    if any(MAGNITUDE in layer for layer in layers):
        raise WeightsError(
            f"{path} cannot hold DoRA's magnitudes: kohya's own code has none, diffusers drops them from this format, "
            f'and AUTOMATIC1111 and ComfyUI compute other norms; export lora_peft, or the merged model.'
        )


def _to_kohya(path, layers, adapter, as_original):
    flat = {(component, name): layer for component, named in layers.items() for name, layer in named.items()}
    _check_no_dora(path, flat.values())
    # All layers without a name are collected, so that one error lists them.
    tensors, nameless = {}, []
    for (component, layer_path), layer in flat.items():
        try:
            name = kohya_name(component, layer_path, original=as_original)
        except WeightsError as error:
            nameless.append(str(error))
            continue
        layer = _to_torch(layer) | {ALPHA: np.float32(adapter.alpha)}
        tensors |= {f'{name}{_KOHYA[part]}': value for part, value in layer.items()}
    if nameless:
        raise WeightsError(_NAMELESS.format(path, KOHYA), nameless)
    header = _kohya_header(adapter)
    # conv_dim is only for convolutions larger than 1x1.
    if any(layer[A].ndim == 4 and layer[A].shape[:2] != (1, 1) for layer in flat.values()):
        header['ss_network_args'] = json.dumps({'conv_dim': str(adapter.rank), 'conv_alpha': str(adapter.alpha)})
    return tensors, header


def _kohya_header(adapter: Adapter) -> dict[str, str]:
    """What kohya's trainer writes into a file's header."""
    return {
        'ss_network_module': 'networks.lora',
        'ss_network_dim': str(adapter.rank),
        'ss_network_alpha': str(adapter.alpha),
    }


def _to_original(path, layers, adapter, originals, *, is_kohya):
    name = KOHYA if is_kohya else COMFYUI
    _check_no_dora(path, (layer for paths in layers.values() for layer in paths.values()))
    tensors, nameless = originals.written(layers, adapter.alpha / adapter.rank, is_kohya=is_kohya)
    if nameless:
        told = [f'{layer} has no name in the {name} format.' for layer in nameless]
        raise WeightsError(_NAMELESS.format(path, name), told)
    return tensors, _kohya_header(adapter) if is_kohya else {}


def read_lora(
    path: str | os.PathLike,
    networks: Mapping[str, Mapping[str, Any]],
    layouts: Sequence[OriginalLayout] = (),
    originals: OriginalLayers | None = None,
) -> Adapter:
    """Reads a LoRA file in any of the spellings of diffusers, PEFT, kohya, LyCORIS, OneTrainer and ComfyUI.

    Supported are LoRA on dense layers and on convolutions (LoCon, also with lora_mid), and DoRA as diffusers or kohya
    stores it.

    Args:
      path: the file.
      networks: {component: parameters of the network} that the adapters are for; arrays or ShapeDtypeStructs.
      layouts: the generations of models that an error calls by their names.
      originals: how the makers' own code names the layers of the denoiser; None: such names are not read.

    Returns:
      An Adapter with the same effect as the file. If its layers differ in rank or in alpha / rank, they are padded with
      zeros to the largest rank and B is multiplied by alpha / rank, so that alpha = rank holds for all.

    Raises:
      WeightsError: if the file is no LoRA of this model. If lora_kinds.py knows what it is instead, the error is one
        sentence that says so. Otherwise it lists every tensor of no layer of these networks, every wrong shape and
        every missing part.
    """
    path = Path(path)
    tensors, header = files.read_tensors(path), files.read_metadata(path)
    # ComfyUI's save node also writes a difference for every bias and norm; it is zero where only adapters were trained.
    tensors = {key: value for key, value in tensors.items() if not key.endswith(_DIFFERENCES) or np.any(value)}
    if originals is not None:
        tensors = originals.parted(tensors, networks)
    layers, unused, problems = _grouped(tensors, networks)
    for (component, layer_path), layer in layers.items():
        kernel = networks[component][f'{layer_path}.kernel'].shape
        problems += [f'{problem} of {component}.{layer_path}' for problem in _problems(layer, kernel)]
        if not problems and not unused:
            layers[component, layer_path] = _from_torch(layer, kernel)
    if unused or problems or not layers:
        instead = lora_kinds.foreign(tensors, unused, networks, layouts)
        if instead:
            raise WeightsError(f'{path} {instead}')
        raise WeightsError(
            f'{path} is no LoRA of this model; use one that was trained on a model of the same kind:',
            [f'unused: {key} {list(tensors[key].shape)}' for key in unused] + problems or ['it holds no tensors'],
        )
    return _uniform(layers, _scales(path, layers, _settings(path, tensors, header, layers)))


def _grouped(tensors, networks):
    """Assigns the tensors of a file to the layers of the networks.

    Returns:
      ({(component, path): {part: tensor}}, names of tensors that belong to no layer, problems: one text for each tensor
      whose layer already has this part).
    """
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
    """Describes what is wrong with one layer's tensors, in torch's axes, for our kernel of shape [..., in, out]."""
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
    # Axes of length 1 are not compared: the LoRA of a 1x1 convolution may be stored as that of a dense layer, and
    # magnitudes may have all axes of the kernel.
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
    """Whether dora_scale holds norms of the 'outputs' or 'inputs' of a layer; None if its shape is neither."""
    first, second, *others = scale.shape if scale.ndim > 1 else (0, 0)
    if any(n != 1 for n in others):
        return None
    return {(outputs, 1): 'outputs', (1, inputs): 'inputs'}.get((first, second))


def _from_torch(layer, kernel):
    *window, inputs, outputs = kernel
    a, b = layer[A], layer[B].reshape(outputs, -1).T
    if MID in layer:
        # LoCon's Tucker decomposition: multiplying the core tensor into A leaves one convolution to `rank` channels.
        middle = layer[MID].reshape(len(a), len(a), *window)
        a = np.einsum('rs...,si->ri...', middle, a.reshape(len(a), inputs))
    a = a.reshape(-1, inputs, *window)
    converted = {A: a.transpose(*range(2, a.ndim), 1, 0), B: b}
    converted |= {ALPHA: layer[ALPHA]} if ALPHA in layer else {}
    if MAGNITUDE in layer:
        converted[MAGNITUDE] = layer[MAGNITUDE].reshape(-1)
    elif DORA_SCALE in layer:
        # These are norms of W + BA, as in training. ComfyUI divides by the norms of W alone where they are of outputs.
        by_output = _dora_axis(layer[DORA_SCALE], inputs, outputs) == 'outputs'
        shape = (-1,) if by_output else (*(1 for _ in window), inputs, 1)
        converted[MAGNITUDE] = layer[DORA_SCALE].reshape(shape)
    return converted


def _settings(path, tensors, header, layers) -> dict[str, Any]:
    """Reads PEFT's settings as {'<component>.<name>': value}, from the header or from PEFT's file beside this one.

    Returns:
      The settings; empty if there are none. PEFT's own file is read only for files of PEFT that hold no alpha.

    Raises:
      WeightsError: if the settings are unreadable.
    """
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
    """Computes the factor alpha / rank of every layer; it is 1 if the file says nothing about alpha."""
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
