"""Converts the colours of photos to sRGB, whatever their profile.

Phones write Display P3, cameras and editors Adobe RGB.

A profile is embedded as ICC data, or named by code points (CICP, in HEIC, AVIF and PNG). The conversion is relative
colorimetric with black point compensation, which is the default of editors: colours that sRGB contains stay as they
are, and others move to its edge. An image without a profile is taken as sRGB and its pixels are not changed. The same
holds for a profile that is sRGB under another name. Gamma and chromaticity chunks of PNG files are not applied.
"""

import functools
import io
import re
import struct
from collections.abc import Callable, Iterable

import numpy as np
from absl import logging
from PIL import Image, ImageCms

_SAME = 2  # of 255 levels: profiles of sRGB differ by this much through rounding and in their curve near black
# CICP colour primaries other than sRGB's (ITU-T H.273, table 2): x and y of red, green and blue. White is D65.
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
HDR_CURVES = {16: 'PQ', 18: 'HLG'}  # CICP transfer characteristics whose images need tone mapping to become sRGB
_D65 = (0.3127, 0.3290)
_D50 = np.array([0.9642, 1.0, 0.8249])  # ICC's white
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # g, a, b, c, d of ICC's parametric curve, type 3


def to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Returns `image` as an RGB image in sRGB.

    A profile that is broken or belongs to another kind of image is ignored with a warning.

    Args:
      image: of any mode with 8 bits, without transparency.
      profile: ICC data; None: the image is sRGB or, for CMYK, is converted by Pillow without a profile (as plain
        complement).
      name: the name of the file, for the warning.
    """
    if profile is None or image.mode in ('1', 'LAB'):  # Pillow converts LAB with its own profile
        return image.convert('RGB')
    try:
        space = _space(profile)
        if image.mode not in ('CMYK', 'L') or (image.mode == 'L' and space == 'RGB'):
            image = image.convert('RGB')
        if space != {'L': 'GRAY'}.get(image.mode, image.mode):
            raise ImageCms.PyCMSError(f'it is of {space} images')
        convert = _conversion(profile, image.mode)
        return image.convert('RGB') if convert is None else convert(image)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        _warn(name, str(error))
        return image.convert('RGB')


def converted_from(profile: bytes, mode: str) -> str | None:
    """Returns the name of the profile from which `to_srgb` converts an image of a mode with 8 bits.

    None means that it leaves the colours as they are, because the profile is that of sRGB or cannot be used.
    """
    if mode in ('1', 'LAB'):
        return None
    try:
        space = _space(profile)
        is_grey = mode[0] in 'LI' and space != 'RGB'  # L, LA and I;16 are made L first
        kind = 'L' if is_grey else 'CMYK' if mode == 'CMYK' else 'RGB'
        if space != {'L': 'GRAY'}.get(kind, kind) or _conversion(profile, kind) is None:
            return None
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip() or 'no name'
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def matrix_profile(primaries: tuple, curve: tuple[float, ...] = _SRGB_CURVE, white: tuple = _D65) -> bytes:
    """Returns ICC data (version 4) of a display with these primary colours.

    Args:
      primaries: (x, y) of red, green and blue.
      curve: the numbers of ICC's parametric curve: (gamma,) or the five numbers of sRGB's curve.
      white: (x, y) of white.

    Source: ICC.1:2022; adaptation to D50 by Bradford's matrix.
    """
    # Scale the primaries so that together they make white, then adapt them to ICC's white, D50.
    white_xyz, *columns = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in (white, *primaries))
    columns = np.stack(columns, axis=1)
    columns = columns * np.linalg.solve(columns, white_xyz)
    cones = (_BRADFORD @ _D50) / (_BRADFORD @ white_xyz)
    columns = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ columns
    # Write the tags that a display profile must have. Each starts at a multiple of 4 bytes.
    name = b'mluc' + struct.pack('>4xII4sII', 1, 12, b'enUS', 8, 28) + 'CICP'.encode('utf-16-be')
    tags = {b'desc': name, b'cprt': name, b'wtpt': b'XYZ ' + bytes(4) + _fixed(_D50)}
    for index, colour in enumerate((b'r', b'g', b'b')):
        tags[colour + b'XYZ'] = b'XYZ ' + bytes(4) + _fixed(columns[:, index])
        tags[colour + b'TRC'] = b'para' + struct.pack('>4xHH', 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    table, data, start = struct.pack('>I', len(tags)), b'', 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack('>II', start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = struct.pack('>I4xI', start + len(data), 0x04400000) + b'mntrRGB XYZ ' + bytes(12) + b'acsp' + bytes(28)
    return (header + _fixed(_D50)).ljust(128, b'\0') + table + data


def _fixed(values: Iterable[float]) -> bytes:
    """Returns numbers in ICC's format s15Fixed16."""
    return b''.join(struct.pack('>i', round(float(value) * 65536)) for value in values)


def cicp_of(data: bytes, format: str) -> tuple[int, int] | None:
    """Returns the code points (primaries, transfer) that a PNG or AVIF file names.

    None means that it names none, or several.
    """
    if format == 'PNG':
        at = data.find(b'cICP', 0, max(data.find(b'IDAT'), 0))
        return (data[at + 4], data[at + 5]) if at >= 0 else None
    found = set(re.findall(rb'colrnclx(....)', data, re.DOTALL)) if format == 'AVIF' else ()
    return struct.unpack('>HH', found.pop()) if len(found) == 1 else None


@functools.cache
def cicp_profile(primaries: int) -> bytes | None:
    """Returns ICC data of CICP colour primaries with sRGB's curve.

    None means that the primaries are sRGB's or nearly the same.
    """
    return matrix_profile(_PRIMARIES[primaries]) if primaries in _PRIMARIES else None


@functools.lru_cache(maxsize=8)
def _space(profile: bytes) -> str:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@functools.lru_cache(maxsize=8)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Returns the conversion from a mode (RGB, L or CMYK) under a profile to sRGB.

    None means that the profile changes nothing.
    """
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    # Otherwise the curve of a grey image is sampled too coarsely for the shadows. It is slow, but for 256 values only.
    if mode == 'L':
        flags |= ImageCms.Flags.NOOPTIMIZE
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile('sRGB'),
        mode,
        'RGB',
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=flags,
    )
    if mode == 'CMYK':
        return transform.apply
    # Compare on a grid of colours: a profile that changes nothing must leave the pixels exactly as they are.
    levels = np.arange(256, dtype=np.uint8)
    if mode == 'L':
        patches = Image.fromarray(levels[None])
    else:
        patches = Image.fromarray(np.stack(np.meshgrid(*[levels[::17]] * 3), axis=-1).reshape(-1, 16, 3))
    shown = np.asarray(transform.apply(patches), int)
    if np.abs(shown - np.asarray(patches.convert('RGB'), int)).max() <= _SAME:
        return None
    tables = shown[0].T.tolist()
    return transform.apply if mode == 'RGB' else lambda grey: Image.merge('RGB', [grey.point(row) for row in tables])


@functools.cache  # an image is read more than once, but its warning should appear once
def _warn(name: str, reason: str) -> None:
    logging.warning('the colour profile of %s cannot be used (%s), so its colours are taken as sRGB', name, reason)
