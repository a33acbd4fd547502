"""What a transformer's tensors are called in files of its makers' own code, and how they differ there.

Such a file, flux1-dev.safetensors for one, is what the makers of FLUX.1, FLUX.2, Z-Image and Stable Diffusion 3 publish
beside diffusers' folder, and what ComfyUI keeps in models/diffusion_models. Its layers are those that LoRA files name
(lora_original.py), so a family says here only what adapters do not have. Three things differ besides the names:

    joint layers     one layer computes queries, keys and values, which diffusers computes by three
    norms            the weight of a norm is its `scale`; ComfyUI writes `weight` too
    shift first      a norm that is shifted and scaled gets the shift first; diffusers has the scale first

transformer_file.py reads and writes the files. Tensors have the axes of torch here, [outputs, inputs].

Source: diffusers 0.42.1 loaders/single_file_utils.py, its converters of the transformers of SD3, FLUX.1, FLUX.2 and
Z-Image; ComfyUI comfy/model_detection.py (prefixes of names).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.weights.lora_original import Rule, part_of, rows_of_parts

Shapes = Mapping[str, tuple[int, ...]]

# ComfyUI's prefixes of a transformer's tensors: in a file of a whole model, and in one of the transformer alone.
PREFIXES = ('model.diffusion_model.', 'diffusion_model.')
# Prefixes of other networks, which a file may hold beside the transformer.
_OTHERS = ('first_stage_model.', 'vae.', 'text_encoder', 'cond_stage_model.', 'conditioner.')


class Place(NamedTuple):
    """Where a file has a tensor of diffusers.

    Attributes:
      name: the tensor in the file.
      index, shares: which part of its outputs it is, as in lora_original.Part.
      is_swapped: whether the halves of its outputs are in the other order.
      other: another name that some files have; None if there is none.
    """

    name: str
    index: int
    shares: tuple[int, ...]
    is_swapped: bool = False
    other: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginalTransformer:
    """How the makers' code of one family names the tensors of its transformer; every tensor must have a rule.

    Attributes:
      layers: rules of layers, whose weight and bias are called so there too.
      norms: rules of norms, whose weight is called `scale`.
      shift_first: rules of layers that compute scale and shift, in this order in diffusers. A layer that computes more,
        a gate too, has the makers' order in diffusers as well; it is told by its outputs, more than twice its inputs.
      tensors: rules of tensors that are no layer's.
      marks: names of tensors that files of this family alone hold, of the makers' layout and of diffusers'.
      ignored: patterns of whole names of tensors that a file may hold without use.
      implementation: where the makers' code is, for the metadata (modelspec.py).
    """

    layers: tuple[Rule, ...]
    norms: tuple[Rule, ...] = ()
    shift_first: tuple[Rule, ...] = ()
    tensors: tuple[Rule, ...] = ()
    marks: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    implementation: str

    def places(self, shapes: Shapes) -> dict[str, Place]:
        """Returns {name in diffusers: where a file has it}.

        Args:
          shapes: {name in diffusers: shape} of all tensors of the transformer.

        Raises:
          ValueError: if a tensor has no rule, or two have one place, which is a mistake in the rules.
        """
        found = {name: self._place(name, shapes) for name in shapes}
        taken = {}
        for name, place in found.items():
            if taken.setdefault((place.name, place.index), name) != name:
                raise ValueError(f'{name} and {taken[place.name, place.index]} would both be {place.name}')
        return found

    def _place(self, name: str, shapes: Shapes) -> Place:
        layer, _, end = name.rpartition('.')
        if part := part_of(layer, self.layers):
            return Place(f'{part.layer}.{end}', part.index, part.shares)
        if part := part_of(layer, self.norms):
            return Place(f'{part.layer}.scale', part.index, part.shares, other=f'{part.layer}.weight')
        if part := part_of(layer, self.shift_first):
            outputs, inputs = shapes[f'{layer}.weight']
            return Place(f'{part.layer}.{end}', part.index, part.shares, is_swapped=outputs == 2 * inputs)
        if part := part_of(name, self.tensors):
            return Place(*part)
        raise ValueError(f'{name} has no name in the layout of {self.implementation}')

    def shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Returns {name in a file: shape}; arguments and errors are those of places."""
        found = {}
        for name, place in self.places(shapes).items():
            outputs, *inputs = shapes[name]
            found[place.name] = (outputs // place.shares[place.index] * sum(place.shares), *inputs)
        return found

    def other_names(self, shapes: Shapes) -> dict[str, str]:
        """Returns {another name that some files have: the usual one}; arguments and errors are those of places."""
        return {place.other: place.name for place in self.places(shapes).values() if place.other}

    def taken_apart(self, tensors: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
        """Returns the tensors of diffusers, {name: array}, views where that is possible.

        Args:
          tensors: {name in a file: array}, which has the names and shapes of `shapes`.
          shapes: as in places.

        Raises:
          ValueError: as places.
        """
        found = {}
        for name, place in self.places(shapes).items():
            value = tensors[place.name]
            if len(place.shares) > 1:
                value = value[rows_of_parts(place.shares, len(value))[place.index]]
            found[name] = _swapped(value) if place.is_swapped else value
        return found

    def joined(self, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the tensors of a file; the inverse of taken_apart.

        Args:
          tensors: {name in diffusers: array} of all tensors of the transformer.

        Raises:
          ValueError: as places.
        """
        parts = {}
        for name, place in self.places({name: np.shape(value) for name, value in tensors.items()}).items():
            value = np.asarray(tensors[name])
            parts.setdefault(place.name, {})[place.index] = _swapped(value) if place.is_swapped else value
        return {
            name: np.concatenate([of_name[index] for index in sorted(of_name)]) if len(of_name) > 1 else of_name[0]
            for name, of_name in parts.items()
        }


def _swapped(value: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(value, 2)[::-1])


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Returns {name without ComfyUI's prefix: name in the file} of the tensors of a file that may be the transformer's.

    Tensors of text encoders and of a VAE beside it are left out.
    """
    names = [name for name in names if not name.startswith(_OTHERS)]
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)), '')
    return {name.removeprefix(prefix): name for name in names}


def differences(found: Shapes, wanted: Shapes, ignored: Iterable[str] = ()) -> list[str]:
    """Compares the tensors of a file with those that it should hold.

    Args:
      found: {name: shape} in the file.
      wanted: the same of all tensors that it should hold.
      ignored: patterns of whole names of tensors that it may hold besides.

    Returns:
      One text for each tensor that is missing, not used or of another shape; the first word says which, 'missing',
      'unused' or 'wrong'.
    """
    unused = [name for name in found if name not in wanted and not any(re.fullmatch(one, name) for one in ignored)]
    return [
        *(f'missing: {name} {list(shape)}' for name, shape in wanted.items() if name not in found),
        *(f'unused: {name} {list(found[name])}' for name in unused),
        *(
            f'wrong shape: {name} is {list(found[name])} but must be {list(shape)}'
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
    ]
