"""The layers of transformers in LoRA files that name them as the makers' own code does.

    lora_kohya     lora_unet_<original with underscores>.lora_down.weight, .lora_up.weight, .alpha
    lora_comfyui   diffusion_model.<original>.lora_A.weight, .lora_B.weight, with alpha / rank as a part of B

That code has one layer where diffusers has three (queries, keys and values), or four (FLUX.1, with the first layer of
the feed-forward part). An adapter of the joint layer has three times the rank: its A are the three A beside each other,
and its B has the three B on its diagonal, so that the product is exactly that of the three adapters. Read back, such a
B is taken apart again; of an adapter that was trained on the joint layer, whose B is full, every part gets the whole A
and its share of B.

ComfyUI reads both endings of a name, .lora_A and .lora_down. Of FLUX.1, diffusers reads only the second kind.

Source: diffusers 0.42.1 loaders/lora_conversion_utils.py, _convert_kohya_flux_lora_to_diffusers,
_convert_kohya_flux2_lora_to_diffusers,
_convert_non_diffusers_flux2_lora_to_diffusers and _convert_non_diffusers_z_image_lora_to_diffusers; ComfyUI
comfy/lora.py.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.models.lora import A, B

KOHYA_PREFIX, COMFYUI_PREFIX = 'lora_unet_', 'diffusion_model.'
PEFT_ENDS, KOHYA_ENDS = ('.lora_A.weight', '.lora_B.weight'), ('.lora_down.weight', '.lora_up.weight')
_ENDS = {end: name for ends in (KOHYA_ENDS, PEFT_ENDS) for end, name in zip(ends, (A, B), strict=True)}
_ENDS['.alpha'] = 'alpha'


class Part(NamedTuple):
    """Which part of an original layer a layer of diffusers is: the index-th of those whose outputs are as `shares`."""

    layer: str
    index: int = 0
    shares: tuple[int, ...] = (1,)


class Rule(NamedTuple):
    """How the layers of some paths are called originally.

    Attributes:
      path: pattern of diffusers' paths; the whole path must match.
      layer: the original name, where {0} is the first group of the pattern.
      parts: what the last group of the pattern may be, in the order of the joint layer's outputs; (): not joint.
      shares: how many outputs the parts have, relative to each other; (): all as many.
    """

    path: str
    layer: str
    parts: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()

    def part(self, path: str) -> Part | None:
        """Returns the part that the layer of this path is; None if the rule is about others."""
        match = re.fullmatch(self.path, path)
        if match is None:
            return None
        if not self.parts:
            return Part(self.layer.format(*match.groups()))
        *groups, last = match.groups()
        return Part(self.layer.format(*groups), self.parts.index(last), self.shares or (1,) * len(self.parts))


@dataclasses.dataclass(frozen=True)
class OriginalLayers:
    """How LoRA files name the layers of one family's denoiser; a layer without a rule has no name in them.

    Attributes:
      component: the denoiser, such as 'transformer'.
      kohya: the rules of `lora_kohya`.
      comfyui: the rules of `lora_comfyui`.
      comfyui_ends: how the names of A and B end there.
    """

    component: str
    kohya: tuple[Rule, ...]
    comfyui: tuple[Rule, ...]
    comfyui_ends: tuple[str, str] = PEFT_ENDS

    def written(
        self, layers: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], scale: float, *, is_kohya: bool
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns the tensors of a file, and the layers that have no name in the format, as '<component>.<path>'.

        Args:
          layers: {component: {path: {'lora_a': f32[in, rank], 'lora_b': f32[rank, out]}}}. Parts of a joint layer that
            are missing get an adapter of zeros.
          scale: alpha / rank of all layers.
          is_kohya: whether the format is `lora_kohya`; otherwise it is `lora_comfyui`.
        """
        nameless = [f'{name}.{path}' for name, paths in layers.items() if name != self.component for path in paths]
        groups = {}
        for path, layer in layers.get(self.component, {}).items():
            part = part_of(path, self.kohya if is_kohya else self.comfyui)
            if part is None:
                nameless.append(f'{self.component}.{path}')
            else:
                groups.setdefault((part.layer, part.shares), {})[part.index] = layer
        tensors = {}
        end_a, end_b = KOHYA_ENDS if is_kohya else self.comfyui_ends
        for (name, shares), parts in groups.items():
            a, b = _joined(parts, shares)
            if is_kohya:
                start = KOHYA_PREFIX + name.replace('.', '_')
                # A joint layer has a multiple of the rank, and the same alpha / rank.
                alpha = np.float32(scale * len(a))
                tensors |= {f'{start}{end_a}': a, f'{start}{end_b}': b, f'{start}.alpha': alpha}
            else:
                start = COMFYUI_PREFIX + name
                tensors |= {f'{start}{end_a}': a, f'{start}{end_b}': b * np.float32(scale)}
        return tensors, nameless

    def parted(self, tensors: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the tensors of a file, those with original names under diffusers' names, joint layers taken apart.

        Args:
          tensors: name in the file -> array, with torch's axes: A is [rank, in] and B [out, rank].
          networks: {component: parameters}, from which the layers are known.
        """
        kernels = (name for name in networks.get(self.component, ()) if name.endswith('.kernel'))
        names = _names(self, tuple(name.removesuffix('.kernel') for name in kernels))
        groups, found = {}, {}
        for key, value in tensors.items():
            end = next((end for end in _ENDS if key.endswith(end)), '')
            owners = names.get(key.removesuffix(end)) if end else None
            if owners is None:
                found[key] = value
            else:
                groups.setdefault((key.removesuffix(end), owners), {})[end] = value
        for (_, owners), layer in groups.items():
            for index, path, shares in owners:
                of_part = _take(layer, index, shares) if len(shares) > 1 else layer
                found |= {f'{self.component}.{path}{end}': value for end, value in of_part.items()}
        return found


def part_of(path: str, rules: tuple[Rule, ...]) -> Part | None:
    """Returns what the first rule that is about a path says of it; None if none is."""
    return next(filter(None, (rule.part(path) for rule in rules)), None)


@functools.lru_cache(maxsize=8)
def _names(layers: OriginalLayers, paths: tuple[str, ...]) -> dict[str, tuple[tuple[int, str, tuple[int, ...]], ...]]:
    """Name in a file, without the end -> ((index, path of diffusers, shares), ...) of every part of the layer."""
    found = {}
    for rules in (layers.kohya, layers.comfyui):
        for path in paths:
            part = part_of(path, rules)
            if part is None:
                continue
            # Programs mix prefixes and rules, and no name stands for two layers, so both prefixes are read with both.
            underscored = part.layer.replace('.', '_')
            for name in (f'{KOHYA_PREFIX}{underscored}', f'{COMFYUI_PREFIX}{part.layer}'):
                found.setdefault(name, set()).add((part.index, path, part.shares))
    return {name: tuple(sorted(owners)) for name, owners in found.items()}


def _joined(parts: Mapping[int, Mapping[str, np.ndarray]], shares: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns A, f32[parts * rank, in], and B, f32[all outputs, parts * rank], of the joint layer."""
    (rank, outputs), inputs, one = next((part[B].shape, len(part[A]), shares[i]) for i, part in parts.items())
    rows = rows_of_parts(shares, outputs // one * sum(shares))
    a = np.zeros((len(shares), rank, inputs), np.float32)
    b = np.zeros((rows[-1].stop, len(shares), rank), np.float32)
    for index, part in parts.items():
        a[index], b[rows[index], index] = part[A].T, part[B].T
    return a.reshape(-1, inputs), b.reshape(len(b), -1)


def rows_of_parts(shares: tuple[int, ...], outputs: int) -> list[slice]:
    """Returns which of the outputs of a joint layer are those of each part.

    Args:
      shares: as in Rule, one for each part.
      outputs: how many the joint layer has.
    """
    ends = np.cumsum((0, *shares)) * (outputs // sum(shares))
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(ends)]


def _take(layer: Mapping[str, np.ndarray], index: int, shares: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns one part of a joint layer, {end of the name: array}; nothing if its adapter is zero.

    A layer whose shapes do not fit is given whole, so that whoever checks shapes says what is wrong with it.
    """
    count, parts = len(shares), {_ENDS[end]: (end, value) for end, value in layer.items()}
    if not {A, B} <= parts.keys() or any(parts[name][1].ndim != 2 for name in (A, B)):
        return dict(layer)
    (end_a, a), (end_b, b) = parts[A], parts[B]
    if len(b) % sum(shares) or a.shape[0] != b.shape[1]:
        return dict(layer)
    rows = rows_of_parts(shares, len(b))
    share = b[rows[index]]
    if a.shape[0] % count or not _is_diagonal(b, rows):
        return {**layer, end_b: share}
    rank = a.shape[0] // count
    mine = slice(rank * index, rank * (index + 1))
    if not (np.any(a[mine]) or np.any(share)):
        return {}
    taken = {**layer, end_a: a[mine], end_b: share[:, mine]}
    if 'alpha' in parts:  # of the rank of all parts together
        end, alpha = parts['alpha']
        taken[end] = np.asarray(alpha / count, np.asarray(alpha).dtype)
    return taken


def _is_diagonal(b: np.ndarray, rows: list[slice]) -> bool:
    columns = b.reshape(len(b), len(rows), -1)
    return not any(np.any(np.delete(columns[of_part], index, axis=1)) for index, of_part in enumerate(rows))
