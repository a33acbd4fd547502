"""The subjects' pictures of a run: photos from folders, or paintings of Storybook's built-in subjects."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from dreambooth_jax.config import DreamBoothConfig, SettingsError
from dreambooth_jax.data.buckets import Size, bucket_sizes
from dreambooth_jax.data.images import MAX_ZOOM
from dreambooth_jax.data.subjects import PictureFile, list_pictures, read_buckets
from dreambooth_jax.data.table import Examples, join
from dreambooth_jax.storybook import draw, subjects


def photos(config: DreamBoothConfig) -> dict[str, list[PictureFile]]:
    """Setting that names a folder -> its photos, by name; without subjects that are built in.

    Raises: PictureError as list_pictures.
    """
    named = {_setting(config, number): concept.instance_dir for number, concept in enumerate(config.concepts())}
    return {setting: list_pictures(folder)[0] for setting, folder in named.items() if folder is not None}


def _setting(config: DreamBoothConfig, number: int) -> str:
    return f'data.concepts[{number}].instance_dir' if config.data.concepts else 'data.instance_dir'


def read(
    config: DreamBoothConfig,
    resolution: int,
    multiple: int | None = None,
    *,
    crops: int | None = None,
    max_zoom: float = MAX_ZOOM,
    order: Mapping[str, Sequence[str]] | None = None,
) -> list[Examples]:
    """All subjects' pictures with the prompts of each: its caption or else the instance prompt, and the class prompt.

    Args:
      resolution: side of the square pictures, in pixels.
      multiple: of the sides of pictures that keep their ratio, as data.aspect_buckets says; None: squares even then.
      crops: of each photo; None: data.crops. max_zoom: of random ones (data/images.py).
      order: setting, as of `photos` -> names of the files in the order in which they are taken; None: sorted.
    Returns: the pictures of each size, from the widest to the tallest, with masks if any of them has one.
    Raises: PictureError for a folder, picture or mask that cannot be used; files that are no pictures are skipped with
      a warning. SettingsError for an unknown built-in subject.
    """
    square = (resolution, resolution)
    sizes = bucket_sizes(resolution, multiple) if config.data.aspect_buckets and multiple else (square,)
    groups: dict[Size, list[Examples]] = {size: [] for size in sizes}
    for number, concept in enumerate(config.concepts()):
        prompt = concept.instance_prompt
        if concept.instance_dir is None:
            if concept.subject not in subjects.SUBJECTS:
                known = ', '.join(subjects.SUBJECTS)
                raise SettingsError(f'config.data.subject is {concept.subject!r} but must be one of {known}')
            painted = [draw.paint(scene, resolution) for scene in subjects.reference_scenes(concept.subject)]
            prompts, class_prompts = [prompt] * len(painted), [concept.class_prompt] * len(painted)
            groups[square].append(Examples(np.stack(painted), prompts, class_prompts=class_prompts))
            continue
        options = {'crops': crops or config.data.crops, 'max_zoom': max_zoom, 'seed': config.seed}
        options['order'] = (order or {}).get(_setting(config, number))
        found = read_buckets(concept.instance_dir, sizes, prompt, **options)
        for name, reason in next(iter(found.values())).skipped.items():
            logging.warning('%s in %s is skipped: it is %s', name, concept.instance_dir, reason)
        for size, pictures in found.items():
            class_prompts = [concept.class_prompt] * len(pictures.images)
            groups[size].append(Examples(pictures.images, pictures.prompts, pictures.masks, class_prompts))
    return [join(group) for group in groups.values() if group]


def describe(groups: Sequence[Examples]) -> str:
    """A line about what was read."""
    shapes = [group.images.shape for group in groups]
    sizes = ', '.join(f'{count} of {width} x {height}' for count, height, width, _ in shapes)
    masks = any(group.masks is not None for group in groups)
    return f'pictures: {sizes} pixels{"; masks weigh the loss of those that have one" if masks else ""}'
