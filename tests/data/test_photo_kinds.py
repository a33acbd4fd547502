"""The gate for photos: what is read, what is a photo that cannot be read, and what is none; by content before name."""

import io
import os
import struct

import pillow_heif
import pytest
from PIL import Image

from dreambooth_jax.data import photo_kinds
from tests.support.made_files import tags, tiff


def box(*brands):
    names = b'ftyp' + brands[0] + bytes(4) + b''.join(brands[1:])
    return struct.pack('>I', 4 + len(names)) + names + bytes(99)


def written(format):
    data = io.BytesIO()
    image = Image.new('RGB', (8, 6), 'red')
    if format == 'HEIF':
        pillow_heif.from_pillow(image).save(data)
    else:
        image.save(data, format)
    return data.getvalue()


FORMATS = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'HEIF', 'GIF', 'TIFF', 'BMP', 'JPEG2000', 'PPM')
THUMBNAIL, WHOLE = (tags(16, 12, t254=1), bytes(576)), (tags(80, 60), bytes(14400))
RAW = {  # bytes and name -> words
    'DNG by its tag': (tiff((tags(16, 12, t50706=1), bytes(576))), 'x', 'DNG'),
    'DNG by its name': (tiff(WHOLE), 'x.DNG', 'DNG'),
    'colour filter array inside': (
        tiff(THUMBNAIL, inner=[(tags(80, 60, bits=(16,), photometric=32803), bytes(9600))]),
        'x.tif',
        'TIFF/EP',
    ),
    'NEF': (tiff(THUMBNAIL, inner=[WHOLE], order='>'), 'x.nef', 'Nikon NEF'),
    'CR2': (b'II*\0\x10\0\0\0CR\2\0' + bytes(50), 'x', 'Canon CR2'),
    'CR3': (box(b'crx ', b'isom'), 'x', 'Canon CR3'),
    'RAF': (b'FUJIFILMCCD-RAW 0201\0\0', 'x', 'Fujifilm RAF'),
    'ORF': (b'IIRO\x08\0\0\0', 'x', 'Olympus ORF'),
    'RW2': (b'IIU\0\x18\0\0\0', 'x', 'Panasonic RW2'),
    'X3F': (b'FOVb' + bytes(9), 'x', 'Sigma X3F'),
    'KDC by name alone': (b'\0\1\2\3\x80', 'x.kdc', 'Kodak KDC'),
}
UNREADABLE = {
    'PSD': (b'8BPS\0\1' + bytes(20), 'x.jpg', 'a file with layers (Photoshop)'),
    'XCF': (b'gimp xcf v011\0', 'x', 'a file with layers (GIMP)'),
    'KRA': (b'PK\3\4' + bytes(26) + b'mimetypeapplication/x-krita', 'x', 'a file with layers (Krita)'),
    'JPEG XL': (b'\xff\x0a\xfa\x1f', 'x', 'an image in the format JPEG XL'),
    'JPEG XL in a box': (b'\0\0\0\x0cJXL \r\n\x87\n', 'x', 'an image in the format JPEG XL'),
    'EXR': (b'\x76\x2f\x31\x01\2\0\0\0', 'x', 'an image in the format OpenEXR'),
    'SVG': (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', 'x', 'an image in the format SVG'),
    'preview first': (tiff(THUMBNAIL, WHOLE), 'x.tif', 'a TIFF whose first page is only a preview of its image'),
    'small first': (
        tiff((tags(16, 12), bytes(576)), inner=[WHOLE]),
        'x.tif',
        'a TIFF whose first page is only a preview of its image',
    ),
}
BROKEN_PROMISES = {
    'text.jpg': (b'hello', 'text'),
    'page.webp': (b'<!DOCTYPE html><html>', 'a web page'),
    'empty.png': (b'', 'an empty file'),
    'film.HEIC': (box(b'qt  '), 'a video or audio file'),
    'packed.jpeg': (b'PK\3\4' + bytes(60), 'an archive'),
    'headless.jpg': (b'\x03\x9a\x00\x81' * 9, 'damaged, or in a format that is not known here'),
    'x.tga': (b'\0\0\2\0\0\0', 'damaged, or in a format that is not known here'),
    'note.dng': (b'hello', 'text'),
}
NO_PHOTOS = {
    'notes.md': (b'notes', 'text'),
    'dds.md': (b'DDS textures are elsewhere', 'text'),
    'bmw.txt': (b'BMW parked in the snow', 'text'),
    'p3.txt': (b'P3 is a gamut of 3 primaries', 'text'),
    'wide.txt': 'a sks dog'.encode('utf-16'),
    'cut.txt': (b'a' * 4095 + 'é'.encode(), 'text'),
    'IMG_1.MOV': (box(b'qt  '), 'a video or audio file'),
    'old.mov': (bytes(4) + b'moov' + bytes(20), 'a video or audio file'),
    'clip.avi': (b'RIFF\0\0\0\0AVI LIST', 'a video or audio file'),
    'IMG_1.AAE': (b'<?xml version="1.0"?><plist/>', 'edits of Apple Photos, which are not applied'),
    'IMG_1.xmp': (b'<x:xmpmeta/>', 'edits or notes of a photo program, which are not applied'),
    'meta.json': (b'{}', 'data of another program (captions are read from .txt and .caption files)'),
    'dog.npz': (b'PK\3\4' + bytes(60), 'a cache of another program'),
    'photos.zip': (b'PK\3\4' + bytes(60), 'an archive'),
    'form.pdf': (b'%PDF-1.7\n%\xe2\xe3\xcf\xd3', 'a document'),
    'Thumbs.db': (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1' + bytes(20), 'not an image'),
    'folder.ico': (b'\0\0\1\0\1\0', 'an icon'),
    'nothing': (b'', 'an empty file'),
}


def kind(data, name):
    return photo_kinds.kind_of(io.BytesIO(data), name)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('name', ['x', 'x.jpg', 'x.txt'])
def test_an_image_is_known_by_its_content_whatever_its_name(format, name):
    found = kind(written(format), name)
    assert found.format == format and found.advice is None


@pytest.mark.parametrize('case', RAW)
def test_raw_files_are_not_read_as_their_thumbnails(case):
    data, name, words = RAW[case]
    found = kind(data, name)
    assert found.format is None and found.is_original
    assert photo_kinds.refusal('x.raw', found) == (
        f'x.raw is a camera raw file ({words}), which cannot be read; export it from your raw converter as JPEG, PNG '
        f'or TIFF, or take it out of its folder'
    )


@pytest.mark.parametrize('case', UNREADABLE)
def test_images_that_cannot_be_read_are_named_and_what_to_do(case):
    data, name, words = UNREADABLE[case]
    found = kind(data, name)
    assert found.format is None and photo_kinds.refusal('x', found) == (
        f'x is {words}, which cannot be read; save it as JPEG or PNG, or take it out of its folder'
    )


@pytest.mark.parametrize('order', ['<', '>'])
def test_ordinary_tiffs_pass(order):
    smaller = (tags(16, 12, t254=1), bytes(576))
    for data in (
        tiff(WHOLE, order=order),
        tiff(WHOLE, smaller, order=order),
        tiff(WHOLE, inner=[smaller], order=order),
        tiff(THUMBNAIL, order=order),
    ):
        assert kind(data, 'x.tif').format == 'TIFF'
    assert kind(tiff(WHOLE)[:40], 'x.tif').format == 'TIFF'  # cut: its reader will say so


@pytest.mark.parametrize('brands', [[b'heic'], [b'mif1', b'heic'], [b'mif1', b'miaf'], [b'heix'], [b'msf1', b'hevc']])
def test_heic_goes_by_any_of_its_brands(brands):
    assert kind(box(*brands), 'x').format == 'HEIF'
    assert kind(box(b'mif1', b'avif', b'miaf'), 'x').format == 'AVIF'


@pytest.mark.parametrize('name', BROKEN_PROMISES)
def test_a_name_that_promises_a_photo_is_held_to_it(name):
    data, words = BROKEN_PROMISES[name]
    found = kind(data, name)
    assert found.format is None and photo_kinds.refusal(name, found) == (
        f'{name} is named like a photo but is {words}; replace it or take it out of its folder'
    )


@pytest.mark.parametrize('name', NO_PHOTOS)
def test_what_is_no_photo_is_said_in_a_word(name):
    data, words = NO_PHOTOS[name] if isinstance(NO_PHOTOS[name], tuple) else (NO_PHOTOS[name], 'text')
    assert kind(data, name) == photo_kinds.Kind(words)


def test_folders_pipes_and_what_cannot_be_opened(tmp_path):
    (tmp_path / 'more.jpg').mkdir()
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'gone').symlink_to('nowhere')
    (tmp_path / 'gone.jpg').symlink_to('nowhere')
    assert photo_kinds.look(tmp_path / 'more.jpg') == photo_kinds.FOLDER
    assert photo_kinds.look(tmp_path / 'pipe.jpg') == photo_kinds.SPECIAL
    assert photo_kinds.look(tmp_path / 'gone') == photo_kinds.Kind('not readable (No such file or directory)')
    assert photo_kinds.look(tmp_path / 'gone.jpg').advice == 'replace it or take it out of its folder'
