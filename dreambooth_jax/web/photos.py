"""Uploaded photos: folders that train reads as it reads any other. Files are named here, whatever their own names are.

A photo is checked by what it holds, as train would: its format, whether it can be decoded, its size. Everything else,
archives included, is refused. Its bytes are kept as they came; its caption is the text file beside it. What reads
images is imported when it is needed, so that the server starts at once. A mask is another image beside its photo, of
the same size, white where the photo counts.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from dreambooth_jax.system import disk
from dreambooth_jax.web.refused import Refused

MOST_BYTES, MOST_PIXELS, MOST_PHOTOS = 64 * 2**20, 100_000_000, 100
MOST_CAPTION = 2000  # characters
TRAINED = (128, 512, 768, 1024)  # sides that models are trained at, in pixels: Storybook's flow model and others
USUAL = 512
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,63}')
_PHOTO = re.compile(r'(\d{3})\.\w+')
_BUCKETS = 16  # sides of crops that keep the ratio are multiples of it
_CROPPED = ('bars', 'cut')  # the checks that propose crops
_DIMMED = 0.25  # what is left of the brightness of a pixel that does not count
_ENDINGS = {'JPEG': '.jpg', 'HEIF': '.heic'}
_reading = threading.Lock()  # of heads, one at a time: the text in a PNG may be unpacked to 256 MB
_decoding = threading.Lock()  # one at a time: a large photo takes 0.3 GB while it is decoded


class PhotoError(Refused):
    """A photo, or a folder of photos, is not taken; the message is one sentence."""

    def __init__(self, message: str, status: int = 422):
        super().__init__(message, status)


@dataclasses.dataclass(frozen=True)
class Photo:
    """An uploaded photo.

    Attributes:
      name: of its file.
      width, height: in pixels, upright.
      caption: what replaces the instance prompt for it; None: nothing does.
      masked: when its mask was added, in seconds since 1970; None: it has none.
    """

    name: str
    width: int
    height: int
    caption: str | None
    masked: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What check_photos has found in photos (data.photo_checks.Finding).

    Attributes:
      severity: 'error', 'warning' or 'note'.
      check: the name of the check.
      photo: the name of the photo; None: it is about all of them.
      found, advice: what it is and what to do about it, as phrases.
      crop: left, top, right and bottom of a crop of the photo that would be better, in its pixels; None: none is
        proposed.
    """

    severity: str
    check: str
    photo: str | None
    found: str
    advice: str
    crop: tuple[int, int, int, int] | None


