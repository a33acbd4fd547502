"""Class ("prior") images: what the frozen model generates for a class prompt, kept as PNGs with a manifest.

    <folder>/a_dog_00000.png ...                  of the base stage: lossless, one seed per image
    <folder>/super_resolution/a_dog_00000.png     the same images after the second stage, where they are wanted
    <folder>/manifest.json                        what generated them, and every finished image (class_manifest.py)

An image depends on (weights, schedule, prompt, sampler, steps, guidance, seed, its number) alone, so images that are
missing are generated later as they would have been generated at first, in any batches. Images of another origin are
never mixed in: that is an error. Source: Ruiz et al. 2023, section 3.3: ancestral sampling from the frozen model.

Or they are photos of one's own: a folder that prior.dir names and that has images but no manifest. All of them are
used as they are, nothing is generated, and nothing is written there; the manifest in the run's own prior/ says so.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.data.images import MAX_ZOOM, read_image
from dreambooth_jax.data.subjects import ImageFile, list_images
from dreambooth_jax.data.table import Examples
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.class_manifest import (
    MANIFEST,
    ClassImage,
    PriorError,
    add,
    is_there,
    note_photos,
    open_manifest,
    write_manifest,
)
from dreambooth_jax.system import disk, lock
from dreambooth_jax.training import memory
from dreambooth_jax.weights.identity import scheduler_hash

__all__ = ['PriorError', 'ClassImage', 'ensure_class_images', 'own_photos', 'class_images_of', 'read', 'stages_of']


def stages_of(config: DreamBoothConfig, cascade: Cascade) -> list[str]:
    """The stages of the cascade that train on class images."""
    return [stage for stage in config.class_image_stages() if getattr(cascade, stage) is not None]


def own_photos(config: DreamBoothConfig) -> list[ImageFile]:
    """The user's own class images, by name: all that prior.dir holds unless a manifest says that a model generated it.

    Returns: none if class images are generated, or not wanted.
    Raises: ImageError as list_images; PriorError if they are to show several classes, or a mask is among them.
    """
    return _list_own(config)[0]


def _list_own(config: DreamBoothConfig) -> tuple[list[ImageFile], dict[str, str]]:
    """The same, and name -> reason of what lies there and is no image."""
    prior = config.prior
    folder = Path(prior.dir or '')
    if prior.dir is None or prior.weight == 0 or not folder.is_dir() or (folder / MANIFEST).exists():
        return [], {}
    prompts = list(dict.fromkeys(subject.class_prompt for subject in config.subjects()))
    generated = re.compile(f'({"|".join(re.escape(_words(prompt)) for prompt in prompts)})_[0-9]{{5}}.png')
    files, skipped = list_images(folder)
    if not files or any(
        generated.fullmatch(file.path.name) for file in files
    ):  # generated ones, whose manifest is lost
        return [], {}
    masks = [file.mask for file in files if file.mask is not None]
    if masks:
        raise PriorError(
            f'config.prior.dir is {prior.dir!r}, which holds the mask {masks[0].name}, but class images count in '
            f'full; take masks out of that folder.'
        )
    if len(prompts) > 1:
        raise PriorError(
            f'config.prior.dir is {prior.dir!r}, a folder of photos of your own, but the subjects have {len(prompts)} '
            f'class prompts ({", ".join(map(repr, prompts))}) and it cannot say which class a photo shows; leave '
            f'prior.dir out to have class images generated, or train the subjects in runs of their own.'
        )
    return files, skipped


def class_images_of(
    config: DreamBoothConfig, cascade: Cascade, workdir: str | os.PathLike, order: Sequence[str] | None = None
) -> list[ClassImage]:
    """The class images that a run trains on, generated where they are missing; none where no stage trains on them.

    Args:
      config: its `prior`, `seed` and class prompts; the second stage generates too if super_resolution trains on them.
      cascade: the model before fine-tuning.
      workdir: the run's folder; prior.dir, or else prior/ in it, holds the images.
      order: of photos of one's own: the files' names; None: sorted.
    Raises: PriorError, or OSError if the disk does not take them; TrainingError if the device's memory is full.
    """
    stages, prior = stages_of(config, cascade), config.prior
    if not stages:
        return []
    own = _own_images(config, SUPER_RESOLUTION in stages, order)
    if len(own) != (count := _of_first_host(len(own))):
        raise PriorError(
            f'config.prior.dir is {prior.dir!r}, where the first host sees {count} photos and host '
            f'{jax.process_index()} {len(own)}; set it to a folder on a disk that all hosts share.'
        )
    if own:
        if jax.process_index() == 0:
            note_photos(Path(workdir) / 'prior', own)
        return own
    smaller = [f'--config.prior.batch_size={prior.batch_size // 2}'] if prior.batch_size > 1 else []
    with memory.explained('class images are generated', smaller):
        return ensure_class_images(
            cascade,
            [subject.class_prompt for subject in config.subjects()],
            prior.dir or Path(workdir) / 'prior',
            count=prior.num_images,
            steps=prior.steps,
            guidance_scale=prior.guidance_scale,
            sampler=prior.sampler,
            seed=config.seed,
            batch_size=prior.batch_size,
            super_resolution=SUPER_RESOLUTION in stages,
            **config.super_resolution.sampling_options(),
        )


def _own_images(config: DreamBoothConfig, second: bool, order: Sequence[str] | None) -> list[ClassImage]:
    files, skipped = _list_own(config)
    for name, reason in skipped.items():
        logging.warning('%s in %s is skipped: it is %s', name, config.prior.dir, reason)
    if order is not None:
        index = {name: number for number, name in enumerate(order)}
        files.sort(key=lambda file: index[file.path.name])
    class_prompt = config.subjects()[0].class_prompt
    return [ClassImage(file.path, file.caption or class_prompt, file.path if second else None) for file in files]


def ensure_class_images(
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
) -> list[ClassImage]:
    """Generates the class images that `folder` lacks.

    The manifest is written after every batch, so an interrupted run goes on where it was. On several hosts the first
    one generates, and the folder must be on a disk that all of them see.

    Args:
      class_prompts: repetitions count once.
      count: images per prompt; if there are more, the first ones are used.
      seed: image i of every prompt has the key image_keys(seed, i).
      super_resolution: generate the second stage's images too, if the cascade has one.
      others: of Cascade.stream.
    Returns: count images of every prompt, prompt by prompt, by number.
    Raises: PriorError if the folder holds images of another model, prompt, sampler, steps, guidance or seed, or
      images without a manifest.
    """
    folder = Path(folder)
    prompts = list(dict.fromkeys(class_prompts))
    super_resolution = super_resolution and cascade.super_resolution is not None
    requests = [(prompt, number) for prompt in range(len(prompts)) for number in range(count)]
    files = [_file(folder, prompts[prompt], number, super_resolution) for prompt, number in requests]
    second = {
        'noise_level': noise_level,
        'super_resolution_steps': super_resolution_steps,
        'super_resolution_guidance_scale': super_resolution_guidance_scale,
    }

    def generate():
        wanted = {
            'model': cascade.base.weights_hash,
            'scheduler': scheduler_hash(cascade.base),
            'prompts': prompts,
            'sampler': sampler,
            'steps': steps,
            'guidance_scale': float(guidance_scale),
            'seed': seed,
            'size': cascade.base_size,
            'clip_skip': cascade.clip_skip,
            SUPER_RESOLUTION: None,
        }
        if super_resolution:
            model = cascade.super_resolution
            wanted[SUPER_RESOLUTION] = {'model': model.weights_hash, 'scheduler': scheduler_hash(model), **second}
        manifest = open_manifest(folder, wanted, count)
        folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a bad path costs nothing
        missing = [index for index, file in enumerate(files) if not is_there(manifest, file)]
        if not manifest['images']:
            write_manifest(folder, manifest)  # images without one would be taken for photos of the user's own
        options = dict(
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            seed=seed,
            batch_size=batch_size,
            super_resolution=super_resolution,
            **second,
        )
        with tqdm(
            total=len(files),
            initial=len(files) - len(missing),
            unit='image',
            desc='class images',
            disable=not (progress and missing),
            dynamic_ncols=True,
        ) as bar:
            for rows, images in cascade.stream(prompts, [requests[index] for index in missing], **options):
                for image, index in enumerate(missing[row] for row in rows):
                    file = files[index]
                    _write_image(file.path, images.base[image])
                    if super_resolution:
                        _write_image(file.super_resolution, images.super_resolution[image])
                    add(manifest, file, seed=seed, number=requests[index][1])
                write_manifest(folder, manifest)
                bar.update(len(rows))

    error = None
    if jax.process_index() == 0:
        try:
            with _alone(folder, files):
                generate()
        except BaseException as caught:  # Ctrl-C too: the other hosts must hear of it
            error = caught
    _end_together(folder, files, error)
    return files


def read(
    images: Sequence[ClassImage], sizes: Mapping[str, int], *, crop_seed: int | None = None, max_zoom: float = MAX_ZOOM
) -> dict[str, Examples]:
    """Class images in memory: stage -> uint8[N, size, size, 3] and N prompts, of the stages they were generated for.

    Args:
      images: of `ensure_class_images`.
      sizes: stage ('base', 'super_resolution') -> side in pixels; larger images are scaled down.
      crop_seed: take one random crop of each instead, up to `max_zoom` (data/images.py).
    Raises: ImageError if a file is damaged or smaller than that.
    """
    paths = {BASE: [image.path for image in images], SUPER_RESOLUTION: [image.super_resolution for image in images]}
    prompts = [image.prompt for image in images]

    def one(path, size, index):
        if crop_seed is None:
            return read_image(path, size)
        return read_image(path, size, crop='random', rng=np.random.default_rng([crop_seed, index]), max_zoom=max_zoom)

    return {
        stage: Examples(np.stack([one(path, size, index) for index, path in enumerate(paths[stage])]), prompts)
        for stage, size in sizes.items()
        if images and None not in paths[stage]
    }


def _words(prompt: str) -> str:
    """What the files of a prompt's images are called, before their number."""
    words = re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:40]
    if words.replace('_', ' ') != prompt:  # two prompts might get the same words
        words = f'{words}_{hashlib.sha256(prompt.encode()).hexdigest()[:8]}'
    return words


