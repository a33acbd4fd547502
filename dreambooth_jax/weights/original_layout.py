"""Converts the tensors of a whole Stable Diffusion model to their original names and shapes, and back.

There are three ways to store a component: renamed only (UNets and OpenAI's CLIP), as the original VAE, and as OpenCLIP.
Each is a pair of functions, one the inverse of the other; the names are in original_names.py. Tensors are renamed,
reshaped, transposed, joined or split, but no value is computed, so converting there and back is exact.

No tensor is dropped silently: each is converted, or matches original_names.IGNORED, or is listed in an error.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dreambooth_jax.weights import original_names as names
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_facts import OriginalLayout

Tensors = Mapping[str, np.ndarray]
Configs = Mapping[str, names.Config]
Converted = tuple[dict[str, np.ndarray], list[str]]  # tensors under new names, and names that cannot be converted


def to_original(components: Mapping[str, Tensors], configs: Configs, layout: OriginalLayout) -> dict[str, np.ndarray]:
    """Converts a model's tensors to the original names and shapes.

    The text encoder of SD 2.x is written with the 23 layers of diffusers' folders; no program uses the 24th layer of
    the original files.

    Args:
      components: {component: {name in a checkpoint of diffusers or transformers: array}} for 'unet', 'vae',
        'text_encoder' and, for SDXL, 'text_encoder_2'.
      configs: {component: contents of its config.json}; other entries are not read.
      layout: the generation of the model.

    Returns:
      {original name: array} with unchanged dtypes, possibly views.

    Raises:
      WeightsError: if the components are not those of the layout, or if the layout has no name for a tensor.
    """
    stored = _stored(layout)
    if components.keys() != stored.keys():
        raise WeightsError(
            f'components are {", ".join(sorted(components))} but a single file of {layout.title} '
            f'holds {", ".join(sorted(stored))}; give exactly these.'
        )
    original, problems = {}, []
    for component, one in stored.items():
        converted, unplaced = one.to_original(components[component], configs[component])
        original |= {one.prefix + name: value for name, value in converted.items()}
        problems += [f'{component}: {name} {list(np.shape(components[component][name]))}' for name in unplaced]
    if problems:
        raise WeightsError(
            f'the original layout of {layout.title} has no place for these tensors; give networks '
            f'that fit their configurations:',
            problems,
        )
    return original


def from_original(
    tensors: Tensors, configs: Configs, layout: OriginalLayout, *, source: str = 'the checkpoint'
) -> dict[str, dict[str, np.ndarray]]:
    """Converts a model's tensors from the original names and shapes; the inverse of to_original.

    Args:
      tensors: {original name: array}, all tensors of a file. Those that match original_names.IGNORED are left out.
      configs: {component: contents of its config.json}, such as original_configs.derive returns.
      layout: the generation of the model.
      source: name of the tensors' file for an error.

    Returns:
      {component: {name in a checkpoint of diffusers or transformers: array}}, possibly views. It is not checked that
      the components are complete; weights.mapping.load does this.

    Raises:
      WeightsError: it lists every tensor that is no part of such a model.
    """
    components, placed, problems = {}, set(), []
    for component, one in _stored(layout).items():
        own = {name for name in tensors if name.startswith(one.prefix) and not names.IGNORED.fullmatch(name)}
        inside = {name.removeprefix(one.prefix): tensors[name] for name in own}
        components[component], unplaced = one.from_original(inside, configs[component])
        placed |= own
        problems += [one.prefix + name for name in unplaced]
    problems += [name for name in tensors if name not in placed and not names.IGNORED.fullmatch(name)]
    if problems:
        raise WeightsError(
            f'{source} holds tensors that are no part of {layout.title}; give a plain model of this family:',
            [f'{name} {list(np.shape(tensors[name]))}' for name in sorted(problems)],
        )
    return components


class _Stored(NamedTuple):
    """How a component is stored. Both functions take its tensors without the prefix, and its config.json."""

    prefix: str
    to_original: Callable[[Tensors, names.Config], Converted]
    from_original: Callable[[Tensors, names.Config], Converted]


def _stored(layout: OriginalLayout) -> dict[str, _Stored]:
    stored = {
        'unet': _Stored(names.UNET_PREFIX, *_renaming(names.unet_modules)),
        'vae': _Stored(names.VAE_PREFIX, _vae_to_original, _vae_from_original),
    }
    for component, prefix in layout.text_prefixes.items():
        functions = (
            (_open_clip_to_original, _open_clip_from_original)
            if names.is_open_clip(prefix)
            else _renaming(names.clip_modules)
        )
        stored[component] = _Stored(prefix, *functions)
    return stored


def _renamed(tensors: Tensors, modules: Mapping[str, str]) -> Converted:
    renamed, unplaced = {}, []
    for name, value in tensors.items():
        module, _, leaf = name.rpartition('.')
        if module in modules and leaf in ('weight', 'bias'):
            renamed[f'{modules[module]}.{leaf}'] = value
        else:
            unplaced.append(name)
    return renamed, unplaced


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {original: ours for ours, original in table.items()}


def _renaming(modules):
    return (
        lambda tensors, config: _renamed(tensors, modules(config)),
        lambda tensors, config: _renamed(tensors, _inverse(modules(config))),
    )


def _vae_to_original(tensors: Tensors, config: names.Config) -> Converted:
    renamed, unplaced = _renamed(tensors, names.vae_modules(config))
    for name in names.VAE_CONVOLUTIONS & renamed.keys():
        renamed[name] = renamed[name][:, :, None, None]
    return renamed, unplaced


def _vae_from_original(tensors: Tensors, config: names.Config) -> Converted:
    # Some converters wrote matrices of shape [C, C] or [C, C, 1] here, instead of kernels of 1x1 convolutions.
    kernels = {name: tensors[name] for name in names.VAE_CONVOLUTIONS & tensors.keys()}
    flat = {name: value.reshape(value.shape[:2]) for name, value in kernels.items() if set(value.shape[2:]) <= {1}}
    return _renamed({**tensors, **flat}, _inverse(names.vae_modules(config)))


def _open_clip_to_original(tensors: Tensors, config: names.Config) -> Converted:
    rest, original = dict(tensors), {}
    for fused, parts in names.open_clip_fused(config).items():
        if all(part in rest for part in parts):
            original[fused] = np.concatenate([rest.pop(part) for part in parts])
    for ours, theirs in names.OPEN_CLIP_BARE.items():
        if ours in rest:
            original[theirs] = rest.pop(ours)
    if names.OPEN_CLIP_PROJECTION in original:
        original[names.OPEN_CLIP_PROJECTION] = original[names.OPEN_CLIP_PROJECTION].T
    renamed, unplaced = _renamed(rest, names.open_clip_modules(config))
    return original | renamed, unplaced


def _open_clip_from_original(tensors: Tensors, config: names.Config) -> Converted:
    rest, ours = dict(tensors), {}
    for fused, parts in names.open_clip_fused(config).items():
        if fused in rest and np.shape(rest[fused])[:1] and len(rest[fused]) % len(parts) == 0:
            ours |= zip(parts, np.split(rest.pop(fused), len(parts)), strict=True)
    for name, theirs in names.OPEN_CLIP_BARE.items():
        if theirs in rest:
            value = rest.pop(theirs)
            ours[name] = value.T if theirs == names.OPEN_CLIP_PROJECTION else value
    renamed, unplaced = _renamed(rest, _inverse(names.open_clip_modules(config)))
    return ours | renamed, unplaced
