"""What a run learns from, identified by its content.

The inputs are the initial models, the subjects' photos and the user's own class images.

    inputs.json   {"models": {stage: {"weights": sha256, "scheduler": ..., "tokenizer": ...}},
                   "photos": {setting: [{"name", "photo", "caption", "mask"}, ...]}}

Photos are listed in the order in which the run uses them, because that order decides what the run learns. Built-in
images are not listed, because their setting describes them completely. Class images that the model generates are not
listed either; they have a manifest of their own (generation/class_manifest.py).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.config import ConfigError
from dreambooth_jax.data.fingerprints import Fingerprint, fingerprint, match
from dreambooth_jax.data.subjects import ImageFile
from dreambooth_jax.weights.identity import identity
from dreambooth_jax.weights.pipeline import Pipeline

FILE = 'inputs.json'
CLASS_PHOTOS = 'prior.dir'  # the setting that names a folder of the user's own class images
INIT_FROM = 'init_from'  # the setting that names the model that a run starts from, if it is another one
MODEL_SETTINGS = {'base': 'model', 'super_resolution': 'super_resolution_model', INIT_FROM: INIT_FROM}
_TRANSFORMER = 'model_transformer_file'  # the setting that names a file of a part of the base stage's weights
_PARTS = {'weights': 'weights', 'scheduler': 'noise schedule or prediction type', 'tokenizer': 'tokenizer'}
_SHOWN = 5  # how many photos an error message names
_NEW_RUN = 'or start another run with --workdir'


class Inputs(NamedTuple):
    """What a run learns from.

    Attributes:
      models: stage -> the hashes that weights.identity computes, for the stages that train; with the setting init_from,
        its name -> the hash of those weights.
      photos: setting -> the photos of the folder that it names, in the order in which the run uses them.
    """

    models: Mapping[str, Mapping[str, str]]
    photos: Mapping[str, Sequence[Fingerprint]]

    @property
    def order(self) -> dict[str, list[str]]:
        """Setting -> the names that the files have now, in the order in which the run uses them."""
        return {setting: [photo.name for photo in photos] for setting, photos in self.photos.items()}


def find(models: Mapping[str, Pipeline], files: Mapping[str, Sequence[ImageFile]]) -> Inputs:
    """Reads and hashes all inputs. Large models take seconds.

    Args:
      models: stage -> its initial pipeline.
      files: setting -> the image files of the folder that it names.

    Raises:
      ImageError: if a file cannot be read.
    """
    return Inputs(
        {stage: identity(pipeline) for stage, pipeline in models.items()},
        {setting: [fingerprint(file) for file in listed] for setting, listed in files.items()},
    )


def read(workdir: Path) -> Inputs | None:
    """Returns the inputs that a run began with, or None if its folder does not say, as in runs of older versions.

    Raises:
      ConfigError: if inputs.json is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text('utf-8'))
        photos = {setting: [Fingerprint(**one) for one in listed] for setting, listed in found['photos'].items()}
        return Inputs({stage: dict(hashes) for stage, hashes in found['models'].items()}, photos)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f'{path} is damaged; restore it, or start another run with --workdir') from None


def to_json(inputs: Inputs) -> str:
    """The contents of inputs.json."""
    photos = {setting: [one._asdict() for one in listed] for setting, listed in inputs.photos.items()}
    return json.dumps({'models': inputs.models, 'photos': photos}, indent=1) + '\n'


def check(begun: Inputs, found: Inputs, settings: Mapping[str, Any], workdir: Path, stages: Sequence[str]) -> Inputs:
    """Compares the inputs that are present now with those that the run began with.

    Args:
      begun: the inputs that the run began with.
      found: the inputs that are present now.
      settings: dotted name -> its value now.
      workdir: the folder of the run, for messages.
      stages: the stages that have already trained; only their models are compared.

    Returns:
      `found` with its photos in the order in which the run began, and with what `begun` says about other stages.

    Raises:
      ConfigError: it names what differs.
    """
    for stage in (*stages, INIT_FROM):
        if stage in begun.models and stage in found.models:
            _check_model(begun.models[stage], found.models[stage], MODEL_SETTINGS[stage], settings, workdir)
    if (CLASS_PHOTOS in begun.photos) != (CLASS_PHOTOS in found.photos):
        own = CLASS_PHOTOS in found.photos
        raise ConfigError(
            f'config.{CLASS_PHOTOS} is {settings.get(CLASS_PHOTOS)!r}, {"a" if own else "no"} folder of photos of your '
            f'own, but {workdir} was begun with class images that '
            f'{"the model generated" if own else "are such photos"}; set it back, {_NEW_RUN}'
        )
    photos = dict(found.photos)
    for setting in sorted(begun.photos.keys() & found.photos.keys()):
        photos[setting], differences = match(begun.photos[setting], found.photos[setting])
        if differences:
            raise ConfigError(_changed_photos(setting, differences, settings, workdir))
    return Inputs({**begun.models, **found.models}, photos)


def _check_model(
    before: Mapping[str, str], now: Mapping[str, str], setting: str, settings: Mapping[str, Any], workdir: Path
) -> None:
    parts = [text for part, text in _PARTS.items() if before.get(part) != now.get(part)]
    if parts:
        own = settings.get(_TRANSFORMER) if setting == MODEL_SETTINGS['base'] else None
        with_own = f' with config.{_TRANSFORMER} {own!r}' if own else ''
        raise ConfigError(
            f'config.{setting} is {settings.get(setting)!r}{with_own}, which differs in {" and ".join(parts)} from the '
            f'model that {workdir} was begun with; put that model back, {_NEW_RUN}'
        )


def _changed_photos(setting: str, differences: list[str], settings: Mapping[str, Any], workdir: Path) -> str:
    more = len(differences) - _SHOWN
    told = ', '.join(differences[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
    prior = settings.get(CLASS_PHOTOS) or workdir / 'prior'
    shared = f' (with --config.{CLASS_PHOTOS}={prior} it has the same class images)' if Path(prior).is_dir() else ''
    return (
        f'config.{setting} is {settings.get(setting)!r}, which does not hold what {workdir} was begun with: {told}; '
        f'put that back, {_NEW_RUN}{shared if setting != CLASS_PHOTOS else ""}'
    )
