"""Which pictures each stage of a run sees: the subjects', at the stage's size, and the class pictures beside them.

Stages see whole pictures, but for the x4 upscaler: it sees crops, at every scale up to that at which it enlarges, kept
as pictures of their own because their latents are encoded once (stages/latent.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.config import DreamBoothConfig, SettingsError
from dreambooth_jax.data.table import Examples, Table, make_table
from dreambooth_jax.generation import prior_images
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.prior_images import PriorImage
from dreambooth_jax.stages import instance_pictures

UPSCALER_CROP = 512  # pixels, as it was trained


def read_instance(config: DreamBoothConfig, cascade: Cascade) -> dict[str, Examples]:
    """Stage -> the subjects' pictures as that stage trains on them, of the stages that the cascade has.

    Raises: PictureError, or SettingsError for a crop that the upscaler cannot take.
    """
    found = {BASE: instance_pictures.read(config, cascade.base_size)}
    second = cascade.super_resolution
    if second is None:
        return found
    if not second.is_latent:
        found[SUPER_RESOLUTION] = instance_pictures.read(config, cascade.super_resolution_size)
    elif config.super_resolution.steps:
        found[SUPER_RESOLUTION] = instance_pictures.read(
            config, crop_side(config, cascade), crops=config.super_resolution.crops, max_zoom=cascade.factor
        )
    return found


def crop_side(config: DreamBoothConfig, cascade: Cascade) -> int:
    """Side of the crops that the upscaler trains on, in pixels.

    Raises: SettingsError unless the UNet can halve it as often as it does.
    """
    second = cascade.super_resolution
    side = config.super_resolution.crop or min(UPSCALER_CROP, cascade.super_resolution_size)
    multiple = second.latent_scale * 2 ** (len(second.unet.config['block_out_channels']) - 1)
    if side % multiple:
        raise SettingsError(f'config.super_resolution.crop is {side} but must be a multiple of {multiple}')
    return side


def references(instance: Mapping[str, Examples]) -> Sequence[np.ndarray]:
    """The largest whole pictures of the subjects, to be shown."""
    sides = {name: examples.images.shape[1] for name, examples in instance.items()}
    last = max(sides, key=sides.get)
    return instance[last].images if len(instance[last].images) == len(instance[BASE].images) else instance[BASE].images


def make_stage_table(
    config: DreamBoothConfig, cascade: Cascade, name: str, instance: Examples, images: Sequence[PriorImage]
) -> Table:
    """The pictures of one stage with their prompts: the subjects' and, where they were drawn for it, class pictures."""
    size = instance.images.shape[1]
    crops = cascade.super_resolution.is_latent if name == SUPER_RESOLUTION else False
    options = {'crop_seed': config.seed, 'max_zoom': cascade.factor} if crops else {}
    return make_table(instance, prior_images.read(images, {name: size}, **options).get(name))
