"""Photos identified by their content, not by their path: hashes of their bytes, their captions and their masks.

What a run learns depends on the photos and on their order, not on their names: a photo's index decides its random crops
and its turn in an epoch. So a run records its photos in the order in which it uses them. It finds them again by their
hashes, wherever they were moved and whatever their names are now.
"""

import collections
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from dreambooth_jax.data.decode import ImageError, ImagePath, StoredImage
from dreambooth_jax.data.subjects import ImageFile


class Fingerprint(NamedTuple):
    """One photo.

    Attributes:
      name: the name of the file.
      photo: sha256 of the file.
      caption: sha256 of the caption's text, or None if there is no caption.
      mask: sha256 of the mask's file, or None if there is no mask.
    """

    name: str
    photo: str
    caption: str | None = None
    mask: str | None = None

    @property
    def content(self) -> tuple[str, str | None, str | None]:
        """All hashes, without the name."""
        return self[1:]


def fingerprint(file: ImageFile) -> Fingerprint:
    """Reads a photo and its mask, and returns the photo's fingerprint.

    Raises:
      ImageError: if one of them cannot be read.
    """
    try:
        mask = file.mask and file_hash(file.mask)
        return Fingerprint(file.path.name, file_hash(file.path), file.caption and _text_hash(file.caption), mask)
    except OSError as error:
        raise ImageError(f'{error.filename} cannot be read: {error.strerror}') from None


def file_hash(path: ImagePath) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal digits.

    Raises:
      OSError: if the file cannot be read.
    """
    if isinstance(path, StoredImage):
        return hashlib.sha256(path.data).hexdigest()
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def match(recorded: Sequence[Fingerprint], found: Sequence[Fingerprint]) -> tuple[list[Fingerprint], list[str]]:
    """Finds recorded photos among those that are present.

    Args:
      recorded: in the order in which a run uses them.
      found: in any order.

    Returns:
      The photos that were found, in the recorded order, and what differs, as phrases to be joined by commas (empty:
      nothing).
    """
    # Two photos may have the same content, so each photo that is present is used once only.
    by_content = collections.defaultdict(list)
    for one in found:
        by_content[one.content].append(one)
    same = [(one, by_content[one.content].pop(0) if by_content[one.content] else None) for one in recorded]
    lost = [one for one, twin in same if twin is None]
    left = [one for one in found if any(one is other for other in by_content[one.content])]
    # Of a photo that is not found, say whether its caption or mask changed, or the photo itself, or whether it is gone.
    differences = []
    for one in lost:
        twin = next((other for other in left if other.photo == one.photo), None)
        renamed = next((other for other in left if other.name == one.name), None)
        if twin is not None:
            left.remove(twin)
            differences += [
                _changed(part, one, twin) for part in ('caption', 'mask') if getattr(one, part) != getattr(twin, part)
            ]
        elif renamed is not None:
            left.remove(renamed)
            differences.append(f'{one.name} is another image')
        else:
            differences.append(f'{one.name} is missing')
    differences += [f'{one.name} is new' for one in left]
    return [twin for _, twin in same if twin is not None], differences


def _changed(part: str, before: Fingerprint, now: Fingerprint) -> str:
    if getattr(before, part) is None:
        return f'{now.name} has a new {part}'
    state = 'missing' if getattr(now, part) is None else 'another'
    return f'the {part} of {now.name} is {state}'


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
