"""Decides what a file among photos is, from its first bytes and, where they do not tell, from its name.

A file is one of three things. An image that can be read has a `format`. A photo or drawing that cannot be read, such as
a camera's raw file, has an `advice`; whoever put it there wanted it to be used, so it is an error. Everything else is
no photo; it is skipped and named. A file with the name of a photo (.jpg) must be one: text under such a name is an
error.
"""

import os
import pathlib
import re
import stat
import struct
import warnings
from typing import BinaryIO, NamedTuple

from PIL.TiffImagePlugin import ImageFileDirectory_v2

READABLE = 'JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF, BMP'  # the formats, as errors name them
REPLACE = 'replace it or take it out of its folder'
_CONVERT = 'save it as JPEG or PNG, or take it out of its folder'
_DEVELOP = 'export it from your raw converter as JPEG, PNG or TIFF, or take it out of its folder'
_HEAD = 4096  # how many of a file's first bytes are examined


class Kind(NamedTuple):
    """What a file is.

    Attributes:
      words: a phrase that messages put after 'is'.
      format: 'HEIF', or the name by which Pillow reads it; None if it cannot be read.
      advice: what to do about a photo that cannot be read; None for images that can be read and for files that are no
        photo.
      is_original: whether cameras and editors write a JPEG of the same name beside it, which is then used as its image.
    """

    words: str
    format: str | None = None
    advice: str | None = None
    is_original: bool = False


def _readable(name: str, format: str) -> Kind:
    return Kind(f'a {name} image', format)


def _raw(name: str) -> Kind:
    return Kind(f'a camera raw file ({name})', advice=_DEVELOP, is_original=True)


def _layered(name: str) -> Kind:
    return Kind(f'a file with layers ({name})', advice=_CONVERT, is_original=True)


def _unknown(name: str) -> Kind:
    return Kind(f'an image in the format {name}', advice=_CONVERT)


TEXT, EMPTY, FOLDER, VIDEO = Kind('text'), Kind('an empty file'), Kind('a folder'), Kind('a video or audio file')
SPECIAL = Kind('no ordinary file')  # a pipe, a socket
_ARCHIVE, _ICON, _PAGE = Kind('an archive'), Kind('an icon'), Kind('a document')
_TIFF, _AVIF, _HEIF = _readable('TIFF', 'TIFF'), _readable('AVIF', 'AVIF'), _readable('HEIC', 'HEIF')

# First bytes -> kind. Longer signatures stand before shorter ones with the same start.
_SIGNATURES = (
    (b'\xff\xd8\xff\xf7', _unknown('JPEG-LS')),
    (b'\xff\xd8\xff', _readable('JPEG', 'JPEG')),
    (b'\x89PNG\r\n\x1a\n', _readable('PNG', 'PNG')),
    (b'GIF87a', _readable('GIF', 'GIF')),
    (b'GIF89a', _readable('GIF', 'GIF')),
    (b'\x00\x00\x00\x0cjP  \r\n\x87\n', _readable('JPEG 2000', 'JPEG2000')),
    (b'\xff\x4f\xff\x51', _readable('JPEG 2000', 'JPEG2000')),
    (b'FUJIFILMCCD-RAW', _raw('Fujifilm RAF')),
    (b'IIRO', _raw('Olympus ORF')),
    (b'IIRS', _raw('Olympus ORF')),
    (b'MMOR', _raw('Olympus ORF')),
    (b'IIU\x00', _raw('Panasonic RW2')),
    (b'II\x1a\x00\x00\x00HEAPCCDR', _raw('Canon CRW')),
    (b'\x00MRM', _raw('Minolta MRW')),
    (b'FOVb', _raw('Sigma X3F')),
    (b'8BPS', _layered('Photoshop')),
    (b'gimp xcf', _layered('GIMP')),
    (b'\xff\x0a', _unknown('JPEG XL')),
    (b'\x00\x00\x00\x0cJXL \r\n\x87\n', _unknown('JPEG XL')),
    (b'II\xbc\x01', _unknown('JPEG XR')),
    (b'\x76\x2f\x31\x01', _unknown('OpenEXR')),
    (b'#?RADIANCE', _unknown('Radiance HDR')),
    (b'#?RGBE', _unknown('Radiance HDR')),
    (b'DDS ', _unknown('DDS')),
    (b'qoif', _unknown('QOI')),
    (b'BPG\xfb', _unknown('BPG')),
    (b'FLIF', _unknown('FLIF')),
    (b'P7\n', _unknown('PAM')),
    (b'\x8aMNG\r\n\x1a\n', _unknown('MNG')),
    (b'\x00\x00\x01\x00', _ICON),
    (b'icns', _ICON),
    (b'%PDF', _PAGE),
    (b'%!PS', _PAGE),
    (b'\xc5\xd0\xd3\xc6', _PAGE),
    (b'PK\x03\x04', _ARCHIVE),
    (b'Rar!', _ARCHIVE),
    (b'7z\xbc\xaf', _ARCHIVE),
    (b'\x1f\x8b', _ARCHIVE),
    (b'\x1a\x45\xdf\xa3', VIDEO),
    (b'FLV\x01', VIDEO),
    (b'\x00\x00\x01\xba', VIDEO),
    (b'\x00\x00\x01\xb3', VIDEO),
    (b'ID3', VIDEO),
)
_TIFF_HEADS = (b'II*\x00', b'MM\x00*', b'MM*\x00', b'II\x00*', b'II+\x00', b'MM\x00+')  # the last two: BigTIFF
_HEIF_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs', b'mif1', b'mif2', b'msf1'}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # possible sizes in bytes of the header after the first 14 bytes
_PPM = re.compile(rb'P[1-6Ff]\s+(#[^\n]*\n\s*)*\d+\s+(#[^\n]*\n\s*)*\d+\s')
_CONTROL = re.compile(rb'[\x00-\x08\x0e-\x1a\x1c-\x1f]')