def _file(folder: Path, prompt: str, number: int, super_resolution: bool) -> ClassImage:
    name = f'{_words(prompt)}_{number:05d}.png'
    return ClassImage(folder / name, prompt, folder / SUPER_RESOLUTION / name if super_resolution else None)


def _alone(folder: Path, files: Sequence[ClassImage]) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs that share the folder from generating the same images; these then use ours."""
    paths = [path for file in files for path in (file.path, file.super_resolution) if path is not None]
    if all(path.is_file() for path in paths):
        return contextlib.nullcontext()  # the folder may be one that cannot be written
    return lock.locked(folder, '', wait=True)


def _write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.writing(path) as new:
        Image.fromarray(pixels).save(new, format='PNG')


def _of_first_host(number: int) -> int:
    """The first host's number, on all hosts, which wait for each other here."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _end_together(folder: Path, files: Sequence[ClassImage], error: BaseException | None) -> None:
    """Waits for the first host and, if it could not generate, ends all of them: those that wait would wait for ever.

    Args:
      error: of the first host, raised there.
    """
    failed = _of_first_host(error is not None)
    if error is not None:
        raise error
    if failed:
        raise PriorError('the first host could not generate the class images; what it says itself tells why.')
    unseen = sum(not file.path.is_file() for file in files)
    if unseen:
        raise PriorError(
            f'{unseen} of {len(files)} class images in {folder} are not seen by host {jax.process_index()}; set '
            f'prior.dir to a folder on a disk that all hosts share.'
        )
