"""Uploaded photos: folders that train reads as it reads any other. Files are named here, whatever their own names are.

A photo is checked by what it holds, as train would: its format, whether it can be decoded, its size. Everything else,
archives included, is refused. Its bytes are kept as they came; its caption is the text file beside it. What reads
images is imported when it is needed, so that the server starts at once.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import threading
from pathlib import Path

from dreambooth_jax.system import disk

MOST_BYTES, MOST_PIXELS, MOST_PHOTOS = 64 * 2**20, 100_000_000, 100
MOST_CAPTION = 2000  # characters
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,63}')
_PHOTO = re.compile(r'(\d{3})\.\w+')
_ENDINGS = {'JPEG': '.jpg', 'HEIF': '.heic'}
_decoding = threading.Lock()  # one at a time: a large photo takes 0.3 GB while it is decoded


class PhotoError(ValueError):
    """A photo, or a folder of photos, is not taken; the message is one sentence.

    Attributes:
      status: the HTTP status that says so.
    """

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Photo:
    """An uploaded photo.

    Attributes:
      name: of its file.
      width, height: in pixels, upright.
      caption: what replaces the instance prompt for it; None: nothing does.
    """

    name: str
    width: int
    height: int
    caption: str | None


class Photos:
    """The folders of uploaded photos.

    Args:
      folder: the folder that holds theirs.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> dict[str, int]:
        """Returns the name of each folder -> how many photos it holds."""
        return {name: len(self._files(path)) for name, path in self._folders().items()}

    def folder(self, name: str) -> Path:
        """Returns the path of a folder.

        Raises:
          PhotoError: if there is none of that name.
        """
        if name not in (found := self._folders()):
            raise PhotoError(f'there are no photos {name!r}', 404)
        return found[name]

    def create(self, name: str | None = None) -> str:
        """Makes a folder and returns its name.

        Args:
          name: letters, digits, - and _; None: photos-1, photos-2, ...

        Raises:
          PhotoError: if the name cannot be one, or is taken.
        """
        with self._lock:
            there = self._folders()
            if name is None:
                name = next(new for n in range(1, 10**6) if (new := f'photos-{n}') not in there)
            if not _NAME.fullmatch(name):
                raise PhotoError(f'{name!r} cannot name photos; take up to 64 letters, digits, - and _')
            if name in there:
                raise PhotoError(f'there are photos {name!r} already; take another name', 409)
            (self._folder / name).mkdir()
            return name

    def add(self, name: str, data: bytes, called: str) -> Photo:
        """Adds a photo.

        Args:
          name: the folder.
          data: the file's bytes.
          called: the file's own name, for messages.

        Raises:
          PhotoError: if it is no photo that can be used, too large, or one too many.
        """
        from dreambooth_jax.data import photo_kinds
        from dreambooth_jax.data.decode import ImageError, StoredImage, decode_image, image_size

        folder = self.folder(name)
        called = os.path.basename(called.replace('\\', '/'))[:100] or 'the file'
        if len(data) > MOST_BYTES:
            raise PhotoError(f'{called} has more than {MOST_BYTES // 2**20} MB; scale it down', 413)
        kind = photo_kinds.kind_of(io.BytesIO(data), 'upload')
        if kind.format is None:
            raise PhotoError(f'{called} is {kind.words}, no photo; photos are {photo_kinds.READABLE}', 415)
        stored = StoredImage(called, 'the upload', data)
        try:
            width, height = image_size(stored)
            if width * height > MOST_PIXELS:
                raise PhotoError(f'{called} has more than {MOST_PIXELS // 10**6} million pixels; scale it down', 413)
            with _decoding:
                decode_image(stored)
        except ImageError as error:
            raise PhotoError(str(error)) from None
        with self._lock:
            files = self._files(folder)
            if len(files) >= MOST_PHOTOS:
                raise PhotoError(f'{name} holds {MOST_PHOTOS} photos already, and takes no more', 409)
            number = max((int(file.name[:3]) for file in files), default=0) + 1
            if number > 999:
                raise PhotoError(f'{name} has had 999 photos; begin another folder', 409)
            path = folder / f'{number:03d}{_ENDINGS.get(kind.format, "." + kind.format.lower())}'
            with disk.writing(path) as new:
                new.write_bytes(data)
        return Photo(path.name, width, height, None)

    def photos_in(self, name: str) -> list[Photo]:
        """Returns the photos of a folder in their order.

        Raises:
          PhotoError: if there is no such folder.
        """
        from dreambooth_jax.data.decode import ImageError, image_size

        folder = self.folder(name)
        found = []
        for path in self._files(folder):
            with contextlib.suppress(ImageError, FileNotFoundError):  # somebody may be changing the folder
                found.append(Photo(path.name, *image_size(path), _caption(path)))
        return found

    def set_caption(self, name: str, photo: str, caption: str) -> None:
        """Writes a photo's caption, or removes it if it is empty.

        Raises:
          PhotoError: if there is no such photo, or the caption is too long.
        """
        path = self.path(name, photo)
        caption = ' '.join(caption.split())
        if len(caption) > MOST_CAPTION:
            raise PhotoError(f'the caption has more than {MOST_CAPTION} characters')
        if not caption:
            path.with_suffix('.txt').unlink(missing_ok=True)
            return
        with disk.writing(path.with_suffix('.txt')) as new:
            new.write_text(caption + '\n', 'utf-8')

    def remove(self, name: str, photo: str | None = None) -> None:
        """Removes a photo with its caption, or all photos of a folder with the folder.

        Raises:
          PhotoError: if there is no such photo or folder.
        """
        if photo is None:
            shutil.rmtree(self.folder(name))
            return
        path = self.path(name, photo)
        path.with_suffix('.txt').unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def path(self, name: str, photo: str) -> Path:
        """Returns the path of a photo.

        Raises:
          PhotoError: if there is none.
        """
        found = {path.name: path for path in self._files(self.folder(name))}
        if photo not in found:
            raise PhotoError(f'there is no photo {photo!r} in {name}', 404)
        return found[photo]

    def crop(self, name: str, photo: str, side: int) -> bytes:
        """Returns the square that a model is shown of a photo, as PNG.

        Args:
          side: in pixels; that of the photo if it is smaller.

        Raises:
          PhotoError: if there is no such photo, or it cannot be read.
        """
        from dreambooth_jax.data import provenance
        from dreambooth_jax.data.images import ImageError, open_photo

        path = self.path(name, photo)
        try:
            with _decoding:
                opened = open_photo(path)
                side = min(side, *opened.image.size)
                pixels = opened.cut([(side, side)], crop='center', rng=None, max_zoom=1.0).image
        except ImageError as error:
            raise PhotoError(str(error)) from None
        file = io.BytesIO()
        provenance.save(pixels, file, source=None)
        return file.getvalue()

    def _folders(self) -> dict[str, Path]:
        return {path.name: path for path in sorted(self._folder.iterdir()) if _NAME.fullmatch(path.name)}

    def _files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if _PHOTO.fullmatch(path.name) and path.suffix != '.txt')


def _caption(path: Path) -> str | None:
    try:
        return path.with_suffix('.txt').read_text('utf-8').strip() or None
    except (OSError, UnicodeDecodeError):
        return None
