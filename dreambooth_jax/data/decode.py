"""Reads image files as upright RGB images with 8 bits in sRGB.

photo_kinds.py decides which files are photos; here all of them get the same form. Photos may be rotated by an EXIF tag
or a HEIC property, and may be CMYK, grey (with black or white as 0), 12 or 16 bits deep, with a palette, transparent
(shown on white) or animated (the first frame counts). Metadata never makes a photo unreadable: long texts are ignored,
and a broken EXIF block means no rotation.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from dreambooth_jax.data import colour, photo_kinds
from dreambooth_jax.data.photo_kinds import REPLACE

MAX_PIXELS = 250_000_000  # phones take photos of 200 million pixels, which need 2 GB of memory to read
_MAX_TEXT = 256 * 2**20  # bytes of unpacked metadata in a PNG: Pillow's limit of 1 MB is less than some editors write
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_DEPTH = 'save it with 8 or 16 bits per channel'


class ImageError(ValueError):
    """An image file, or a folder of images, cannot be used.

    The message is one sentence that names it and says what to do.
    """


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image file inside a dataset; it may be given wherever the path of an image file may be.

    Attributes:
      name: the file's name.
      dataset: the dataset's name, for messages.
      data: the file's bytes.
    """

    name: str
    dataset: str
    data: bytes

    def __str__(self) -> str:
        return f'{self.name} of {self.dataset}'

    def read_bytes(self) -> bytes:
        """Returns the file's bytes, as pathlib.Path.read_bytes does."""
        return self.data


ImagePath = str | os.PathLike | StoredImage


def decode_image(path: ImagePath, enough: int | None = None) -> Image.Image:
    """Returns the whole image, upright, as an RGB image of Pillow in sRGB. Transparent parts are shown on white.

    Args:
      enough: a side in pixels. A JPEG with much longer sides is decoded at a half, a quarter or an eighth of its size,
        with sides of at least this many pixels, which is several times faster. None: every image is decoded in full.

    Raises:
      ImageError: if the file cannot be read, is no image, is damaged or has more than MAX_PIXELS.
    """
    return _decode(path, lambda image, profile: _to_rgb(image, 'white', profile, str(path)), enough)


def decode_mask(path: ImagePath) -> Image.Image:
    """Returns the file as an 8-bit grey image, with transparent parts black.

    Its values are weights, not colours, so a colour profile is ignored.

    Raises:
      ImageError: as `decode_image`.
    """
    return _decode(path, lambda image, profile: _to_rgb(image, 'black', None, str(path)).convert('L'))


def image_size(path: ImagePath) -> tuple[int, int]:
    """Returns the width and height of the upright image in pixels. Mostly only the head of the file is decoded.

    Raises:
      ImageError: as `decode_image`.
    """
    data, format = read_file(path)
    with _reading(path):
        return _upright_size(_open(data, format), format)


def _upright_size(image: Image.Image, format: str) -> tuple[int, int]:
    is_swapped = format != 'TIFF' and _orientation(image) > 4  # Pillow has already swapped the sides of a TIFF
    return image.size[::-1] if is_swapped else image.size


class Head(NamedTuple):
    """What the head of an image file says about it.

    Attributes:
      data: the file's bytes.
      format: 'HEIF', or Pillow's name of the format.
      size: width and height of the upright image in pixels.
      is_turned: whether the pixels lie in the file in another direction than upright.
      profile: the name of the colour profile from which the image is converted to sRGB. None: its colours stay as they
        are, because it has no profile, or that of sRGB, or one that cannot be used.
    """

    data: bytes
    format: str
    size: tuple[int, int]
    is_turned: bool
    profile: str | None


def read_head(path: ImagePath) -> Head:
    """Reads what an image file says about itself, without its pixels.

    Raises:
      ImageError: as `decode_image`, as far as the head shows it.
    """
    data, format = read_file(path)
    with _reading(path):
        image = _open(data, format)
        # The decoder of HEIC has applied the file's own property and keeps what it was.
        turned = image.info.get('original_orientation') if format == 'HEIF' else _orientation(image)
        profile = _profile(image, data, format)
        name = None if profile is None else colour.converted_from(profile, image.mode)
        return Head(data, format, _upright_size(image, format), turned not in (None, 1), name)


def _decode(
    path: ImagePath,
    to_colours: Callable[[Image.Image, bytes | None], Image.Image],
    enough: int | None = None,
) -> Image.Image:
    data, format = read_file(path)
    with _reading(path):
        image = _open(data, format)
        if enough and format == 'JPEG':
            image.draft(None, (enough, enough))
        image.load()
        profile, orientation = _profile(image, data, format), _orientation(image)
        image = to_colours(_to_eight_bits(image, data, format), profile)
        return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def read_file(path: ImagePath) -> tuple[bytes, str]:
    """Returns an image file's bytes and its format: 'HEIF', or the name by which Pillow reads it.

    Raises:
      ImageError: if it cannot be read or photo_kinds does not let it through.
    """
    file = path if isinstance(path, StoredImage) else pathlib.Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f'{path} cannot be read: {error.strerror}') from None
    kind = photo_kinds.kind_of(io.BytesIO(data), file.name)
    if kind.format is None:
        raise ImageError(photo_kinds.refusal(path, kind))
    return data, kind.format


