"""A subject's folder: its images, their captions and masks, and all other files in it.

Images are found by content (photo_kinds.py) and used in the order of their names. Other files belong to an image by
name, where capital and small letters are equal. For dog.jpg, dog.txt or dog.caption is the caption, and dog.mask.png
(or dog-masklabel.png, OneTrainer's name) is the mask, which says which part of the image counts. If there is a dog.png
too, the files for dog.jpg are dog.jpg.txt and dog.jpg.mask.png.

No file is ignored silently. It is used, or it is skipped and named so that the program can warn, or it is an error. A
file is an error if the user meant it to be used and it cannot be: a photo that is damaged, too small or in a format
that cannot be read, or a mask that fits no image. Only hidden files are ignored, unless they are images.
"""

import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax.data import photo_kinds
from dreambooth_jax.data.buckets import Size
from dreambooth_jax.data.decode import StoredImage
from dreambooth_jax.data.images import MAX_ZOOM, ImageError, open_photo
from dreambooth_jax.data.photo_kinds import FOLDER, READABLE, SPECIAL, Kind

_CAPTIONS = ('.txt', '.caption')
# Our own name for masks, OneTrainer's, and kohya's fork's without a file extension. White counts in all of them.
_MASK = re.compile(r'(?P<stem>.+?)(\.mask|-masklabel)(\.[^.]+)?', re.IGNORECASE)
# OneTrainer's name for the inputs of models that are conditioned on an image.
_CONDITION = re.compile(r'(?P<stem>.+)-condlabel\.[^.]+', re.IGNORECASE)
_MASK_LIKE = re.compile(r'(?P<stem>.+?)[-_ ]mask(label)?', re.IGNORECASE)  # matches a name without its extension


