"""Image files as upright RGB images of 8 bits in sRGB.

What a photo may be is decided in photo_kinds.py; here each kind comes out the same: turned by its EXIF tag or HEIC
property, CMYK, grey (black or white as 0), 12 or 16 bits deep, with a palette, transparent (shown on white), animated
(the first frame counts). Metadata never costs a photo: long texts are read over, a broken EXIF block turns nothing.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from dreambooth_jax.data import colour, photo_kinds
from dreambooth_jax.data.photo_kinds import REPLACE

MAX_PIXELS = 250_000_000  # phones take 200 million; read once, they need 2 GB
_MAX_TEXT = 256 * 2**20  # bytes of metadata in a PNG, unpacked: Pillow's 1 MB is less than some editors write
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
    """An image file, or a folder of them, that cannot be used: one sentence that names it and what to do."""


def decode_image(path: str | os.PathLike) -> Image.Image:
    """The whole image, upright, as an RGB image of Pillow in sRGB, transparency shown on white.

    Raises: ImageError if the file cannot be read, is no image, is damaged or has more than MAX_PIXELS.
    """
    return _decode(path, lambda image, profile: _to_rgb(image, 'white', profile, str(path)))


def decode_mask(path: str | os.PathLike) -> Image.Image:
    """The file as 8-bit grey, transparency black; its values are weights, so a colour profile says nothing."""
    return _decode(path, lambda image, profile: _to_rgb(image, 'black', None, str(path)).convert('L'))


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height of the upright image, mostly from the file's head; raises ImageError as `decode_image`."""
    data, format = _read(path)
    with _reading(path):
        image = _open(data, format)
        is_swapped = format != 'TIFF' and _orientation(image) > 4  # Pillow has swapped the sides of a TIFF already
        return image.size[::-1] if is_swapped else image.size


def _decode(path: str | os.PathLike, to_colours: Callable[[Image.Image, bytes | None], Image.Image]) -> Image.Image:
    data, format = _read(path)
    with _reading(path):
        image = _open(data, format)
        image.load()
        profile, orientation = _profile(image, data, format), _orientation(image)
        image = to_colours(_to_eight_bits(image, data, format), profile)
        return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def _read(path: str | os.PathLike) -> tuple[bytes, str]:
    """A file's bytes and its format; raises ImageError unless the gate lets it through."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise ImageError(f'{path} cannot be read: {error.strerror}') from None
    kind = photo_kinds.kind_of(io.BytesIO(data), os.path.basename(path))
    if kind.format is None:
        raise ImageError(photo_kinds.refusal(path, kind))
    return data, kind.format


class _Limits:
    """Pillow's limits on pixels and metadata, raised for all threads as long as one is inside."""

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
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Whatever the decoders raise becomes one sentence that names the file."""
    with warnings.catch_warnings(), _LIMITS:
        warnings.simplefilter('ignore')  # Pillow warns of large images, odd EXIF blocks and palettes: all harmless
        try:
            yield
        except ImageError as error:
            raise ImageError(f'{path} {error}') from None
        except Image.DecompressionBombError:
            raise ImageError(f'{path} {_too_large()}') from None
        except MemoryError:
            raise ImageError(f'{path} needs more memory than there is; scale it down') from None
        except Exception:  # damaged files make decoders raise nearly anything
            raise ImageError(f'{path} is truncated or damaged; {REPLACE}') from None


def _open(data: bytes, format: str) -> Image.Image:
    """The image with its head read. HEIC is opened without making it known to Pillow, which others may use too."""
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
    """The EXIF tag, 1 to 8; 1 where it is missing or broken, and for HEIC, whose own property has turned it already."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a cut block: the pixels are fine
        return 1
    return value if value in _TURN else 1


def _profile(image: Image.Image, data: bytes, format: str) -> bytes | None:
    """The ICC data that the image's colours are meant under; None: sRGB."""
    if icc := image.info.get('icc_profile'):
        return icc
    if nclx := image.info.get('nclx_profile'):
        points = nclx['color_primaries'], nclx['transfer_characteristics']
    else:
        points = colour.cicp_of(data, format)
    if points is None:
        return None
    primaries, transfer = points
    if transfer in colour.HDR_CURVES:
        raise ImageError(
            f'is an HDR image ({colour.HDR_CURVES[transfer]}), whose brightness would come out wrong; save it as an '
            f'ordinary JPEG or PNG, or take it out of its folder'
        )
    return colour.cicp_profile(primaries)


def _to_eight_bits(image: Image.Image, data: bytes, format: str) -> Image.Image:
    """Deep grey as 8 bits, and a PNG's key colour in the depth of its pixels, which Pillow leaves in the file's."""
    if image.mode == 'F':
        raise ImageError(f'holds floating-point values; {_DEPTH}')
    key = image.info.get('transparency')
    if not image.mode.startswith('I'):
        depth = data[24] if format == 'PNG' else 8  # in the first chunk
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
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
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
