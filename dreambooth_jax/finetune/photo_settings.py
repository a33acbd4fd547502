"""The photos of a run, checked as its settings read them (data/photo_checks.py)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config import BUILT_IN, NO_MODEL, ConfigError, DreamBoothConfig
from dreambooth_jax.data import checked_photos, photo_checks
from dreambooth_jax.data.buckets import Size, bucket_sizes
from dreambooth_jax.data.checked_photos import CheckedSubject, Embed
from dreambooth_jax.data.images import open_photo
from dreambooth_jax.data.photo_checks import WARNING, Finding, Reading
from dreambooth_jax.finetune import examples, instance_images
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.training import run

_MOST_TOLD = 5  # warnings at the start of a run
_BUCKETS = 64  # pixels, of whose multiples the sides of latent models' aspect buckets are
MOST_PHOTOS = 5  # of a subject, for which recipes are made
# How often a photo is seen in the paper: "about 1000" steps of one photo, 3 to 5 photos (Ruiz et al. 2023).
_PAPER = 'the paper takes about 1000 steps of one image for 3 to 5 photos, 200 to 333 for each'


def reading_of(config: DreamBoothConfig, resolution: int | None = None) -> Reading:
    """Returns how a run with these settings reads its photos.

    Args:
      config: the settings.
      resolution: side of the crops in pixels, in place of what the settings say. None: the settings say it if they have
        a resolution, a model of the hub without a second stage, and no aspect buckets; otherwise the model is read, as
        for training.

    Raises:
      ConfigError: if aspect buckets do not fit the resolution.
      WeightsError: if the model cannot be read.
    """
    # Models of the hub take long to read, and have no second stage inside that could want larger photos.
    is_of_hub = config.model not in BUILT_IN and not Path(config.model).exists()
    is_alone = is_of_hub and config.super_resolution_model in (None, NO_MODEL)
    is_said = config.data.resolution is not None and is_alone and not config.data.aspect_buckets
    if resolution is None and not is_said:
        return _reading(config, Cascade.of(config))
    side = resolution or config.data.resolution
    if config.data.aspect_buckets and side % _BUCKETS:
        raise ConfigError(
            f'--resolution is {side} but config.data.aspect_buckets is True; give a multiple of {_BUCKETS}, or leave '
            f'--resolution out to read the model'
        )
    sizes = bucket_sizes(side, _BUCKETS) if config.data.aspect_buckets else ((side, side),)
    return _with(config, {BASE: sizes}, {})


def _reading(config: DreamBoothConfig, cascade: Cascade) -> Reading:
    second, others = cascade.super_resolution, {}
    if second is not None and not second.space.crops_in_step:
        others[SUPER_RESOLUTION] = config.super_resolution.crops, cascade.factor
    return _with(config, examples.sizes(config, cascade), others)


def _with(config: DreamBoothConfig, stages: Mapping[str, Sequence[Size]], others: Mapping[str, Any]) -> Reading:
    options = {'crops': config.data.crops, 'seed': config.seed, 'consent': config.data.consent}
    return Reading(stages, **options, others=others)


def check(config: DreamBoothConfig, reading: Reading, embed: Embed | None = None) -> list[CheckedSubject]:
    """Checks the photos of every subject of a run; built-in subjects have none.

    Raises:
      ImageError: if a folder is missing or cannot be read, or holds no image.
      ConfigError: if no subject has photos, or a dataset cannot be read.
    """
    found = []
    for number, subject in enumerate(config.subjects()):
        if subject.instance_dir is not None and subject.tfds is None:
            found.append(checked_photos.check_folder(subject.instance_dir, reading, embed))
        elif (listed := instance_images.listed(config, number)) is not None:
            found.append(checked_photos.check_files(listed.place, listed.files, reading, embed))
    if not found:
        raise ConfigError(
            'the subjects of --config are built in and have no photos; give --photos, or config.data.instance_dir'
        )
    return found


def proposed_steps(config: DreamBoothConfig, count: int) -> int:
    """Returns a number of steps of the base stage for so many photos of all subjects, from the steps of a recipe.

    Recipes are made for 3 to 5 photos of each subject, and fewer take as many steps (experiments/number_of_photos).
    More photos take proportionally more: each is then shown as often as five of a subject would be.

    Args:
      config: the settings of the run, with the steps of its recipe; the proposal itself would be raised once more.
    """
    steps, most = config.base.steps, MOST_PHOTOS * len(config.subjects())
    return steps if count <= most else math.ceil(steps * count / most / 10) * 10


def about_steps(config: DreamBoothConfig, count: int) -> str:
    """Returns a sentence with the steps that `proposed_steps` proposes, and how often they show each photo."""
    steps, size, most = config.base.steps, config.base.batch_size, MOST_PHOTOS * len(config.subjects())
    said = f'steps: {steps} of the base stage with {size} of the photos each, as set (config.base.steps, '
    said += f'config.base.batch_size), show each of {count} photos {_times(steps * size, count)}; {_PAPER}. '
    if count <= most:
        return f'{said}Proposed: these {steps}'
    more = proposed_steps(config, count)
    return (
        f'{said}Proposed: --config.base.steps={more}, which shows each {_times(more * size, count)}, as {steps} would '
        f'show each of {most}; a rule, which was not measured for more than 5'
    )


def _times(shown: int, count: int) -> str:
    times = shown / max(count, 1)
    return f'{times:.0f} times' if times >= 10 else f'{times:.1f} times'


def told(config: DreamBoothConfig, workdir: Path, cascade: Cascade) -> str | None:
    """Returns the warnings about the photos of a run that has not trained yet, as lines; None if there is none.

    Only what can be seen quickly is looked for, in crops of JPEGs that are decoded at a part of their size.
    """
    if run.trained_stages(workdir):
        return None
    sizes = max(examples.sizes(config, cascade).values(), key=lambda some: max(map(max, some)))
    found: list[tuple[str, Finding]] = []
    for number in range(len(config.subjects())):
        listed = instance_images.listed(config, number)
        if listed is None:
            continue
        names, images = [file.path.name for file in listed.files], []
        for file in listed.files:
            photo = open_photo(file.path, file.mask, enough=max(map(max, sizes)))
            crop = photo.cut(sizes, crop='center', rng=None, max_zoom=1.0)
            images.append(crop.image)
            found += [(listed.place, one) for one in photo_checks.of_sharpness(file.path.name, crop.image, crop.mask)]
        found += [(listed.place, one) for one in photo_checks.check_together(names, images)]
    warnings = [f'  {place}: {str(one).removeprefix("warning: ")}' for place, one in found if one.severity == WARNING]
    if not warnings:
        return None
    more = [f'  and {len(warnings) - _MOST_TOLD} more'] if len(warnings) > _MOST_TOLD else []
    head = 'the photos may be better (python -m dreambooth_jax.check_photos shows them):'
    return '\n'.join([head, *warnings[:_MOST_TOLD], *more])
