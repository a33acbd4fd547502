"""Bends of a folder of photos for the fuzz tests: each changes bytes, format, name or side file of one photo."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.fuzz_world import NAMES, SIDE, Expected, Seen, World, photo

LOSSLESS, LOSSY = 0, 20  # largest difference of the mean colours from those of the original photos, of 255


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    if kind == 'HEIF':
        import pillow_heif

        data = io.BytesIO()
        pillow_heif.from_pillow(image).save(data, quality=95)
        return data.getvalue()
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def same_images(tolerance: float, count: int = len(NAMES)):
    """Checks that the run sees the original photos, the bent one within a tolerance of the mean colour."""

    def check(world: World, seen: Seen) -> None:
        wanted = np.stack([np.asarray(photo(seed)) for seed in range(count)])
        assert len(seen.images) == count
        # The mean over a whole image does not depend on the size at which the model generates.
        mean = lambda images: images.reshape(count, -1, 3).mean(1)  # noqa: E731
        assert np.abs(mean(seen.images.astype(float)) - mean(wanted.astype(float))).max() <= max(tolerance, 2)

    return check


def all_counted(world: World, seen: Seen) -> None:
    """Checks that every photo is used."""
    assert len(seen.images) == len(NAMES)


def first(world: World, suffix: str = '.png'):
    """Returns the path of the photo that is bent, after giving it another extension."""
    path = world.photos / f'{NAMES[0]}.png'
    if suffix != '.png':
        path = path.rename(path.with_suffix(suffix))
    return path


def flipped_bytes(world, rng):
    kind, suffix = [('PNG', '.png'), ('JPEG', '.jpg'), ('WEBP', '.webp'), ('TIFF', '.tif'), ('HEIF', '.heic')][
        rng.integers(5)
    ]
    path = first(world, suffix)
    data = bytearray(encoded(photo(0), kind))
    for index in rng.integers(0, len(data), rng.integers(1, 6)):
        data[index] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    return Expected(None, (path.name,), all_counted)


def cut_short(world, rng):
    kind, suffix = [
        ('PNG', '.png'),
        ('JPEG', '.jpg'),
        ('WEBP', '.webp'),
        ('GIF', '.gif'),
        ('HEIF', '.heic'),
        ('AVIF', '.avif'),
    ][rng.integers(6)]
    path = first(world, suffix)
    data = encoded(photo(0), kind)
    path.write_bytes(data[: rng.integers(0, len(data) - 12)])
    return Expected(None, (path.name,), all_counted)


def more_bytes(world, rng):
    path = first(world)
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 200))))
    return Expected(0, check=same_images(LOSSLESS))


def other_content(world, rng):
    contents = [
        b'',
        b'a dog',
        b'<!doctype html><html></html>',
        b'PK\3\4' + rng.bytes(60),
        b'%PDF-1.7\n',
        rng.bytes(200),
        b'\0' * 100,
        b'{"a": 1}',
    ]
    path = first(world, ['.png', '.jpg', '.JPEG', '.heic', '.webp', '.tiff'][rng.integers(6)])
    path.write_bytes(contents[rng.integers(len(contents))])
    return Expected(1, (path.name,))


def no_photo_beside(world, rng):
    name, content = [
        ('notes.md', b'a note'),
        ('Thumbs.db', b'\xd0\xcf\x11\xe0'),
        ('clip.mp4', b'\0\0\0 ftypisom'),
        ('list.csv', b'1'),
        ('more.zip', b'PK\3\4'),
        ('settings.json', b'{}'),
        ('1.aae', b'<plist/>'),
        ('1.mov', b'\0\0\0\x14ftypqt  '),
        ('.DS_Store', b'\0\0\0\1Bud1'),
    ][rng.integers(9)]
    (world.photos / name).write_bytes(content)
    return Expected(0, check=same_images(LOSSLESS))


def folder_beside(world, rng):
    (world.photos / ['old', 'old.png', 'old.jpg'][rng.integers(3)]).mkdir()
    return Expected(None, ('old',), all_counted)


def other_kind(world, rng):
    image = photo(0)
    kinds = [
        ('PNG', '.png', {}, LOSSLESS),
        ('BMP', '.bmp', {}, LOSSLESS),
        ('TIFF', '.tif', {}, LOSSLESS),
        ('PPM', '.ppm', {}, LOSSLESS),
        ('WEBP', '.webp', {'lossless': True}, LOSSLESS),
        ('JPEG', '.jpg', {'quality': 95}, LOSSY),
        ('AVIF', '.avif', {'quality': 95}, LOSSY),
        ('HEIF', '.heic', {}, LOSSY),
        ('JPEG2000', '.jp2', {}, LOSSLESS),
        ('GIF', '.gif', {}, LOSSY),
    ]
    kind, suffix, options, tolerance = kinds[rng.integers(len(kinds))]
    if rng.integers(3) == 0:  # an extension of another format
        suffix = ['.png', '.jpg', '.webp'][rng.integers(3)]
    path = first(world, suffix)
    path.write_bytes(encoded(image, kind, **options))
    return Expected(0, check=same_images(tolerance))


def other_mode(world, rng):
    image = photo(0)
    mode = ['RGBA', 'P', 'CMYK', 'RGB;16'][rng.integers(4)]
    path = first(world, '.tif' if mode == 'CMYK' else '.png')
    if mode == 'RGB;16':
        path.write_bytes(png16(np.asarray(image)))
    else:
        image.convert(mode).save(path)
    return Expected(0, check=same_images(LOSSY if mode == 'P' else 3))


def png16(pixels: np.ndarray) -> bytes:
    """Returns a PNG with 16 bits per channel, which Pillow cannot write."""
    rows = (pixels.astype('>u2') * 257).reshape(len(pixels), -1)
    data = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rows)
    head = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def grey(world, rng):
    level = int(rng.integers(30, 226))
    mode = ['L', 'LA', 'I;16', 'I;16 tRNS'][rng.integers(4)]
    path = first(world)
    if mode.startswith('I;16'):
        options = {'transparency': 0} if 'tRNS' in mode else {}
        Image.fromarray(np.full((SIDE, SIDE), level * 257, np.uint16)).save(path, **options)
    else:
        Image.new('L', (SIDE, SIDE), level).convert(mode).save(path)

    def check(world, seen):
        all_counted(world, seen)
        assert abs(seen.images[0].astype(float).mean() - level) <= 1

    return Expected(0, check=check)


def turned(world, rng):
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 11))  # only 1 to 8 are legal
    path = first(world, '.jpg')
    photo(0).save(path, 'JPEG', exif=exif, quality=95)
    return Expected(0, check=same_images(LOSSY))


def long_metadata(world, rng):
    path = first(world)
    body = zlib.compress(b'x' * 2_000_000)
    kind, head = [(b'zTXt', b'w\0\0'), (b'iTXt', b'w\0\1\0\0\0'), (b'iCCP', b'p\0\0')][rng.integers(3)]
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk(kind, head + body) + data[33:])
    return Expected(0, check=same_images(LOSSLESS))


def unreadable_kind(world, rng):
    heads = [
        ('.psd', b'8BPS\0\1' + bytes(60)),
        ('.jxl', b'\xff\x0a' + rng.bytes(60)),
        ('.cr3', b'\0\0\0\x18ftypcrx ' + rng.bytes(60)),
        ('.heic', struct.pack('>I', 24) + b'ftypheic' + bytes(4) + b'mif1heic' + rng.bytes(100)),
        ('.raf', b'FUJIFILMCCD-RAW ' + rng.bytes(60)),
        ('.cr2', b'II*\0\x10\0\0\0CR\2\0' + rng.bytes(60)),
        ('.jxl', b'\0\0\0\x0cJXL \r\n\x87\n' + rng.bytes(60)),
    ]
    suffix, content = heads[rng.integers(len(heads))]
    path = first(world, suffix)
    path.write_bytes(content)
    return Expected(1, (path.name,))


def too_small(world, rng):
    path = first(world)
    photo(0, int(rng.integers(1, 8))).save(path)
    return Expected(1, (path.name, 'smaller'))


def caption(world, rng):
    suffix = ['.txt', '.TXT', '.Txt', '.caption'][rng.integers(4)]
    (world.photos / f'{NAMES[0]}{suffix}').write_bytes(
        [b'a sks dog on a rug', b'\xef\xbb\xbfa sks dog', b'a sks dog\r\n', 'a sks dog, naïve'.encode()][
            rng.integers(4)
        ]
    )
    return Expected(0, check=same_images(LOSSLESS))


def bad_caption(world, rng):
    name = f'{NAMES[0]}.txt'
    (world.photos / name).write_bytes([b'', b' \n ', b'\xff\xfe\xfa', 'a dog'.encode('utf-16')][rng.integers(4)])
    return Expected(1, (name,))


def caption_of_nothing(world, rng):
    (world.photos / ['9.txt', '9.caption', 'readme.txt'][rng.integers(3)]).write_text('a sks dog')
    return Expected(0, check=same_images(LOSSLESS))


def mask(world, rng):
    name = f'{NAMES[0]}{[".mask", "-masklabel", ".MASK"][rng.integers(3)]}.png'
    values = np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.integers(0, SIDE - 6, 2)
    values[top : top + 6, left : left + 6] = 255
    Image.fromarray(values).save(world.photos / name)
    world.arguments.append(f'--config.data.crops={rng.integers(1, 4)}')

    def check(world, seen):
        assert len(seen.images) % len(NAMES) == 0

    return Expected(0, check=check)


def bad_mask(world, rng):
    kind = rng.integers(4)
    name = f'{NAMES[0]}{[".mask", "-masklabel"][rng.integers(2)]}.png'
    path = world.photos / name
    if kind == 0:
        Image.new('L', (SIDE, SIDE), 0).save(path)
    elif kind == 1:
        Image.new('L', (SIDE + 1, SIDE), 255).save(path)
    elif kind == 2:
        path.write_bytes(b'no image')
    else:
        path = world.photos / name.replace(NAMES[0], '9')
        Image.new('L', (SIDE, SIDE), 255).save(path)
    return Expected(1, (path.name,))


def odd_name(world, rng):
    path = world.photos / f'{NAMES[0]}.png'
    name = [
        'a dog (1).png',
        'собака.png',
        '犬.PNG',
        'no_extension',
        ' .png',
        "it's.png",
        '%s.png',
        'x' * 200 + '.png',
        '-v.png',
        '*.png',
    ][rng.integers(10)]
    path.rename(path.with_name(name))
    return Expected(0, check=all_counted)


def one_stem_twice(world, rng):
    photo(5).save(world.photos / f'{NAMES[0]}.bmp')
    if rng.integers(2):
        (world.photos / f'{NAMES[0]}.txt').write_text('a sks dog')
        return Expected(None, (NAMES[0],), lambda world, seen: None)

    def check(world, seen):
        assert len(seen.images) == len(NAMES) + 1

    return Expected(0, check=check)


def empty_folder(world, rng):
    for path in world.photos.iterdir():
        path.unlink()
    if rng.integers(2):
        (world.photos / 'notes.txt').write_text('later')
    return Expected(1, ('photos',))


BENDS = [
    flipped_bytes,
    cut_short,
    more_bytes,
    other_content,
    no_photo_beside,
    folder_beside,
    other_kind,
    other_mode,
    grey,
    turned,
    long_metadata,
    unreadable_kind,
    too_small,
    caption,
    bad_caption,
    caption_of_nothing,
    mask,
    bad_mask,
    odd_name,
    one_stem_twice,
    empty_folder,
]
