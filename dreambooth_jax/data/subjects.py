"""A subject's folder: its pictures, their captions, and everything else that lies there.

Pictures are found by content, whatever their names say, and taken in the order of their names. A text file beside a
picture (dog.txt beside dog.jpg) is its caption, a picture dog.mask.png says what of it counts (images.py). Hidden files
are ignored; anything else is skipped and named, so that the program can warn. A picture that is damaged or too small
is an error, as is a mask that fits no picture: the user meant it to be used.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax.data.buckets import Size
from dreambooth_jax.data.images import MAX_ZOOM, READABLE, PictureError, read_masked_picture, why_not_a_picture

MASK = '.mask'  # before the extension of a mask's name


class PictureFile(NamedTuple):
    """A picture, and the caption and the mask that lie beside it, if they do."""

    path: pathlib.Path
    caption: str | None
    mask: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of one size in memory.

    Attributes:
      images: uint8[N, H, W, 3], RGB; N = files * crops, the crops of one file together.
      masks: uint8[N, H, W, 1], 255 where a pixel counts in full and 0 where it does not; None if no picture has one.
      prompts: N captions or prompts.
      names: N file names.
      skipped: name -> reason, of what lay in the folder and is not used.
    """

    images: np.ndarray
    masks: np.ndarray | None
    prompts: list[str]
    names: list[str]
    skipped: dict[str, str]


def list_pictures(folder: str | os.PathLike) -> tuple[list[PictureFile], dict[str, str]]:
    """The picture files of a folder, sorted by name, and name -> reason for everything that is none.

    Raises: PictureError if the folder is missing, is a file or cannot be read, if a caption is empty or not UTF-8, or
      if a mask is no picture, has none beside it or is not the only one.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
        raise PictureError(f'the folder {folder} does not exist; create it and put pictures ({READABLE}) there')
    if not folder.is_dir():
        raise PictureError(f'{folder} is a file; give the folder that holds the pictures')
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    except OSError as error:
        raise PictureError(f'the folder {folder} cannot be read: {error.strerror}') from None
    masks = [path for path in files if path.stem.lower().endswith(MASK) and path.suffix.lower() != '.txt']
    reasons = {path: why_not_a_picture(path) for path in files if path not in masks}
    pictures = [path for path in reasons if reasons[path] is None]
    mask_of = _match_masks(pictures, masks)
    captions = {path: path.with_suffix('.txt') for path in pictures if path.suffix != '.txt'}
    unused = {path.name: reason for path, reason in reasons.items() if reason and path not in captions.values()}
    found = [PictureFile(path, _read_caption(captions.get(path)), mask_of.get(path.stem)) for path in pictures]
    return found, unused


def read_subject(
    folder: str | os.PathLike, resolution: int, prompt: str, *, crops: int = 1, seed: int = 0
) -> Pictures:
    """Reads all pictures of a folder as squares; as `read_buckets` with that one size."""
    size = (resolution, resolution)
    return read_buckets(folder, [size], prompt, crops=crops, seed=seed)[size]


def read_buckets(
    folder: str | os.PathLike,
    sizes: Sequence[Size],
    prompt: str,
    *,
    crops: int = 1,
    max_zoom: float = MAX_ZOOM,
    seed: int = 0,
    order: Sequence[str] | None = None,
) -> dict[Size, Pictures]:
    """Reads all pictures of a folder, each in the size whose ratio is nearest to its own.

    Args:
      sizes: (height, width) pairs, such as buckets.bucket_sizes.
      prompt: of the pictures without a caption.
      crops: per picture: the centre one, then random ones. max_zoom: of the random ones (images.py).
      seed: of the random crops; a crop depends on it, on the picture's place in the order and on its own number.
      order: the files' names in the order in which they are taken; None: sorted.
    Returns: the pictures by size, in the order of `sizes`, without those that no picture has.
    Raises: PictureError if no picture is there, or one is damaged or smaller than its size, or a mask does not fit
      its picture.
    """
    files, skipped = list_pictures(folder)
    if not files:
        found = '; '.join(f'{name} is {reason}' for name, reason in skipped.items()) or 'it is empty'
        raise PictureError(f'the folder {folder} holds no picture ({found}); put pictures ({READABLE}) there')
    if order is not None:
        files.sort(key=lambda file: order.index(file.path.name))
    found: dict[Size, list] = {size: [] for size in sizes}
    for place, file in enumerate(files):
        for crop in range(crops):
            rng = np.random.default_rng([seed, place, crop])
            kind = 'random' if crop else 'center'
            image, mask = read_masked_picture(file.path, file.mask, sizes, crop=kind, rng=rng, max_zoom=max_zoom)
            found[image.shape[:2]].append((file, image, mask))
    return {
        size: Pictures(
            images=np.stack([image for _, image, _ in rows]),
            masks=np.stack([mask for _, _, mask in rows]) if any(file.mask for file, _, _ in rows) else None,
            prompts=[file.caption or prompt for file, _, _ in rows],
            names=[file.path.name for file, _, _ in rows],
            skipped=skipped,
        )
        for size, rows in found.items()
        if rows
    }


def _match_masks(pictures: list[pathlib.Path], masks: list[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Stem of a picture -> its mask."""
    stems = {path.stem for path in pictures}
    mask_of = {}
    for mask in masks:
        stem = mask.stem[: -len(MASK)]
        reason = why_not_a_picture(mask)
        if reason is not None:
            raise PictureError(f'the mask {mask} is {reason}; replace it or take it out of its folder')
        if stem not in stems:
            raise PictureError(
                f'the mask {mask} has no picture beside it ({stem}.jpg, {stem}.png or another kind); rename it or take '
                f'it out of its folder'
            )
        if stem in mask_of:
            raise PictureError(f'{mask_of[stem]} and {mask} are masks of the same picture; keep one of them')
        mask_of[stem] = mask
    return mask_of


def _read_caption(path: pathlib.Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    try:
        caption = ' '.join(path.read_text(encoding='utf-8-sig').split())
    except UnicodeDecodeError:
        raise PictureError(f'the caption {path} is not UTF-8 text; save it as UTF-8 or delete it') from None
    except OSError as error:
        raise PictureError(f'the caption {path} cannot be read: {error.strerror}') from None
    if not caption:
        raise PictureError(f'the caption {path} is empty; write what its picture shows, or delete it')
    return caption
