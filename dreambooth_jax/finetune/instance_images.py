"""The images of a run's subjects: photos from folders or datasets, or Storybook's painted built-in subjects."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from dreambooth_jax.config import ConfigError, DreamBoothConfig, SubjectConfig
from dreambooth_jax.data.buckets import Size, bucket_sizes
from dreambooth_jax.data.decode import decode_image, image_size
from dreambooth_jax.data.images import MAX_ZOOM, ImageError, open_photo
from dreambooth_jax.data.subjects import ImageFile, list_images, read_buckets, read_files
from dreambooth_jax.data.table import Examples, join
from dreambooth_jax.datasets import data_source
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.storybook.world import Scene
from dreambooth_jax.text.prompts import in_turn

# Words of an instance prompt that cannot be the subject's name, even if the class prompt does not have them.
_FRAMING = {'a', 'an', 'the', 'of', 'in', 'on', 'my', 'with', 'photo', 'image', 'photograph', 'close-up'}


class Photos(NamedTuple):
    """What lies in a subject's folder or dataset.

    Attributes:
      place: the folder, or the dataset's name with its version.
      files: the photos.
      skipped: name -> reason, for files that are not used.
    """

    place: str
    files: list[ImageFile]
    skipped: dict[str, str]


def photos(config: DreamBoothConfig) -> dict[str, list[ImageFile]]:
    """Returns setting that names a folder or dataset -> its photos, sorted by name or in the dataset's order.

    Built-in subjects have neither and are left out.

    Raises:
      ImageError: as list_images.
      ConfigError: for a dataset that cannot be read.
    """
    found = {_setting(config, number): listed(config, number) for number in range(len(config.subjects()))}
    return {setting: one.files for setting, one in found.items() if one is not None}


def _setting(config: DreamBoothConfig, number: int) -> str:
    name = 'instance_dir' if config.subjects()[number].tfds is None else 'tfds'
    return f'data.subjects[{number}].{name}' if config.data.subjects else f'data.{name}'


def listed(config: DreamBoothConfig, number: int) -> Photos | None:
    """Returns the photos of a subject; None for a built-in one.

    Raises:
      ImageError, ConfigError: as `photos`.
    """
    subject = config.subjects()[number]
    if subject.tfds is None and subject.instance_dir is None:
        return None
    if subject.tfds is None:
        return Photos(subject.instance_dir, *list_images(subject.instance_dir))
    folders = {'data_dir': config.data.tfds_dir, 'manual_dir': config.data.tfds_manual_dir}
    try:
        dataset = data_source.read(subject.tfds, subject.tfds_split, **folders)
    except ImageError as error:
        raise ConfigError(f'config.{_setting(config, number)} is {subject.tfds!r} but {error}') from None
    return Photos(f'{dataset.name} of TFDS', dataset.files, {})


def whole(config: DreamBoothConfig, side: int) -> list[tuple[np.ndarray, ...]]:
    """Returns the photos of every subject as they are, uint8[H, W, 3] each, upright, neither resized nor cropped.

    Args:
      side: side in pixels at which the images of built-in subjects are painted.

    Raises:
      ImageError, ConfigError: as `read`.
    """
    found = []
    for number, subject in enumerate(config.subjects()):
        there = listed(config, number)
        if there is None:
            found.append(tuple(_painted(subject.subject, side)))
        else:
            found.append(tuple(np.asarray(decode_image(file.path)) for file in there.files))
    return found


def whole_masks(config: DreamBoothConfig, side: int) -> list[tuple[np.ndarray | None, ...]]:
    """Returns the masks of the photos that `whole` returns, uint8[H, W] each: 255 is the subject. None: there is none.

    Raises:
      ImageError, ConfigError: as `read`; also if a mask and its photo differ in size.
    """
    found = []
    for number, subject in enumerate(config.subjects()):
        there = listed(config, number)
        if there is None:
            found.append(_painted_masks(subject.subject, side))
            continue
        opened = [open_photo(file.path, file.mask) if file.mask else None for file in there.files]
        found.append(tuple(photo and np.asarray(photo.weights) for photo in opened))
    return found


def _painted(name: str, side: int) -> np.ndarray:
    return np.stack([draw.paint(scene, side) for scene in _scenes(name)])


def _painted_masks(name: str, side: int) -> tuple[np.ndarray, ...]:
    return tuple(draw.paint_mask(scene, side) for scene in _scenes(name))


def _painted_prompts(subject: SubjectConfig) -> list[str]:
    """Returns the prompt of each image of a built-in subject."""
    alike = [subject.instance_prompt] * len(_scenes(subject.subject))
    return subjects.captions(subject.subject, subject.instance_prompt) if subject.subject_captions else alike


def _scenes(name: str) -> tuple[Scene, ...]:
    if name not in subjects.SUBJECTS:
        known = ', '.join(subjects.SUBJECTS)
        raise ConfigError(f'config.data.subject is {name!r} but must be one of {known}')
    return subjects.reference_scenes(name)


def read(
    config: DreamBoothConfig,
    resolution: int,
    multiple: int | None = None,
    *,
    crops: int | None = None,
    max_zoom: float = MAX_ZOOM,
    order: Mapping[str, Sequence[str]] | None = None,
) -> list[Examples]:
    """Reads all subjects' images. Each has the prompt of its caption, or else the instance prompt, and class prompts.

    Args:
      resolution: the side of the square images, in pixels.
      multiple: the sides of images that keep their ratio (data.aspect_buckets) are multiples of it. None: squares, even
        with data.aspect_buckets.
      crops: how many crops are made of each photo; None: data.crops.
      max_zoom: the largest zoom of random crops (data/images.py).
      order: setting, as in `photos` -> the names of its files in the order in which they are used. None: as in
        `photos`.

    Returns:
      The images of each size, from the widest to the tallest size; a size has masks if any of its images has one.

    Raises:
      ImageError: for a folder, image or mask that cannot be used.
      ConfigError: for an unknown built-in subject, or a dataset that cannot be used.
    """
    square = (resolution, resolution)
    sizes = bucket_sizes(resolution, multiple) if config.data.aspect_buckets and multiple else (square,)
    # A step takes all its examples from images of one size, so images of all subjects are grouped by size.
    groups: dict[Size, list[Examples]] = {size: [] for size in sizes}
    for number, subject in enumerate(config.subjects()):
        prompt = subject.instance_prompt
        turns = in_turn(subject.class_prompt, config.prior.phrases, plain=config.prior.kind == 'distillation')
        if subject.instance_dir is None and subject.tfds is None:
            painted = _painted(subject.subject, resolution)
            masks = np.stack(_painted_masks(subject.subject, resolution))[..., None] if subject.subject_masks else None
            groups[square].append(Examples(painted, _painted_prompts(subject), masks, [turns] * len(painted)))
            continue
        options = {'crops': crops or config.data.crops, 'max_zoom': max_zoom, 'seed': config.seed}
        options['order'] = (order or {}).get(_setting(config, number))
        if subject.tfds is None:
            found = read_buckets(subject.instance_dir, sizes, prompt, **options)
        else:
            found = read_files(listed(config, number).files, sizes, prompt, **options)
        for size, images in found.items():
            groups[size].append(Examples(images.images, images.prompts, images.masks, [turns] * len(images.images)))
    return [join(group) for group in groups.values() if group]


def check_folders(config: DreamBoothConfig) -> None:
    """Warns about files that are skipped, and about captions that do not name the subject.

    Raises:
      ImageError: as `read`.
      ConfigError: if no prompt that a step will read holds the new token of textual inversion, because then nothing
        would train its table rows.
    """
    prompts: list[str] = []
    for number, subject in enumerate(config.subjects()):
        found = listed(config, number)
        if found is None:
            prompts.append(subject.instance_prompt)
            continue
        place, files, skipped = found
        for name, reason in skipped.items():
            logging.warning('%s in %s is skipped: it is %s', name, place, reason)
        captions = [file.caption for file in files]
        prompts += [caption or subject.instance_prompt for caption in captions]
        name = _identifier(subject)
        if captions and None not in captions and name and not any(name & _words(caption) for caption in captions):
            words = ' or '.join(repr(word) for word in sorted(name))
            logging.warning(
                'no caption in %s holds %s, which names the subject in the instance prompt %r, so that name is not '
                'learned; write it into the captions',
                *(place, words, subject.instance_prompt),
            )
    # Captions replace the instance prompt, so the token of textual inversion may occur in no prompt at all.
    token = config.textual_inversion.token
    if token and config.base.steps and prompts and not any(token in prompt.lower() for prompt in prompts):
        raise ConfigError(
            f'config.textual_inversion.token is {token!r} but the images have captions that do not hold it, so '
            f'nothing would teach it; write it into the captions, or take them away'
        )


def _identifier(subject: SubjectConfig) -> set[str]:
    """Returns the words that tell the subject from its class, in lower case."""
    return _words(subject.instance_prompt) - _words(subject.class_prompt) - _FRAMING


def _words(prompt: str) -> set[str]:
    return set(re.split(r'[\s.,;:!?"()]+', prompt.lower())) - {''}


def describe_folders(config: DreamBoothConfig) -> str:
    """Describes the contents of the subjects' folders and datasets, one line per image.

    Raises:
      ImageError, ConfigError: as `read`.
    """
    lines = []
    for number, subject in enumerate(config.subjects()):
        found = listed(config, number)
        if found is None:
            masked = ', with masks' if subject.subject_masks else ''
            lines.append(f'  built-in subject {subject.subject}{masked}, {subject.instance_prompt!r}')
            if subject.subject_captions:
                lines += [f'    caption {prompt!r}' for prompt in _painted_prompts(subject)]
            continue
        place, files, skipped = found
        unless = ' unless captioned' if subject.tfds is None else ''
        lines.append(f'  {place}: {len(files)} files, {subject.instance_prompt!r}{unless}')
        for file in files:
            width, height = image_size(file.path)
            caption = f', caption {file.caption!r}' if file.caption else ''
            mask = f', mask {file.mask.name}' if file.mask else ''
            lines.append(f'    {file.path.name}: {width} x {height}{caption}{mask}')
        lines += [f'    skipped: {name} is {reason}' for name, reason in skipped.items()]
    return '\n'.join(lines)


def describe(groups: Sequence[Examples]) -> str:
    """Returns one line about the images that were read."""
    shapes = [group.images.shape for group in groups]
    sizes = ', '.join(f'{count} of {width} x {height}' for count, height, width, _ in shapes)
    masks = any(group.masks is not None for group in groups)
    return f'images: {sizes} pixels{"; masks weigh the loss of those that have one" if masks else ""}'