class ImageFile(NamedTuple):
    """An image, with the text of its caption and the path of its mask if they exist."""

    path: pathlib.Path | StoredImage
    caption: str | None
    mask: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size in memory.

    Attributes:
      images: uint8[N, H, W, 3], RGB, where N = files * crops; the crops of one file are consecutive.
      masks: uint8[N, H, W, 1], 255 where a pixel counts in full and 0 where it does not; None if no image has a mask.
      prompts: N captions or prompts.
      names: N file names.
      skipped: name -> reason, for files in the folder that are not used.
    """

    images: np.ndarray
    masks: np.ndarray | None
    prompts: list[str]
    names: list[str]
    skipped: dict[str, str]


def list_images(folder: str | os.PathLike) -> tuple[list[ImageFile], dict[str, str]]:
    """Returns the image files of a folder, sorted by name, and name -> reason for the files that are not used.

    Raises:
      ImageError: if the folder is missing, is a file or cannot be read; if a photo is in a format that cannot be read;
        if a caption is empty, not UTF-8 or contradicts another; if a mask is no image, belongs to no image or is not
        the only one; if a caption or mask could belong to two images.
    """
    folder = pathlib.Path(folder)
    kinds = _look_around(folder)
    masks = [path for path in kinds if _MASK.fullmatch(path.name) and _is_mask(path, kinds[path])]
    images = [path for path, kind in kinds.items() if kind.format and path not in masks]
    skipped = {}
    for path in [path for path in images if path.name.startswith('.') or _CONDITION.fullmatch(path.name)]:
        images.remove(path)
        skipped[path] = 'hidden' if path.name.startswith('.') else 'a condition for another kind of model'
    captions = [path for path in kinds if path.suffix.lower() in _CAPTIONS and path not in images]
    captions = [path for path in captions if kinds[path] not in (FOLDER, SPECIAL) and path not in skipped]
    # Match by name only now, when it is clear which files are images: a skipped image must not own a caption or a mask.
    caption_of, mask_of = _caption_files(images, captions), _match_masks(images, masks, kinds)
    _refuse_mask_likes(images)
    # Every file that is left is skipped with a reason, or is an error.
    used = {*images, *masks, *(path for found in caption_of.values() for path in found)}
    for path, kind in kinds.items():
        if path not in used and path not in skipped:
            skipped[path] = 'a caption without an image' if path in captions else _reason(path, kind, images)
    found = [ImageFile(path, _read_captions(caption_of.get(path, ())), mask_of.get(path)) for path in images]
    return found, {path.name: skipped[path] for path in sorted(skipped)}


def read_subject(folder: str | os.PathLike, resolution: int, prompt: str, *, crops: int = 1, seed: int = 0) -> Images:
    """Reads all images of a folder as squares, as `read_buckets` does with that one size."""
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
) -> dict[Size, Images]:
    """Reads all images of a folder, each in the size whose ratio is nearest to its own.

    Args:
      sizes: (height, width) pairs, such as those of buckets.bucket_sizes.
      prompt: the prompt of images without a caption.
      crops: the number of crops per image: the first is the centre, the others are random.
      max_zoom: the largest zoom of the random crops (images.py).
      seed: of the random crops. A crop depends on it, on the image's index in the order and on the number of the crop.
      order: the names of the files in the order in which they are used; None: sorted.

    Returns:
      The images by size, in the order of `sizes`, without sizes that no image has.

    Raises:
      ImageError: if there is no image, if one is damaged or smaller than its size, or if a mask does not fit its image.
    """
    files, skipped = list_images(folder)
    if not files:
        found = '; '.join(f'{name} is {reason}' for name, reason in skipped.items()) or 'it is empty'
        raise ImageError(f'the folder {folder} holds no image ({found}); put images ({READABLE}) there')
    options = {'crops': crops, 'max_zoom': max_zoom, 'seed': seed, 'order': order}
    found = read_files(files, sizes, prompt, **options)
    return {size: dataclasses.replace(images, skipped=skipped) for size, images in found.items()}


def read_files(
    files: Sequence[ImageFile],
    sizes: Sequence[Size],
    prompt: str,
    *,
    crops: int = 1,
    max_zoom: float = MAX_ZOOM,
    seed: int = 0,
    order: Sequence[str] | None = None,
) -> dict[Size, Images]:
    """Reads images wherever they lie, as `read_buckets` reads those of a folder.

    Args:
      files: the images.
      sizes, prompt, crops, max_zoom, seed: as in `read_buckets`.
      order: the names of the files in the order in which they are used; None: as they are given.

    Returns:
      The images by size, in the order of `sizes`, without sizes that no image has; none is skipped.

    Raises:
      ImageError: if an image is damaged or smaller than its size, or if a mask does not fit its image.
    """
    # A photo's index decides its random crops, so a resumed run needs the order that it began with.
    if order is not None:
        files = sorted(files, key=lambda file: order.index(file.path.name))
    found: dict[Size, list] = {size: [] for size in sizes}
    for index, file in enumerate(files):
        photo = open_photo(file.path, file.mask)
        for image, mask, _ in photo.cuts(sizes, index, crops=crops, max_zoom=max_zoom, seed=seed):
            found[image.shape[:2]].append((file, image, mask))
    return {
        size: Images(
            images=np.stack([image for _, image, _ in kept]),
            masks=np.stack([mask for _, _, mask in kept]) if any(file.mask for file, _, _ in kept) else None,
            prompts=[file.caption or prompt for file, _, _ in kept],
            names=[file.path.name for file, _, _ in kept],
            skipped={},
        )
        for size, kept in found.items()
        if kept
    }


def _look_around(folder: pathlib.Path) -> dict[pathlib.Path, Kind]:
    """Returns what lies in a folder, sorted by name, without hidden files that are no images.

    Raises:
      ImageError: if the folder is missing, is a file or cannot be read.
    """
    if not folder.exists():
        raise ImageError(f'the folder {folder} does not exist; create it and put images ({READABLE}) there')
    if not folder.is_dir():
        raise ImageError(f'{folder} is a file; give the folder that holds the images')
    try:
        kinds = {path: photo_kinds.look(path) for path in sorted(folder.iterdir())}
    except OSError as error:
        raise ImageError(f'the folder {folder} cannot be read: {error.strerror}') from None
    return {path: kind for path, kind in kinds.items() if kind.format or not path.name.startswith('.')}


def _is_mask(path: pathlib.Path, kind: Kind) -> bool:
    return kind != FOLDER and path.suffix.lower() not in _CAPTIONS and not path.name.startswith('.')


def _reason(path: pathlib.Path, kind: Kind, images: Sequence[pathlib.Path]) -> str:
    """Returns why a file is not used.

    Raises:
      ImageError: if it is a photo and no image is used instead of it.
    """
    if not kind.advice:
        return kind.words
    twins = _owners(path.stem, images) if kind.is_original else []
    if not twins:
        raise ImageError(photo_kinds.refusal(path, kind))
    return f'{kind.words}, in whose place {twins[0].name} is used'


def _owners(stem: str, images: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the images to which a file with this stem belongs.

    These are the images with exactly that name; if there are none, those with that stem; if there are none either,
    those whose name or stem differs only in capital and small letters.
    """
    # Normalized, because macOS stores an accent as a separate character.
    fold = lambda name: unicodedata.normalize('NFC', name).casefold()  # noqa: E731
    tests = (
        lambda path: path.name == stem,
        lambda path: path.stem == stem,
        lambda path: fold(stem) in (fold(path.name), fold(path.stem)),
    )
    return next((found for test in tests if (found := [path for path in images if test(path)])), [])