_RAW_NAMES = dict(
    dng='DNG',
    nef='Nikon NEF',
    nrw='Nikon NRW',
    cr2='Canon CR2',
    cr3='Canon CR3',
    crw='Canon CRW',
    arw='Sony ARW',
    sr2='Sony SR2',
    srf='Sony SRF',
    raf='Fujifilm RAF',
    orf='Olympus ORF',
    rw2='Panasonic RW2',
    rwl='Leica RWL',
    pef='Pentax PEF',
    srw='Samsung SRW',
    x3f='Sigma X3F',
    mrw='Minolta MRW',
    kdc='Kodak KDC',
    dcr='Kodak DCR',
    erf='Epson ERF',
    mef='Mamiya MEF',
    mos='Leaf MOS',
    iiq='Phase One IIQ',
    gpr='GoPro GPR',
    raw='RAW',
)
_RAW_NAMES |= {'3fr': 'Hasselblad 3FR', 'fff': 'Hasselblad FFF'}
_PHOTO_NAMES = set(
    'jpg jpeg jpe jfif mpo png apng webp avif heic heif hif heics heifs gif tif tiff bmp dib jp2 j2k jpf jpx j2c ppm '
    'pgm pbm pnm pfm psd psb xcf kra ora jxl jxr wdp exr hdr dds qoi bpg flif tga pcx svg'.split()
)
# Files that photo programs put beside photos, by suffix. They have no effect here, and the words say so.
_SIDE_NAMES = {
    'aae': 'edits of Apple Photos, which are not applied',
    'xmp': 'edits or notes of a photo program, which are not applied',
    'json': 'data of another program (captions are read from .txt and .caption files)',
    'jsonl': 'data of another program (captions are read from .txt and .caption files)',
    'csv': 'data of another program (captions are read from .txt and .caption files)',
    'npz': 'a cache of another program',
}


def look(path: str | os.PathLike) -> Kind:
    """Returns what lies at a path.

    It never raises an error: if a file cannot be read, the returned kind says so.
    """
    path = pathlib.Path(path)
    is_promised = _suffix(path.name) in _PHOTO_NAMES | _RAW_NAMES.keys()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return FOLDER
        if not stat.S_ISREG(mode):  # reading from a pipe could wait forever
            return SPECIAL
        with open(path, 'rb') as file:
            return kind_of(file, path.name)
    except OSError as error:
        return Kind(f'not readable ({error.strerror})', advice=REPLACE if is_promised else None)


def kind_of(file: BinaryIO, name: str) -> Kind:
    """Returns what an open file is. `name` decides where the bytes do not tell.

    Raises:
      OSError: if reading fails.
    """
    file.seek(0)
    head = file.read(_HEAD)
    suffix = _suffix(name)
    kind = _by_content(file, head, suffix)
    if kind is not None and (kind.format or kind.advice):
        return kind
    if suffix in _RAW_NAMES and kind is None:
        return _raw(_RAW_NAMES[suffix])
    if suffix in _PHOTO_NAMES or suffix in _RAW_NAMES:
        what = kind.words if kind else 'damaged, or in a format that is not known here'
        return Kind(f'named like a photo but is {what}', advice=REPLACE)
    if suffix in _SIDE_NAMES:
        return Kind(_SIDE_NAMES[suffix])
    return kind or Kind('not an image')


