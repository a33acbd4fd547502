"""The manifest of a folder of class images: it records their origin, so that different origins are never mixed.

    <folder>/manifest.json    what all images have in common: hashes of the model and of its noise schedule, sampler,
                              steps, guidance, seed, size; and every finished image with its prompt, number and hash
                              or "photos": the folder of the user's own class images, with their prompts and hashes

Manifests of older versions lack some of these values. A missing value counts as equal. The exception is dpmsolver++,
for which older versions used other timesteps of the schedule.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION
from dreambooth_jax.system import disk

MANIFEST = 'manifest.json'
_FORMERLY = 'pictures'  # the key of 'images' in manifests of older versions
# Values that all images of a folder have in common. Manifests from before the last three were added have images of one
# size alone.
_SHARED = ('sampler', 'steps', 'guidance_scale', 'seed', 'size', 'clip_skip')
_IMAGES = ('.png', '.jpg', '.jpeg', '.webp')
WAY_OUT = 'delete that folder or set prior.dir'
_HASH, _SECOND_HASH = 'sha256', 'super_resolution_sha256'


class PriorError(ValueError):
    """Class images cannot be used. The message is one sentence: the folder, what it holds and what to do."""


class ClassImage(NamedTuple):
    """One class image: its file, its prompt, and the file of the same image after the second stage, or None."""

    path: Path
    prompt: str
    super_resolution: Path | None


def open_manifest(folder: Path, wanted: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns the folder's manifest, or a new one if the folder holds no images.

    Args:
      wanted: the values that the images must have in common.
      count: prior.num_images, for errors.

    Raises:
      PriorError: if the folder's images have other values or no manifest, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        strangers = [file for file in folder.glob('*') if file.suffix.lower() in _IMAGES]
        if strangers:
            raise PriorError(
                f'{folder} holds {len(strangers)} images without a {MANIFEST} that says what generated them; delete '
                'that folder, or put photos of your own into a folder of their own and set prior.dir to it.'
            )
        return {**wanted, 'images': {}}
    try:
        found = json.loads(path.read_text('utf-8'))
        found['images'] = found.pop(_FORMERLY) if _FORMERLY in found else found['images']
        images = {name: entry for name, entry in found['images'].items() if (folder / name).is_file()}
        differences = [] if 'photos' in found and not images else _differences(found, wanted)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f'{path} is no readable manifest ({type(error).__name__}: {error}); {WAY_OUT}.') from None
    if not images:
        return {**wanted, 'images': {}}
    if differences:
        raise PriorError(
            f'prior.num_images is {count} but {folder} holds {len(images)} made {" and ".join(differences)}; {WAY_OUT}.'
        )
    return {**found, SUPER_RESOLUTION: wanted[SUPER_RESOLUTION] or found[SUPER_RESOLUTION]}


def is_there(manifest: Mapping[str, Any], image: ClassImage) -> bool:
    """Whether an image is in the manifest and its files exist.

    Raises:
      PriorError: if a file was changed since it was generated.
    """
    entry = manifest['images'].get(image.path.name)
    if entry is None or not image.path.is_file():
        return False
    _check_unchanged(image.path, entry.get(_HASH))
    if image.super_resolution is None:
        return True
    if not entry[SUPER_RESOLUTION] or not image.super_resolution.is_file():
        return False
    _check_unchanged(image.super_resolution, entry.get(_SECOND_HASH))
    return True


def add(manifest: Mapping[str, Any], image: ClassImage, *, seed: int, number: int) -> None:
    """Adds an image, whose files are written already, to the manifest."""
    before = manifest['images'].get(image.path.name, {SUPER_RESOLUTION: False})
    entry = {
        'prompt': image.prompt,
        'seed': seed,
        'number': number,
        _HASH: file_hash(image.path),
        SUPER_RESOLUTION: image.super_resolution is not None or before[SUPER_RESOLUTION],
    }
    if image.super_resolution is not None:
        entry[_SECOND_HASH] = file_hash(image.super_resolution)
    elif _SECOND_HASH in before:
        entry[_SECOND_HASH] = before[_SECOND_HASH]
    manifest['images'][image.path.name] = entry


def note_photos(folder: Path, photos: Sequence[ClassImage]) -> None:
    """Lists the user's photos in the run's own manifest, because nothing is written to the folder of the photos.

    Entries of images that were generated there before stay in the manifest.

    Args:
      folder: prior/ in the run's folder.
      photos: the photos in the order in which the run uses them.
    """
    path = folder / MANIFEST
    try:
        known = json.loads(path.read_text('utf-8')) if path.is_file() else {}
    except ValueError:
        known = {}  # it is about generated images, which this run does not use
    known = known if isinstance(known, dict) else {}
    listed = {photo.path.name: {'prompt': photo.prompt, _HASH: file_hash(photo.path)} for photo in photos}
    own = {'folder': str(photos[0].path.parent.absolute()), 'images': listed}
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, {'images': {}, **known, 'photos': own})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the folder's manifest in one step, so that it is never half written."""
    with disk.writing(folder / MANIFEST) as new:
        new.write_text(json.dumps(manifest, indent=1) + '\n', 'utf-8')


def _check_unchanged(path: Path, known: str | None) -> None:
    if known is not None and file_hash(path) != known:
        raise PriorError(
            f'{path} is not the class image that the model generated; put that back, or delete the file to have it '
            'generated again.'
        )


def _differences(found: dict[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    differences = []
    if found['model'] != wanted['model']:
        differences.append('by another model')
    if not set(wanted['prompts']) <= set(found['prompts']):
        differences.append(f'for {_listed(found["prompts"])} instead of {_listed(wanted["prompts"])}')
    for name in _SHARED:
        if found.setdefault(name, wanted[name]) != wanted[name]:
            differences.append(f'with {name} {found[name]} instead of {wanted[name]}')
    differences += _scheduler_differences(found, wanted, found['sampler'])
    before, now = found[SUPER_RESOLUTION], wanted[SUPER_RESOLUTION]
    if not before or not now:
        return differences
    if before['model'] != now['model']:
        differences.append('by another super-resolution model')
    else:
        differences += [
            f'with {name} {before.get(name)} instead of {now[name]}'
            for name in now
            if name not in ('model', 'scheduler') and before.get(name) != now[name]
        ]
    return differences + _scheduler_differences(before, now, found['sampler'], ' of the super-resolution model')


def _scheduler_differences(
    found: dict[str, Any], wanted: Mapping[str, Any], sampler: str, whose: str = ''
) -> list[str]:
    if 'scheduler' not in found and sampler == 'dpmsolver++':
        return [f'by an older version, whose {sampler}{whose} took other timesteps']
    if found.setdefault('scheduler', wanted['scheduler']) != wanted['scheduler']:
        return [f'with another noise schedule or prediction type{whose}']
    return []


def _listed(prompts: Sequence[str]) -> str:
    return ', '.join(map(repr, prompts))
