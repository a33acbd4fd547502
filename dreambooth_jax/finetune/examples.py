"""The images that each stage of a run trains on: the subjects' images at the stage's size, and class images.

Stages train on whole images, or on crops that the step makes of them. The exception is a second stage on latents (the
x4 upscaler), which trains on crops at every scale up to its own factor. Its crops are made once and kept as images,
because their latents are encoded once (families/image_space.py).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.data.buckets import Size, bucket_sizes
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.table import Examples, Table, make_table
from dreambooth_jax.finetune import instance_images
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.class_images import ClassImage


def read_instance(
    config: DreamBoothConfig, cascade: Cascade, order: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[Examples]]:
    """Reads the subjects' images for every stage that the cascade has.

    A file that is not an image is skipped with a warning.

    Args:
      order: order of each folder's photos, see instance_images.read; None: sorted by name.

    Returns:
      Stage -> the images that it trains on, one entry per image size.

    Raises:
      ImageError: if an image cannot be used.
      ConfigError: if a stage cannot halve a size as often as it must, or cannot use a crop, or if captions lack the new
        word.
    """
    instance_images.check_folders(config)
    whole, second = _whole(cascade), cascade.super_resolution
    found = {stage: _read_whole(config, *sides, order) for stage, sides in whole.items()}
    if second is None or not config.super_resolution.steps:
        return found
    crop = crop_side(config, cascade)
    if not second.space.crops_in_step:
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


def _whole(cascade: Cascade) -> dict[str, tuple[int, int]]:
    """Returns stage -> the side of its whole images as squares, and the multiple of their sides in aspect buckets."""
    base, second = cascade.base, cascade.super_resolution
    multiple = base.family.bucket_multiple(base)
    found = {BASE: (cascade.base_size, multiple)}
    if second is not None and second.space.crops_in_step:  # a photo has the same ratio in both stages
        multiple = math.lcm(multiple * cascade.factor, second.size_divisor)
        found[SUPER_RESOLUTION] = (cascade.super_resolution_size, multiple)
    return found


def sizes(config: DreamBoothConfig, cascade: Cascade) -> dict[str, tuple[Size, ...]]:
    """Returns stage -> the sizes (height, width) that its images are cut to.

    A second stage that trains on crops from all over the photo has their size, if it trains.

    Raises:
      ConfigError: as read_instance.
    """
    found = {stage: _sizes(config, *sides) for stage, sides in _whole(cascade).items()}
    if cascade.super_resolution is not None and config.super_resolution.steps and SUPER_RESOLUTION not in found:
        side = crop_side(config, cascade)
        found[SUPER_RESOLUTION] = ((side, side),)
    return found


def _read_whole(
    config: DreamBoothConfig, resolution: int, multiple: int, order: Mapping[str, Sequence[str]] | None
) -> list[Examples]:
    _sizes(config, resolution, multiple)  # refuses a resolution that aspect buckets cannot have
    return instance_images.read(config, resolution, multiple, order=order)


def _sizes(config: DreamBoothConfig, side: int, multiple: int) -> tuple[Size, ...]:
    if not config.data.aspect_buckets:
        return ((side, side),)
    try:
        return bucket_sizes(side, multiple)
    except ValueError as error:
        raise ConfigError(f'config.data.aspect_buckets is True: {error}') from None


def crop_side(config: DreamBoothConfig, cascade: Cascade) -> int | None:
    """Returns the side of the crops that the second stage trains on, in pixels; None: whole images.

    Raises:
      ConfigError: if the denoiser cannot halve the side as often as it must, or the side of the low-resolution image
        would not be a whole number of pixels.
    """
    second, side = cascade.super_resolution, config.super_resolution.crop
    if side is None:
        return None if second.space.crops_in_step else min(second.family.crop, cascade.super_resolution_size)
    multiple = math.lcm(second.size_divisor, cascade.factor)
    if side % multiple:
        raise ConfigError(f'config.super_resolution.crop is {side} but must be a multiple of {multiple}')
    return side


def describe(config: DreamBoothConfig, instance: Mapping[str, Sequence[Examples]]) -> str:
    """Describes in text what the run will use of the photos: the folders, then the crops of each stage that trains."""
    lines = ['photos:', instance_images.describe_folders(config)]
    for name, groups in instance.items():
        if getattr(config, name).steps:
            crops = instance_images.describe(groups).removeprefix('images: ')
            lines.append(f'  crops for {name}: {crops}')
    return '\n'.join(lines)


def references(instance: Mapping[str, Sequence[Examples]], cascade: Cascade) -> list[np.ndarray]:
    """Returns the subjects' images for sample grids: those of the last stage that trains on whole images."""
    second = cascade.super_resolution
    name = BASE if second is None or not second.space.crops_in_step else SUPER_RESOLUTION
    return [image for examples in instance[name] for image in examples.images]


def seen(config: DreamBoothConfig, cascade: Cascade) -> list[np.ndarray]:
    """Returns the subjects' photos as the model saw them in training, uint8[H, W, 3] each; raises as read_instance."""
    return references(read_instance(config, cascade), cascade)


def check_class_images(config: DreamBoothConfig, cascade: Cascade, images: Sequence[ClassImage]) -> None:
    """Checks before training that the user's own class images are large enough for the second stage.

    Raises:
      ImageError: if one is too small or damaged.
    """
    for image in images:
        if image.super_resolution == image.path:  # the user's own: generated ones have a file for each stage
            read_image(image.path, _class_image_side(config, cascade, SUPER_RESOLUTION)[0])


def _class_image_side(config: DreamBoothConfig, cascade: Cascade, name: str) -> tuple[int, bool]:
    """Returns the side of the class images that a stage trains on, in pixels, and whether they are crops."""
    if name == BASE:
        return cascade.base_size, False
    if cascade.super_resolution.space.crops_in_step:
        return cascade.super_resolution_size, False
    return crop_side(config, cascade), True


def stage_tables(
    config: DreamBoothConfig, cascade: Cascade, name: str, instance: Sequence[Examples], images: Sequence[ClassImage]
) -> list[Table]:
    """Returns the images of one stage with their prompts, one table per image size.

    Each table holds the subjects' images of that size and all class images, if this stage has them. With a teacher
    the subjects' images are shown a second time, under their class prompts, instead of or beside class images.
    """
    size, is_crop = _class_image_side(config, cascade, name)
    options = {'crop_seed': config.seed, 'max_zoom': cascade.factor} if is_crop else {}
    of_class = class_images.read(images, {name: size}, **options).get(name)
    return [make_table(examples, of_class, shown_again=config.has_teacher(name)) for examples in instance]
