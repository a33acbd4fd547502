"""Tiny transformers of every family that has files in the layout of its makers, and diffusers' converters of these."""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from diffusers.loaders import single_file_utils

from dreambooth_jax.families import flux, flux2_klein, stable_diffusion_3, z_image
from dreambooth_jax.families.flow import FlowFamily
from tests.support import tiny_flux, tiny_klein, tiny_sd3, tiny_z_image


class Original(NamedTuple):
    """A family, its tiny pipeline, and diffusers' converter of its files: {name: tensor} -> {name: tensor}."""

    family: FlowFamily
    tiny: ModuleType
    convert: Callable[[dict], dict]

    def diffusers_tensors(self) -> dict[str, np.ndarray]:
        """The tensors of the tiny transformer as diffusers has them."""
        return {name: value.numpy() for name, value in self.tiny.torch_pipeline().transformer.state_dict().items()}

    def converted(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of a file as diffusers reads them."""
        found = self.convert({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
        return {name: value.numpy() for name, value in found.items()}


def _as_wide_as_the_tiny_one(name: str, width: int) -> Callable[[dict], dict]:
    """diffusers' converter of FLUX.1, whose width it has as a number: here that of the tiny network."""
    converter = getattr(single_file_utils, name)
    source = inspect.getsource(converter)
    assert source.count('inner_dim = 3072') == 1
    names = dict(vars(single_file_utils))
    exec(source.replace('inner_dim = 3072', f'inner_dim = {width}'), names)
    return names[name]


ORIGINALS = {
    'flux': Original(
        flux.FAMILY, tiny_flux, _as_wide_as_the_tiny_one('convert_flux_transformer_checkpoint_to_diffusers', 32)
    ),
    'klein': Original(
        flux2_klein.FAMILY, tiny_klein, single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers
    ),
    'z_image': Original(
        z_image.FAMILY, tiny_z_image, single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers
    ),
    'sd3': Original(
        stable_diffusion_3.FAMILY, tiny_sd3, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    ),
}