class _Limits:
    """Pillow's limits on pixels and metadata, raised while any thread is inside.

    They are global variables of Pillow, so they are raised for all threads.
    """

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, ()

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
                self._set(MAX_PIXELS, _MAX_TEXT, _MAX_TEXT)
            self._inside += 1

    def __exit__(self, *error):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(*self._before)

    def _set(self, pixels, chunk, memory):
        Image.MAX_IMAGE_PIXELS = pixels
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = chunk, memory


_LIMITS = _Limits()


@contextlib.contextmanager
def _reading(path: ImagePath) -> Iterator[None]:
    """Turns every error of the decoders into one sentence that names the file."""
    with warnings.catch_warnings(), _LIMITS:
        warnings.simplefilter('ignore')  # Pillow warns about large images, odd EXIF blocks and palettes: all harmless
        try:
            yield
        except ImageError as error:
            raise ImageError(f'{path} {error}') from None
        except Image.DecompressionBombError:
            raise ImageError(f'{path} {_too_large()}') from None
        except MemoryError:
            raise ImageError(f'{path} needs more memory than there is; scale it down') from None
        except Exception:  # with damaged files, decoders raise almost any type of error
            raise ImageError(f'{path} is truncated or damaged; {REPLACE}') from None


def _open(data: bytes, format: str) -> Image.Image:
    """Returns the image with its head read.

    HEIC is opened without registering it in Pillow, which other code of the process may use too.
    """
    if format == 'HEIF':
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageError('is a HEIC image, which needs the package pillow-heif; install it') from None
        image = HeifImageFile(io.BytesIO(data))
    else:
        try:
            image = Image.open(io.BytesIO(data), formats=[format])
        except Image.UnidentifiedImageError:
            raise ImageError(
                f'starts like a {format} image but is damaged or of a rare kind; save it anew as JPEG or PNG, or '
                f'take it out of its folder'
            ) from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large())
    return image


def _too_large() -> str:
    return f'is an image of more than {MAX_PIXELS / 10**6:g} million pixels; scale it down or take it out of its folder'


def _orientation(image: Image.Image) -> int:
    """Returns the value of the EXIF tag, 1 to 8.

    It is 1 if the tag is missing or broken, and for HEIC, whose decoder has already applied the file's own property.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the block is cut off, but the pixels are fine
        return 1
    return value if value in _TURN else 1


def _profile(image: Image.Image, data: bytes, format: str) -> bytes | None:
    """Returns the ICC data of the image's colours; None means sRGB.

    Raises:
      ImageError: for an HDR image.
    """
    if icc := image.info.get('icc_profile'):
        return icc
    if nclx := image.info.get('nclx_profile'):
        points = nclx['color_primaries'], nclx['transfer_characteristics']
    else:
        points = colour.cicp_of(data, format)
    if points is None:
        return None
    # Without tone mapping the brightness of an HDR image would be wrong, and nobody would notice in training.
    primaries, transfer = points
    if transfer in colour.HDR_CURVES:
        raise ImageError(
            f'is an HDR image ({colour.HDR_CURVES[transfer]}), whose brightness would come out wrong; save it as an '
            f'ordinary JPEG or PNG, or take it out of its folder'
        )
    return colour.cicp_profile(primaries)


def _to_eight_bits(image: Image.Image, data: bytes, format: str) -> Image.Image:
    """Returns grey images of more than 8 bits with 8 bits, and other images as they are.

    It also rescales the transparent colour of a PNG to the depth of the decoded pixels, because Pillow leaves it in the
    depth of the file.

    Raises:
      ImageError: for floating-point, signed or more than 16-bit values.
    """
    if image.mode == 'F':
        raise ImageError(f'holds floating-point values; {_DEPTH}')
    key = image.info.get('transparency')
    if not image.mode.startswith('I'):
        depth = data[24] if format == 'PNG' else 8  # the byte of the depth, in the first chunk
        if isinstance(key, int) and image.mode == 'L' and depth < 8:
            image.info['transparency'] = key * 255 // (2**depth - 1)
        elif isinstance(key, tuple) and depth == 16:
            image.info['transparency'] = tuple(value >> 8 for value in key)
        return image
    tags = image.tag_v2 if format == 'TIFF' else {}
    bits = tags.get(_BITS, (16,))[0]
    if bits > 16 or tags.get(_SAMPLE_FORMAT, (1,))[0] == 2:
        raise ImageError(f'holds {"signed" if bits <= 16 else f"{bits}-bit"} values; {_DEPTH}')
    values = np.asarray(image)
    levels = np.rint(np.arange(2**bits) / ((2**bits - 1) / 255)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        levels = levels[::-1]
    grey = Image.fromarray(levels[values])
    if isinstance(key, int):
        return Image.merge('LA', [grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))])
    return grey


def _to_rgb(image: Image.Image, background: str, profile: bytes | None, name: str) -> Image.Image:
    if not image.has_transparency_data:
        return colour.to_srgb(image, profile, name)
    solid = image.convert('RGBA')
    if profile is not None:
        colours = image.convert('L') if image.mode in ('L', 'LA') else solid.convert('RGB')
        alpha, solid = solid.getchannel('A'), colour.to_srgb(colours, profile, name)
        solid.putalpha(alpha)
    behind = Image.new('RGBA', image.size, background)
    return Image.alpha_composite(behind, solid).convert('RGB')
