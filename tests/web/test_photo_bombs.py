"""Small files that say they are huge images are refused by their size in pixels, before anything of them is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from dreambooth_jax.data import decode
from dreambooth_jax.web import photos as photos_module
from dreambooth_jax.web.photos import MOST_PIXELS, PhotoError, Photos
from tests.support import made_files
from tests.support.served import image_bytes

WIDTH, HEIGHT = 12_000, 9_000  # more than is taken, and less than data/decode.py itself refuses


def png(width, height):
    """A black PNG of one bit a pixel, whole and 1000 times smaller than its pixels."""
    body = zlib.compress((b'\0' + bytes(width // 8)) * height)
    head = made_files.chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + made_files.chunk(b'IDAT', body) + made_files.chunk(b'IEND', b'')


def tiff(width, height):
    """A black TIFF of one bit a pixel, whole and deflated."""
    tags = made_files.tags(width, height, bits=(1,), photometric=1, t259=8)
    return made_files.tiff((tags, zlib.compress(bytes(width // 8 * height))))


def heic(width, height):
    """A HEIC of 64 x 64 pixels whose size, wherever it is written, is another."""
    heif = pytest.importorskip('pillow_heif')
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(np.zeros((64, 64, 3), np.uint8))).save(file)
    small, large = (b'ispe' + struct.pack('>III', 0, *size) for size in ((64, 64), (width, height)))
    assert small in file.getvalue()
    return file.getvalue().replace(small, large)


def gif(width, height):
    """A GIF whose screen is larger than its only frame."""
    small = image_bytes(8, 8, 'GIF')
    return small[:6] + struct.pack('<HH', width, height) + small[10:]


BOMBS = {'png': png, 'tiff': tiff, 'heic': heic, 'gif': gif}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Photos of which one is there; no further one can be decoded."""
    made = Photos(tmp_path / 'photos')
    made.create('rex')
    made.add('rex', image_bytes(60, 40), 'x')

    def decoded(*_, **__):
        raise AssertionError('it is decoded')

    monkeypatch.setattr(ImageFile.ImageFile, 'load', decoded)
    monkeypatch.setattr(decode, 'decode_image', decoded)
    return made


@pytest.mark.parametrize('kind', BOMBS)
@pytest.mark.parametrize(
    ('size', 'status', 'told'),
    [
        ((WIDTH, HEIGHT), 413, f'bomb.{{}} has more than {MOST_PIXELS // 10**6} million pixels; scale it down'),
        ((60_000, 60_000), 422, 'is an image of more than 250 million pixels; scale it down'),
    ],
    ids=['large', 'huge'],
)
@pytest.mark.parametrize('use', ['photo', 'mask'])
def test_a_bomb_is_refused_before_it_is_decoded(kind, size, status, told, use, photos):
    # A whole file of the huge size would take long to make; what it says of its size is all that is read.
    data = BOMBS[kind](*size) if size[0] == WIDTH or kind in ('heic', 'gif') else patched(kind, *size)
    assert len(data) < 2**20
    before = sorted(path.name for path in photos.folder('rex').iterdir())
    with pytest.raises(PhotoError) as error:
        if use == 'photo':
            photos.add('rex', data, f'bomb.{kind}')
        else:
            photos.set_mask('rex', '001.png', data, f'bomb.{kind}')
    assert error.value.status == status and told.format(kind) in str(error.value), str(error.value)
    assert sorted(path.name for path in photos.folder('rex').iterdir()) == before


def patched(kind, width, height):
    """The bomb of a small size, of which the head says another."""
    data = BOMBS[kind](64, 8)
    if kind == 'png':
        return data[:16] + made_files.chunk(b'IHDR', struct.pack('>II', width, height) + data[24:29])[8:] + data[33:]
    return made_files.tiff((made_files.tags(width, height, bits=(1,), photometric=1, t259=8), b'\0' * 8))


def test_what_is_decoded_here_would_not_have_been_a_bomb(tmp_path):
    """The files are whole: the same ones of fewer pixels are taken."""
    made = Photos(tmp_path / 'photos')
    made.create('rex')
    for kind in ('png', 'tiff'):
        assert made.add('rex', BOMBS[kind](640, 480), f'x.{kind}').width == 640
    assert made.add('rex', heic(64, 64), 'x.heic').height == 64


def test_heads_are_read_one_at_a_time(photos, monkeypatch):
    """A head may unpack hundreds of megabytes of text."""
    read = []

    def image_size(path):
        read.append(photos_module._reading.locked())
        return 60, 40

    monkeypatch.setattr(decode, 'image_size', image_size)
    monkeypatch.setattr(decode, 'decode_image', lambda path: None)
    photos.add('rex', image_bytes(60, 40), 'y')
    assert [one.width for one in photos.photos_in('rex')] == [60, 60] and read == [True] * 3