class Photos:
    """The folders of uploaded photos.

    Args:
      folder: the folder that holds theirs.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._found: dict[str, tuple] = {}  # folder -> what its photos were when they were checked, and the findings
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
        folder = self.folder(name)
        ending, (width, height) = _checked(data, _called(called))
        with self._lock:
            files = self._files(folder)
            if len(files) >= MOST_PHOTOS:
                raise PhotoError(f'{name} holds {MOST_PHOTOS} photos already, and takes no more', 409)
            number = max((int(file.name[:3]) for file in files), default=0) + 1
            if number > 999:
                raise PhotoError(f'{name} has had 999 photos; begin another folder', 409)
            path = folder / f'{number:03d}{ending}'
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
                masked = max((mask.stat().st_mtime for mask in _masks(path)), default=None)
                with _reading:
                    size = image_size(path)
                found.append(Photo(path.name, *size, _caption(path), masked))
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

    def set_mask(self, name: str, photo: str, data: bytes, called: str) -> None:
        """Adds the mask of a photo, in place of one that it has.

        Args:
          data: the bytes of an image of the photo's size, white where the photo counts; empty: the mask is removed.
          called: the file's own name, for messages.

        Raises:
          PhotoError: if there is no such photo, or it is no mask of it.
        """
        from dreambooth_jax.data.images import ImageError, open_photo

        path = self.path(name, photo)
        if not data:
            for mask in _masks(path):
                mask.unlink(missing_ok=True)
            return
        ending, _ = _checked(data, _called(called))
        new = path.with_name(f'{path.stem}.mask{ending}')
        with self._lock, tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
            tried = Path(folder) / new.name
            tried.write_bytes(data)
            try:
                with _decoding:
                    opened = open_photo(path, tried)
                    opened.cut([opened.image.size[::-1]], crop='center', rng=None, max_zoom=1.0)
            except ImageError as error:
                told = str(error).replace(str(tried), _called(called)).replace(str(path), path.name)
                raise PhotoError(told) from None
            for mask in _masks(path):
                mask.unlink()
            tried.replace(new)

    def remove(self, name: str, photo: str | None = None) -> None:
        """Removes a photo with its caption and mask, or all photos of a folder with the folder.

        Raises:
          PhotoError: if there is no such photo or folder.
        """
        if photo is None:
            shutil.rmtree(self.folder(name))
            return
        path = self.path(name, photo)
        path.with_suffix('.txt').unlink(missing_ok=True)
        for one in (*_masks(path), path):
            one.unlink(missing_ok=True)

    def path(self, name: str, photo: str) -> Path:
        """Returns the path of a photo.

        Raises:
          PhotoError: if there is none.
        """
        found = {path.name: path for path in self._files(self.folder(name))}
        if photo not in found:
            raise PhotoError(f'there is no photo {photo!r} in {name}', 404)
        return found[photo]

    def crop(
        self, name: str, photo: str, side: int, *, keeps_ratio: bool = False, box: Sequence[int] | None = None
    ) -> bytes:
        """Returns what a model is shown of a photo, as PNG, and darker what its mask leaves out.

        Args:
          side: of a square, in pixels; that of the photo if it is smaller.
          keeps_ratio: whether it is shown as with data.aspect_buckets, with as many pixels as that square.
          box: left, top, right and bottom of what the photo is cropped to before, in its pixels; None: it is not.

        Raises:
          PhotoError: if there is no such photo, it cannot be read, or the box does not lie in it.
        """
        import numpy as np

        from dreambooth_jax.data import provenance
        from dreambooth_jax.data.buckets import bucket_sizes
        from dreambooth_jax.data.images import ImageError, open_photo

        path = self.path(name, photo)
        try:
            with _decoding:
                opened = open_photo(path, next(iter(_masks(path)), None))
                if box is not None:
                    left, top, right, bottom = box
                    width, height = opened.image.size
                    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                        raise PhotoError(f'the box must lie in the photo, which is {width} x {height} pixels')
                    weights = opened.weights and opened.weights.crop(box)
                    opened = dataclasses.replace(opened, image=opened.image.crop(box), weights=weights)
                side = min(side, *opened.image.size)
                sizes = (
                    bucket_sizes(side // _BUCKETS * _BUCKETS or _BUCKETS, _BUCKETS) if keeps_ratio else [(side, side)]
                )
                cut = opened.cut(sizes, crop='center', rng=None, max_zoom=1.0)
                share = _DIMMED + (1 - _DIMMED) * cut.mask / 255
                pixels = np.round(cut.image * share).astype(np.uint8)
        except ImageError as error:
            raise PhotoError(str(error)) from None
        file = io.BytesIO()
        provenance.save(pixels, file, source=None)
        return file.getvalue()

    def stamp(self, name: str) -> tuple[tuple[str, int], ...]:
        """Returns what changes whenever a photo, caption or mask of a folder does.

        Raises:
          PhotoError: if there is no such folder.
        """
        return tuple(sorted((one.name, one.stat().st_mtime_ns) for one in self.folder(name).iterdir()))

    def findings(self, name: str, side: int, *, keeps_ratio: bool = False) -> list[Found]:
        """Returns what check_photos finds in a folder, the worst first.

        What was found last stays known until a photo, caption or mask changes: a check decodes every photo.

        Args:
          side, keeps_ratio: of the crops that are trained on, as in `crop`.

        Raises:
          PhotoError: if there is no such folder, or it holds no photo that can be read.
        """
        from dreambooth_jax.data.buckets import bucket_sizes
        from dreambooth_jax.data.checked_photos import check_folder
        from dreambooth_jax.data.images import ImageError
        from dreambooth_jax.data.photo_checks import Reading

        folder = self.folder(name)
        if not self._files(folder):
            return []
        stamp = side, keeps_ratio, self.stamp(name)
        known, told = self._found.get(name, (None, []))
        if known != stamp:
            sizes = bucket_sizes(side, _BUCKETS) if keeps_ratio else [(side, side)]
            try:
                with _decoding:
                    checked = check_folder(folder, Reading({'training': sizes}))
            except ImageError as error:
                raise PhotoError(str(error).replace(f'{folder}{os.sep}', '')) from None
            crops = {(one.name, check): one.proposal for one in checked.photos for check in _CROPPED}
            told = [
                Found(
                    **{**one._asdict(), 'found': one.found.replace(f'{folder}{os.sep}', '')},
                    crop=crops.get((one.photo, one.check)),
                )
                for one in checked.all_findings
            ]
            self._found[name] = stamp, told
        return told

    def _folders(self) -> dict[str, Path]:
        return {path.name: path for path in sorted(self._folder.iterdir()) if _NAME.fullmatch(path.name)}

    def _files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if _PHOTO.fullmatch(path.name) and path.suffix != '.txt')


def _called(name: str) -> str:
    return os.path.basename(name.replace('\\', '/'))[:100] or 'the file'


def _checked(data: bytes, called: str) -> tuple[str, tuple[int, int]]:
    """Returns how the name of an uploaded image ends, and its size; raises PhotoError if it cannot be used."""
    from dreambooth_jax.data import photo_kinds
    from dreambooth_jax.data.decode import ImageError, StoredImage, decode_image, image_size

    if len(data) > MOST_BYTES:
        raise PhotoError(f'{called} has more than {MOST_BYTES // 2**20} MB; scale it down', 413)
    kind = photo_kinds.kind_of(io.BytesIO(data), 'upload')
    if kind.format is None:
        raise PhotoError(f'{called} is {kind.words}, no photo; photos are {photo_kinds.READABLE}', 415)
    stored = StoredImage(called, 'the upload', data)
    try:
        with _reading:
            width, height = image_size(stored)
        if width * height > MOST_PIXELS:
            raise PhotoError(f'{called} has more than {MOST_PIXELS // 10**6} million pixels; scale it down', 413)
        with _decoding:
            decode_image(stored)
    except ImageError as error:
        raise PhotoError(str(error)) from None
    return _ENDINGS.get(kind.format, f'.{kind.format.lower()}'), (width, height)


def _masks(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f'{path.stem}.mask.*'))


def _caption(path: Path) -> str | None:
    try:
        return path.with_suffix('.txt').read_text('utf-8').strip() or None
    except (OSError, UnicodeDecodeError):
        return None
