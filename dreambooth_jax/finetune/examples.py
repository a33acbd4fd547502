"""Which images each stage of a run sees: the subjects', at the stage's size, and the class images beside them.

Stages see whole images, but for the x4 upscaler: it sees crops, at every scale up to that at which it enlarges, kept
as images of their own because their latents are encoded once (stages/latent.py).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.table import Examples, Table, make_table
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.class_images import ClassImage
from dreambooth_jax.stages import instance_images

UPSCALER_CROP = 512  # pixels, as it was trained
BUCKET_MULTIPLE = 64  # pixels, of the sides of aspect buckets of latent models, as the field has it


def read_instance(
    config: DreamBoothConfig, cascade: Cascade, order: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[Examples]]:
    """Stage -> the subjects' images as that stage trains on them, by size; of the stages that the cascade has.

    Files that are no images are skipped with a warning.

    Args:
      order: of each folder's photos, see instance_images.read; None: sorted by name.
    Raises: ImageError; ConfigError for a size that a stage cannot halve, a crop that it cannot take, or captions
      that do not teach the new word.
    """
    instance_images.check_folders(config)
    base, second = cascade.base, cascade.super_resolution
    multiple = BUCKET_MULTIPLE if base.is_latent else base.size_divisor
    found = {BASE: _read_whole(config, cascade.base_size, multiple, order)}
    if second is None:
        return found
    if not second.is_latent:  # a photo has the same ratio in both stages
        multiple = math.lcm(multiple * cascade.factor, second.size_divisor)
        found[SUPER_RESOLUTION] = _read_whole(config, cascade.super_resolution_size, multiple, order)
    if not config.super_resolution.steps:
        return found
    crop = crop_side(config, cascade)
    if second.is_latent:
        found[SUPER_RESOLUTION] = instance_images.read(
            config, crop, crops=config.super_resolution.crops, max_zoom=cascade.factor, order=order
        )
    shortest = min(side for examples in found[SUPER_RESOLUTION] for side in examples.images.shape[1:3])
    if crop is not None and crop > shortest:
        raise ConfigError(
            f'config.super_resolution.crop is {crop} but the second stage has images with a side of {shortest} '
            f'pixels; lower it, or leave it out to train on whole images'
        )
    return found


def _read_whole(
    config: DreamBoothConfig, resolution: int, multiple: int, order: Mapping[str, Sequence[str]] | None
) -> list[Examples]:
    try:
        return instance_images.read(config, resolution, multiple, order=order)
    except ValueError as error:
        if config.data.aspect_buckets and resolution % multiple:
            raise ConfigError(f'config.data.aspect_buckets is True: {error}') from None
        raise


def crop_side(config: DreamBoothConfig, cascade: Cascade) -> int | None:
    """Side of the crops that the second stage trains on, in pixels; None: whole images.

    Raises: ConfigError unless the UNet can halve it as often as it does, and the low image has whole pixels.
    """
    second, side = cascade.super_resolution, config.super_resolution.crop
    if side is None:
        return min(UPSCALER_CROP, cascade.super_resolution_size) if second.is_latent else None
    multiple = math.lcm(second.size_divisor, cascade.factor)
    if side % multiple:
        raise ConfigError(f'config.super_resolution.crop is {side} but must be a multiple of {multiple}')
    return side


def describe(config: DreamBoothConfig, instance: Mapping[str, Sequence[Examples]]) -> str:
    """What the run will see of the photos, as text: the folders, then the crops of each stage that trains."""
    lines = ['photos:', instance_images.describe_folders(config)]
    for name, groups in instance.items():
        if getattr(config, name).steps:
            crops = instance_images.describe(groups).removeprefix('images: ')
            lines.append(f'  crops for {name}: {crops}')
    return '\n'.join(lines)


def references(instance: Mapping[str, Sequence[Examples]], cascade: Cascade) -> list[np.ndarray]:
    """The subjects' images as the last stage of whole images sees them, to be shown."""
    second = cascade.super_resolution
    name = BASE if second is None or second.is_latent else SUPER_RESOLUTION
    return [image for examples in instance[name] for image in examples.images]


def check_class_images(config: DreamBoothConfig, cascade: Cascade, images: Sequence[ClassImage]) -> None:
    """Before anything trains: whether class images of one's own are as large as the second stage needs them.

    Raises: ImageError for one that is smaller, or damaged.
    """
    for image in images:
        if image.super_resolution == image.path:  # the user's own: generated ones have a file for each stage
            read_image(image.path, _class_image_side(config, cascade, SUPER_RESOLUTION)[0])


def _class_image_side(config: DreamBoothConfig, cascade: Cascade, name: str) -> tuple[int, bool]:
    """Side of the class images that a stage trains on, and whether they are crops."""
    if name == BASE:
        return cascade.base_size, False
    if not cascade.super_resolution.is_latent:
        return cascade.super_resolution_size, False
    return crop_side(config, cascade), True


def stage_tables(
    config: DreamBoothConfig, cascade: Cascade, name: str, instance: Sequence[Examples], images: Sequence[ClassImage]
) -> list[Table]:
    """The images of one stage with their prompts, by size: the subjects' and, where they were generated for it, all
    class images; with a teacher in their place the subjects' have their class prompts too.
    """
    size, is_crop = _class_image_side(config, cascade, name)
    options = {'crop_seed': config.seed, 'max_zoom': cascade.factor} if is_crop else {}
    of_class = class_images.read(images, {name: size}, **options).get(name)
    return [make_table(examples, of_class, shown_again=config.is_distilled(name)) for examples in instance]
