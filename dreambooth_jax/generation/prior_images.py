"""Class ("prior") pictures: what the frozen model draws for a class prompt, kept as PNGs with a manifest.

    <folder>/a_dog_00000.png ...                  of the base stage: lossless, one seed per picture
    <folder>/super_resolution/a_dog_00000.png     the same pictures after the second stage, where they are wanted
    <folder>/manifest.json                        model hash, sampler, steps, guidance, seed; and every finished picture

A picture depends on (weights, prompt, sampler, steps, guidance, seed, its number) alone, so pictures that are missing
are drawn later as they would have been drawn at first, in any batches. Pictures of another origin are never mixed in:
that is an error. Source: Ruiz et al. 2023, section 3.3: ancestral sampling from the frozen model.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.data.images import MAX_ZOOM, read_picture
from dreambooth_jax.data.table import Examples
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.system import disk, lock
from dreambooth_jax.weights.pipeline import COMPONENTS, Network, Pipeline

MANIFEST = 'manifest.json'
# What all pictures of a folder have in common; manifests older than the last two have only pictures of one size.
_SHARED = ('sampler', 'steps', 'guidance_scale', 'seed', 'size', 'clip_skip')
_PICTURES = ('.png', '.jpg', '.jpeg', '.webp')
_WAY_OUT = 'delete that folder or set prior.dir.'


class PriorError(ValueError):
    """Class pictures that cannot be used: one sentence with the folder, what it holds and what to do."""


class PriorImage(NamedTuple):
    """One class picture: its file, its prompt, and its file of the second stage or None."""

    path: Path
    prompt: str
    super_resolution: Path | None


def prior_images_of(config: DreamBoothConfig, cascade: Cascade, workdir: str | os.PathLike) -> list[PriorImage]:
    """The class pictures that a run trains on, drawn where they are missing; none while prior.weight is 0, or where
    prior.kind wants none.

    Args:
      config: its `prior`, `seed` and class prompts; the second stage draws too if super_resolution trains on them.
      cascade: the model before fine-tuning.
      workdir: the run's folder; prior.dir, or else prior/ in it, holds the pictures.
    Raises: PriorError, or OSError if the disk does not take them.
    """
    if config.prior.weight == 0 or config.prior.kind != 'pictures':
        return []
    second = config.super_resolution
    return ensure_prior_images(
        cascade,
        [concept.class_prompt for concept in config.concepts()],
        config.prior.dir or Path(workdir) / 'prior',
        count=config.prior.num_images,
        steps=config.prior.steps,
        guidance_scale=config.prior.guidance_scale,
        sampler=config.prior.sampler,
        seed=config.seed,
        batch_size=config.prior.batch_size,
        super_resolution=second.steps > 0 and second.with_prior,
        **second.drawing(),
    )


def ensure_prior_images(
    cascade: Cascade,
    class_prompts: Sequence[str],
    folder: str | os.PathLike,
    *,
    count: int,
    steps: int,
    guidance_scale: float,
    sampler: str,
    seed: int,
    batch_size: int,
    super_resolution: bool = False,
    noise_level: int = 0,
    super_resolution_steps: int | None = None,
    super_resolution_guidance_scale: float | None = None,
    progress: bool = True,
) -> list[PriorImage]:
    """Draws the class pictures that `folder` lacks.

    The manifest is written after every batch, so an interrupted run goes on where it was. On several hosts the first
    one draws, and the folder must be on a disk that all of them see.

    Args:
      class_prompts: repetitions count once.
      count: pictures per prompt; if there are more, the first ones are used.
      seed: picture i of every prompt has the key picture_keys(seed, i).
      super_resolution: draw the second stage's pictures too, if the cascade has one.
      others: of Cascade.stream.
    Returns: count pictures of every prompt, prompt by prompt, by number.
    Raises: PriorError if the folder holds pictures of another model, prompt, sampler, steps, guidance or seed, or
      pictures without a manifest.
    """
    folder = Path(folder)
    prompts = list(dict.fromkeys(class_prompts))
    super_resolution = super_resolution and cascade.super_resolution is not None
    requests = [(prompt, number) for prompt in range(len(prompts)) for number in range(count)]
    files = [_file(folder, prompts[prompt], number, super_resolution) for prompt, number in requests]
    if jax.process_index() == 0:
        with _alone(folder, files):
            wanted = {'model': weights_hash(cascade.base), 'prompts': prompts, 'sampler': sampler, 'steps': steps,
                      'guidance_scale': float(guidance_scale), 'seed': seed, 'size': cascade.base_size,
                      'clip_skip': cascade.clip_skip, SUPER_RESOLUTION: None}  # fmt: skip
            second = {'noise_level': noise_level, 'super_resolution_steps': super_resolution_steps,
                      'super_resolution_guidance_scale': super_resolution_guidance_scale}  # fmt: skip
            if super_resolution:
                wanted[SUPER_RESOLUTION] = {'model': weights_hash(cascade.super_resolution), **second}
            manifest = _open_manifest(folder, wanted, count)
            folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a bad path costs nothing
            there = [_is_there(manifest, file) for file in files]
            missing = [index for index in range(len(files)) if not there[index]]
            options = dict(steps=steps, guidance_scale=guidance_scale, sampler=sampler, seed=seed)
            options |= dict(batch_size=batch_size, super_resolution=super_resolution, **second)
            with tqdm(
                total=len(files), initial=len(files) - len(missing), unit='picture', desc='class pictures',
                disable=not (progress and missing), dynamic_ncols=True,
            ) as bar:  # fmt: skip
                for rows, pictures in cascade.stream(prompts, [requests[index] for index in missing], **options):
                    for image, index in enumerate(missing[row] for row in rows):
                        file = files[index]
                        _write_picture(file.path, pictures.base[image])
                        if super_resolution:
                            _write_picture(file.super_resolution, pictures.super_resolution[image])
                        before = manifest['pictures'].get(file.path.name, {SUPER_RESOLUTION: False})
                        manifest['pictures'][file.path.name] = {
                            'prompt': file.prompt, 'seed': seed, 'number': requests[index][1],
                            SUPER_RESOLUTION: super_resolution or before[SUPER_RESOLUTION]}  # fmt: skip
                    _write_manifest(folder, manifest)
                    bar.update(len(rows))
    _wait_for_first_host(folder, files)
    return files


def read(
    images: Sequence[PriorImage], sizes: Mapping[str, int], *, crop_seed: int | None = None, max_zoom: float = MAX_ZOOM
) -> dict[str, Examples]:
    """Class pictures in memory: stage -> uint8[N, size, size, 3] and N prompts, of the stages they were drawn for.

    Args:
      images: of `ensure_prior_images`.
      sizes: stage ('base', 'super_resolution') -> side in pixels; larger pictures are scaled down.
      crop_seed: take one random crop of each instead, up to `max_zoom` (data/images.py).
    Raises: PictureError if a file is damaged or smaller than that.
    """
    paths = {BASE: [image.path for image in images], SUPER_RESOLUTION: [image.super_resolution for image in images]}
    prompts = [image.prompt for image in images]

    def one(path, size, place):
        if crop_seed is None:
            return read_picture(path, size)
        return read_picture(
            path, size, crop='random', rng=np.random.default_rng([crop_seed, place]), max_zoom=max_zoom)  # fmt: skip

    return {
        stage: Examples(np.stack([one(path, size, place) for place, path in enumerate(paths[stage])]), prompts)
        for stage, size in sizes.items()
        if images and None not in paths[stage]
    }


def weights_hash(pipeline: Pipeline) -> str:
    """sha256 of a stage's networks: names, shapes and f32 values, in the names' order."""
    found = hashlib.sha256()
    for component in COMPONENTS:
        network: Network | None = getattr(pipeline, component)
        for name in sorted(network.params) if network else ():
            value = np.ascontiguousarray(network.params[name], np.float32)
            found.update(f'{component}.{name} {value.shape}'.encode())
            found.update(value.data)
    return found.hexdigest()


def _file(folder: Path, prompt: str, number: int, super_resolution: bool) -> PriorImage:
    words = re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:40]
    if words.replace('_', ' ') != prompt:  # two prompts might get the same words
        words = f'{words}_{hashlib.sha256(prompt.encode()).hexdigest()[:8]}'
    name = f'{words}_{number:05d}.png'
    return PriorImage(folder / name, prompt, folder / SUPER_RESOLUTION / name if super_resolution else None)


def _alone(folder: Path, files: Sequence[PriorImage]) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs that share the folder from drawing the same pictures; these then use ours."""
    paths = [path for file in files for path in (file.path, file.super_resolution) if path is not None]
    if all(path.is_file() for path in paths):
        return contextlib.nullcontext()  # the folder may be one that cannot be written
    return lock.locked(folder, '', wait=True)