def refusal(path: str | os.PathLike, kind: Kind) -> str:
    """Returns the message about a file that was meant to be read as an image but cannot be."""
    if kind.advice:
        return f'{path} is {kind.words}{"" if kind.advice == REPLACE else ", which cannot be read"}; {kind.advice}'
    what = kind.words if kind.words == 'not an image' else f'{kind.words}, not an image'
    return f'{path} is {what} ({READABLE}); {REPLACE}'


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _by_content(file: BinaryIO, head: bytes, suffix: str) -> Kind | None:
    if not head:
        return EMPTY
    if head[:4] in _TIFF_HEADS:
        return _tiff_kind(file, head, suffix)
    if _PPM.match(head):
        return _readable('PPM', 'PPM')
    if text := _text_kind(head):  # before the signatures, because a sentence may start with the letters of one
        return text
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return _in_archive(head) if signature == b'PK\x03\x04' else kind
    if head[4:8] == b'ftyp':
        return _boxed(head)
    if head[4:8] in (b'moov', b'mdat', b'wide', b'skip'):  # old QuickTime files have no ftyp box
        return VIDEO
    if head[:4] == b'RIFF':
        return _readable('WebP', 'WEBP') if head[8:12] == b'WEBP' else VIDEO
    if head[:2] == b'BM' and len(head) >= 18 and struct.unpack('<I', head[14:18])[0] in _BMP_HEADERS:
        return _readable('BMP', 'BMP')
    return None


def _boxed(head: bytes) -> Kind:
    """Returns the kind of a file that starts with ISO's ftyp box, from the brands in that box."""
    end = min(int.from_bytes(head[:4]), len(head))
    brands = {head[8:12], *(head[offset : offset + 4] for offset in range(16, end, 4))}
    if b'crx ' in brands:
        return _raw('Canon CR3')
    if brands & {b'avif', b'avis'}:
        return _AVIF
    return _HEIF if brands & _HEIF_BRANDS else VIDEO


def _in_archive(head: bytes) -> Kind:
    """Returns the kind of an archive: some painting programs store drawings as archives whose first entry says so."""
    if b'mimetypeapplication/x-krita' in head[:128]:
        return _layered('Krita')
    return _layered('OpenRaster') if b'mimetypeimage/openraster' in head[:128] else _ARCHIVE


def _text_kind(head: bytes) -> Kind | None:
    if head[:2] in (b'\xff\xfe', b'\xfe\xff'):  # UTF-16
        return TEXT
    if _CONTROL.search(head):
        return None
    if re.search(rb'<svg[\s>]', head[:1024]) and head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'):
        return _unknown('SVG')
    if re.match(rb'\s*(<!doctype html|<html)', head, re.IGNORECASE):
        return Kind('a web page')
    try:
        head.decode('utf-8')
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise the end of the head cuts the last character
            return None
    return TEXT


def _tiff_kind(file: BinaryIO, head: bytes, suffix: str) -> Kind:
    """Returns the kind of a file with the header of TIFF, which may be a raw file.

    Readers that do not know raw formats would show the first page of such a file, a thumbnail.

    Sources: TIFF 6.0 (254 NewSubfileType, 255 SubfileType, 262 PhotometricInterpretation), TIFF Technical Note 1 (330
      SubIFDs), TIFF/EP (262: 32803 is a colour filter array), DNG 1.7 (50706 DNGVersion; 262: 34892 is linear raw).
    """
    if head[8:10] == b'CR':
        return _raw('Canon CR2')
    if suffix in _RAW_NAMES:
        return _raw(_RAW_NAMES[suffix])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            first = _tiff_page(file, head, None)
            offsets = first.get(330, ())
            inner = [_tiff_page(file, head, at) for at in (offsets if isinstance(offsets, tuple) else (offsets,))[:16]]
            area = [page.get(256, 0) * page.get(257, 0) for page in (first, *inner)]
            is_reduced = first.get(254, 0) & 1 or first.get(255) == 2
            has_more = bool(inner or first.next)
    except Exception:  # damaged; the decoder of the pixels will report it
        return _TIFF
    if 50706 in first:
        return _raw('DNG')
    if any(page.get(262) in (32803, 34892) for page in (first, *inner)):
        return _raw('TIFF/EP')
    if (is_reduced and has_more) or max(area) > area[0]:
        return Kind('a TIFF whose first page is only a preview of its image', advice=_CONVERT, is_original=True)
    return _TIFF


def _tiff_page(file: BinaryIO, head: bytes, offset: int | None) -> ImageFileDirectory_v2:
    """Returns the tags of the page at an offset, or of the first page for None."""
    tags = ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])
    file.seek(tags.next if offset is None else offset)
    tags.load(file)
    return tags
