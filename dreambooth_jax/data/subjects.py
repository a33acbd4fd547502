"""A subject's folder: its pictures, their captions, and everything else that lies there.

Pictures are found by content, whatever their names say, and taken in the order of their names. A text file beside a
picture (dog.txt beside dog.jpg) is its caption. Hidden files are ignored; anything else is skipped and named, so that
the program can warn. A picture that is damaged or too small is an error: the user meant it to be used.
"""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dreambooth_jax.data.images import READABLE, PictureError, read_picture, why_not_a_picture


class PictureFile(NamedTuple):
    """A picture and the caption that lies beside it, if one does."""

    path: pathlib.Path
    caption: str | None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures in memory.

    Attributes:
      images: uint8[N, H, W, 3], RGB; N = files * crops, the crops of one file together.
      prompts: N captions or prompts.
      names: N file names.
      skipped: name -> reason, of what lay in the folder and is not used.
    """

    images: np.ndarray
    prompts: list[str]
    names: list[str]
    skipped: dict[str, str]


def list_pictures(folder: str | os.PathLike) -> tuple[list[PictureFile], dict[str, str]]:
    """The picture files of a folder, sorted by name, and name -> reason for everything that is none.

    Raises: PictureError if the folder is missing, is a file or cannot be read, or if a caption is empty or not UTF-8.
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
    reasons = {path: why_not_a_picture(path) for path in files}
    pictures = [path for path in files if reasons[path] is None]
    captions = {path: path.with_suffix('.txt') for path in pictures if path.suffix != '.txt'}
    unused = {path.name: reason for path, reason in reasons.items() if reason and path not in captions.values()}
    return [PictureFile(path, _read_caption(captions.get(path))) for path in pictures], unused


def read_subject(
    folder: str | os.PathLike, resolution: int, prompt: str, *, crops: int = 1, seed: int = 0
) -> Pictures:
    """Reads all pictures of a folder.

    Args:
      resolution: side of the square pictures, in pixels.
      prompt: of the pictures without a caption.
      crops: squares per picture: the centre one, then random ones.
      seed: of the random crops; a crop depends on it, on the picture's place in the folder and on its own number.
    Raises: PictureError if no picture is there, or one is damaged or smaller than the resolution.
    """
    files, skipped = list_pictures(folder)
    if not files:
        found = '; '.join(f'{name} is {reason}' for name, reason in skipped.items()) or 'it is empty'
        raise PictureError(f'the folder {folder} holds no picture ({found}); put pictures ({READABLE}) there')
    images = [
        read_picture(
            file.path,
            resolution,
            crop='random' if crop else 'center',
            rng=np.random.default_rng([seed, place, crop]),
        )
        for place, file in enumerate(files)
        for crop in range(crops)
    ]
    return Pictures(
        images=np.stack(images),
        prompts=[file.caption or prompt for file in files for _ in range(crops)],
        names=[file.path.name for file in files for _ in range(crops)],
        skipped=skipped,
    )


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