def _is_there(manifest: dict[str, Any], file: PriorImage) -> bool:
    entry = manifest['pictures'].get(file.path.name)
    if entry is None or not file.path.is_file():
        return False
    return file.super_resolution is None or (entry[SUPER_RESOLUTION] and file.super_resolution.is_file())


def _open_manifest(folder: Path, wanted: dict[str, Any], count: int) -> dict[str, Any]:
    """The folder's manifest, or a new one; never one whose pictures are not those that are wanted."""
    path = folder / MANIFEST
    about = f'prior.num_images is {count} but {folder} holds'
    if not path.is_file():
        strangers = [file for file in folder.glob('*') if file.suffix.lower() in _PICTURES]
        if strangers:
            raise PriorError(
                f'{about} {len(strangers)} pictures without a {MANIFEST} that says what drew them; {_WAY_OUT}'
            )
        return {**wanted, 'pictures': {}}
    try:
        found = json.loads(path.read_text('utf-8'))
        pictures = {name: entry for name, entry in found['pictures'].items() if (folder / name).is_file()}
        differences = _differences(found, wanted)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f'{path} is no readable manifest ({type(error).__name__}: {error}); {_WAY_OUT}') from None
    if not pictures:
        return {**wanted, 'pictures': {}}
    if differences:
        raise PriorError(f'{about} {len(pictures)} made {" and ".join(differences)}; {_WAY_OUT}')
    return {**found, SUPER_RESOLUTION: wanted[SUPER_RESOLUTION] or found[SUPER_RESOLUTION]}


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    differences = []
    if found['model'] != wanted['model']:
        differences.append('by another model')
    if not set(wanted['prompts']) <= set(found['prompts']):
        differences.append(f'for {_listed(found["prompts"])} instead of {_listed(wanted["prompts"])}')
    for name in _SHARED:
        if found.setdefault(name, wanted[name]) != wanted[name]:
            differences.append(f'with {name} {found[name]} instead of {wanted[name]}')
    before, now = found[SUPER_RESOLUTION], wanted[SUPER_RESOLUTION]
    if before and now and before['model'] != now['model']:
        differences.append('by another super-resolution model')
    elif before and now and before != now:
        differences.append(f'with noise_level {before["noise_level"]} instead of {now["noise_level"]}')
    return differences


def _listed(prompts: Sequence[str]) -> str:
    return ', '.join(map(repr, prompts))


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.writing(path) as new:
        Image.fromarray(pixels).save(new, format='PNG')


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with disk.writing(folder / MANIFEST) as new:
        new.write_text(json.dumps(manifest, indent=1) + '\n', 'utf-8')


def _wait_for_first_host(folder: Path, files: Sequence[PriorImage]) -> None:
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices('class pictures')
    unseen = sum(not file.path.is_file() for file in files)
    if unseen:
        raise PriorError(
            f'{unseen} of {len(files)} class pictures in {folder} are not seen by host {jax.process_index()}; set '
            f'prior.dir to a folder on a disk that all hosts share.'
        )