def _owner(file: pathlib.Path, stem: str, what: str, images: Sequence[pathlib.Path]) -> pathlib.Path | None:
    owners = _owners(stem, images)
    if len(owners) > 1:
        ending = file.name[len(stem) :]
        names = [path.name for path in owners]
        raise ImageError(
            f'the {what} {file} could belong to {" or ".join(names)}; name it {names[0]}{ending}, or rename one of the '
            f'images'
        )
    return owners[0] if owners else None


def _caption_files(
    images: Sequence[pathlib.Path], captions: Sequence[pathlib.Path]
) -> Mapping[pathlib.Path, list[pathlib.Path]]:
    """Returns image -> its caption files."""
    found = {}
    for file in captions:
        owner = _owner(file, file.stem, 'caption', images)
        if owner is not None:
            found.setdefault(owner, []).append(file)
    return found


def _match_masks(
    images: Sequence[pathlib.Path], masks: Sequence[pathlib.Path], kinds: Mapping[pathlib.Path, Kind]
) -> dict[pathlib.Path, pathlib.Path]:
    """Returns image -> its mask.

    Raises:
      ImageError: if a mask is no image, belongs to no image, or is the second mask of an image.
    """
    mask_of = {}
    for mask in masks:
        stem = _MASK.fullmatch(mask.name)['stem']
        if kinds[mask].format is None:
            raise ImageError(f'the mask {photo_kinds.refusal(mask, kinds[mask])}')
        owner = _owner(mask, stem, 'mask', images)
        if owner is None:
            raise ImageError(
                f'the mask {mask} has no image beside it ({stem}.jpg, {stem}.png or another kind); rename it or take '
                f'it out of its folder'
            )
        if owner in mask_of:
            raise ImageError(f'{mask_of[owner]} and {mask} are masks of the same image; keep one of them')
        mask_of[owner] = mask
    return mask_of


def _refuse_mask_likes(images: Sequence[pathlib.Path]) -> None:
    """Refuses names such as dog_mask.png beside dog.jpg.

    The file may be a mask or a photo of a masked dog, and a wrong guess would spoil the training.

    Raises:
      ImageError: for such a name.
    """
    for path in images:
        match = _MASK_LIKE.fullmatch(path.stem)
        others = [other for other in _owners(match['stem'], images) if other != path] if match else []
        if others:
            stem = others[0].stem
            raise ImageError(
                f'{path} is named like a mask of {others[0].name}; name it {stem}.mask{path.suffix} if it is one, or '
                f'without "mask" if it is a photo'
            )


def _read_captions(files: Sequence[pathlib.Path]) -> str | None:
    texts = [_read_caption(file) for file in files]
    if len(set(texts)) > 1:
        raise ImageError(f'{files[0]} and {files[1]} are different captions of one image; keep one of them')
    return texts[0] if texts else None


def _read_caption(path: pathlib.Path) -> str:
    try:
        caption = ' '.join(path.read_text(encoding='utf-8-sig').split())
    except UnicodeDecodeError:
        raise ImageError(f'the caption {path} is not UTF-8 text; save it as UTF-8 or delete it') from None
    except OSError as error:
        raise ImageError(f'the caption {path} cannot be read: {error.strerror}') from None
    if not caption:
        raise ImageError(f'the caption {path} is empty; write what its image shows, or delete it')
    return caption
