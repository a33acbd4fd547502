"""What a folder of drawn class pictures says of itself, so that pictures of another origin are never mixed in.

    <folder>/manifest.json    what all have in common: hashes of the model and of its noise schedule, sampler, steps,
                              guidance, seed, size; and every finished picture with its prompt, number and hash
                              or "photos": the folder of the user's own class pictures, with their prompts and hashes

A manifest that older versions wrote lacks some of that, and what it lacks is taken as fitting; but for dpmsolver++,
which older versions drew at other times of the schedule.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION
from dreambooth_jax.system import disk

MANIFEST = 'manifest.json'
# What all pictures of a folder have in common; manifests older than the last three have only pictures of one size.
_SHARED = ('sampler', 'steps', 'guidance_scale', 'seed', 'size', 'clip_skip')
_PICTURES = ('.png', '.jpg', '.jpeg', '.webp')
WAY_OUT = 'delete that folder or set prior.dir'
_HASH, _SECOND_HASH = 'sha256', 'super_resolution_sha256'


class PriorError(ValueError):
    """Class pictures that cannot be used: one sentence with the folder, what it holds and what to do."""


class PriorImage(NamedTuple):
    """One class picture: its file, its prompt, and its file of the second stage or None."""

    path: Path
    prompt: str
    super_resolution: Path | None


def open_manifest(folder: Path, wanted: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The folder's manifest, or a new one; never one whose pictures are not those that are wanted.

    Args:
      wanted: what the pictures are to have in common. count: prior.num_images, for errors.
    Raises: PriorError.
    """
    path = folder / MANIFEST
    if not path.is_file():
        strangers = [file for file in folder.glob('*') if file.suffix.lower() in _PICTURES]
        if strangers:
            raise PriorError(
                f'{folder} holds {len(strangers)} pictures without a {MANIFEST} that says what drew them; delete that '
                f'folder, or put photos of your own into a folder of their own and set prior.dir to it.'
            )
        return {**wanted, 'pictures': {}}
    try:
        found = json.loads(path.read_text('utf-8'))
        pictures = {name: entry for name, entry in found['pictures'].items() if (folder / name).is_file()}
        differences = [] if 'photos' in found and not pictures else _differences(found, wanted)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f'{path} is no readable manifest ({type(error).__name__}: {error}); {WAY_OUT}.') from None
    if not pictures:
        return {**wanted, 'pictures': {}}
    if differences:
        raise PriorError(
            f'prior.num_images is {count} but {folder} holds {len(pictures)} made {" and ".join(differences)}; '
            f'{WAY_OUT}.'
        )
    return {**found, SUPER_RESOLUTION: wanted[SUPER_RESOLUTION] or found[SUPER_RESOLUTION]}


def is_there(manifest: Mapping[str, Any], image: PriorImage) -> bool:
    """Whether a picture was drawn, and is still what was drawn.

    Raises: PriorError if its file was changed since.
    """
    entry = manifest['pictures'].get(image.path.name)
    if entry is None or not image.path.is_file():
        return False
    _check_unchanged(image.path, entry.get(_HASH))
    if image.super_resolution is None:
        return True
    if not entry[SUPER_RESOLUTION] or not image.super_resolution.is_file():
        return False
    _check_unchanged(image.super_resolution, entry.get(_SECOND_HASH))
    return True


def add(manifest: Mapping[str, Any], image: PriorImage, *, seed: int, number: int) -> None:
    """Notes a picture whose files are written."""
    before = manifest['pictures'].get(image.path.name, {SUPER_RESOLUTION: False})
    entry = {'prompt': image.prompt, 'seed': seed, 'number': number, _HASH: file_hash(image.path),
             SUPER_RESOLUTION: image.super_resolution is not None or before[SUPER_RESOLUTION]}  # fmt: skip
    if image.super_resolution is not None:
        entry[_SECOND_HASH] = file_hash(image.super_resolution)
    elif _SECOND_HASH in before:
        entry[_SECOND_HASH] = before[_SECOND_HASH]
    manifest['pictures'][image.path.name] = entry


def note_photos(folder: Path, photos: Sequence[PriorImage]) -> None:
    """Says in a run's own manifest that its class pictures are the user's photos, whose folder is never written.

    What was drawn there before stays noted beside them.

    Args:
      folder: prior/ in the run's folder. photos: in the order in which the run takes them.
    """
    path = folder / MANIFEST
    try:
        known = json.loads(path.read_text('utf-8')) if path.is_file() else {}
    except ValueError:
        known = {}  # of pictures that this run does not use
    known = known if isinstance(known, dict) else {}
    listed = {photo.path.name: {'prompt': photo.prompt, _HASH: file_hash(photo.path)} for photo in photos}
    own = {'folder': str(photos[0].path.parent.absolute()), 'pictures': listed}
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, {'pictures': {}, **known, 'photos': own})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the folder's manifest in one move."""
    with disk.writing(folder / MANIFEST) as new:
        new.write_text(json.dumps(manifest, indent=1) + '\n', 'utf-8')


def _check_unchanged(path: Path, known: str | None) -> None:
    if known is not None and file_hash(path) != known:
        raise PriorError(
            f'{path} is not the class picture that the model drew; put that back, or delete the file to have it drawn '
            f'again.'
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
        differences += [f'with {name} {before.get(name)} instead of {now[name]}' for name in now
                        if name not in ('model', 'scheduler') and before.get(name) != now[name]]  # fmt: skip
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
