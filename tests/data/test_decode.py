"""Pixels of image files: HEIC, deep and inverted greys, key colours, long metadata, limits."""

import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from dreambooth_jax.data import decode
from dreambooth_jax.data.colour import matrix_profile
from dreambooth_jax.data.decode import ImageError, decode_image, decode_mask, image_size, read_head
from tests.data.test_images import STORED, assert_shows_quarters, quarters
from tests.support.made_files import chunk, inserted, png, tags, tiff

RAMP = np.tile(np.arange(48), (40, 1))  # of 48 columns, 0 to 47


def pixels(tmp_path, data, read=decode_image):
    path = tmp_path / 'image'
    path.write_bytes(data)
    return np.asarray(read(path))


def sentence(tmp_path, data):
    with pytest.raises(ImageError) as error:
        pixels(tmp_path, data)
    return str(error.value).removeprefix(f'{tmp_path}/image ')


def heic(array, mode='RGB', *, exif=None, quality=95, **options):
    """HEIC of an array as it stands; with an EXIF orientation the file tells readers to turn it."""
    data, file = io.BytesIO(), pillow_heif.HeifFile()
    image = file.add_frombytes(mode, array.shape[1::-1], np.ascontiguousarray(array).tobytes())
    if exif is not None:
        image.info['exif'] = exif.tobytes()
    file.save(data, quality=quality, chroma=444, **options)
    return data.getvalue()


# HEIC


@pytest.mark.parametrize('orientation', STORED)
def test_heic_is_turned_once(tmp_path, orientation):
    image = Image.fromarray(quarters(64, 96))
    stored = image if STORED[orientation] is None else image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heic(np.asarray(stored), exif=exif)
    image = pixels(tmp_path, data)
    assert image.shape == (64, 96, 3) and image_size(tmp_path / 'image') == (96, 64)
    assert_shows_quarters(np.asarray(Image.fromarray(image).resize((64, 64))), 8)


def test_heic_is_shown_on_white_and_its_depth_is_met(tmp_path):
    clear = np.zeros((40, 40, 4), np.uint8)
    clear[:20, :, 3] = 255
    image = pixels(tmp_path, heic(clear, 'RGBA'))
    assert image[:18].max() < 8 and image[22:].min() > 247
    for mode, shape in (('RGB;16', (40, 40, 3)), ('I;16', (40, 40))):
        assert abs(pixels(tmp_path, heic(np.full(shape, 51400, np.uint16), mode)).mean() - 200) <= 2


def test_a_cut_or_damaged_heic_is_named(tmp_path):
    whole = heic(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for length in (50, 300, len(whole) // 2, len(whole) - 10):
        assert sentence(tmp_path, whole[:length]) == 'is truncated or damaged; replace it or take it out of its folder'
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(16, len(whole), size=10)] = rng.integers(256, size=10)
        try:
            assert pixels(tmp_path, damaged.tobytes()).ndim == 3
        except ImageError as error:
            assert str(error).startswith(f'{tmp_path}/image ')


def test_heic_is_not_made_known_to_other_users_of_pillow(tmp_path):
    before = set(Image.ID)
    pixels(tmp_path, heic(quarters()))
    assert set(Image.ID) - {'HEIF'} == before - {'HEIF'} and ('HEIF' in Image.ID) == ('HEIF' in before)


def test_heic_in_tiles_as_phones_write_it(tmp_path):
    data = heic(quarters(512, 512), tile_size=256)
    assert b'grid' in data
    assert_shows_quarters(pixels(tmp_path, data), 8)


def test_heic_without_its_reader_is_no_damaged_file(tmp_path, monkeypatch):
    data = heic(quarters())
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    assert sentence(tmp_path, data) == 'is a HEIC image, which needs the package pillow-heif; install it'


def test_an_hdr_image_is_refused(tmp_path):
    points = {'color_primaries': 9, 'transfer_characteristics': 16}
    assert sentence(tmp_path, heic(quarters(), save_nclx_profile=True, **points)) == (
        'is an HDR image (PQ), whose brightness would come out wrong; save it as an ordinary JPEG or PNG, or take it '
        'out of its folder'
    )


# Depths


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('bits', [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize('photometric', [0, 1])
def test_grey_tiffs_of_every_depth_white_or_black_as_zero(tmp_path, order, bits, photometric):
    top = 2**bits - 1
    values = RAMP * top // 47
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(planes.reshape(40, -1).astype(np.uint8), axis=1).tobytes()
    if bits == 16 and order == '<':
        packed = values.astype('<u2').tobytes()
    data = tiff((tags(48, 40, bits=(bits,), photometric=photometric), packed), order=order)
    grey = np.rint(values * 255 / top)
    expected = 255 - grey if photometric == 0 else grey
    unknown = (12, 0, '<'), (12, 0, '>'), (12, 1, '>'), (16, 0, '>')  # to Pillow
    if (bits, photometric, order) in unknown:
        assert sentence(tmp_path, data) == (
            'starts like a TIFF image but is damaged or of a rare kind; save it anew as JPEG or PNG, or take it out '
            'of its folder'
        )
    else:
        np.testing.assert_allclose(pixels(tmp_path, data)[..., 0], expected, atol=0.51)


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_deflate'])
def test_deep_inverted_grey_is_right_when_packed_too(tmp_path, compression):
    plain = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))
    image = Image.fromarray(plain)
    image.save(tmp_path / 'x.tif', compression=compression, tiffinfo={262: 0})
    assert Image.open(tmp_path / 'x.tif').tag_v2[262] == 0
    np.testing.assert_allclose(np.asarray(decode_image(tmp_path / 'x.tif'))[..., 0], 255 - plain / 257, atol=0.51)


@pytest.mark.parametrize('depth', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('key', [None, 0, 1])
def test_grey_pngs_of_every_depth_with_a_key_colour(tmp_path, depth, key):
    top = 2**depth - 1
    values = RAMP * top // 47
    chunks = [] if key is None else [chunk(b'tRNS', struct.pack('>H', key * top))]
    expected = np.rint(values * 255 / top)
    expected[values == (-1 if key is None else key * top)] = 255  # shown on white
    data = png(values[..., None], depth, 0, *chunks)
    np.testing.assert_allclose(pixels(tmp_path, data)[..., 0], expected, atol=0.51)
    if key is not None:
        on_black = np.where(values == key * top, 0, expected)
        np.testing.assert_allclose(pixels(tmp_path, data, decode_mask), on_black, atol=0.51)


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('kind', ['colour', 'colour with a key', 'grey and alpha', 'colour and alpha'])
def test_pngs_of_8_and_16_bits_show_the_same(tmp_path, depth, kind):
    scale = (2**depth - 1) // 255
    colour = np.stack([RAMP * 5, 240 - RAMP * 5, np.full_like(RAMP, 90)], axis=-1)
    alpha = np.where(RAMP < 10, 0, 255)[..., None]
    shown = {'grey and alpha': colour[..., :1].repeat(3, -1)}.get(kind, colour)
    values, number, chunks = {
        'colour': (colour, 2, []),
        'colour with a key': (np.where(RAMP[..., None] < 10, 7, colour), 2, [struct.pack('>3H', *[7 * scale] * 3)]),
        'grey and alpha': (np.concatenate([colour[..., :1], alpha], -1), 4, []),
        'colour and alpha': (np.concatenate([colour, alpha], -1), 6, []),
    }[kind]
    data = png(values * scale, depth, number, *(chunk(b'tRNS', body) for body in chunks))
    expected = shown if kind == 'colour' else np.where(RAMP[..., None] < 10, 255, shown)
    np.testing.assert_allclose(pixels(tmp_path, data), expected, atol=1)


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('channels', [3, 4])
def test_deep_colour_tiffs_show_their_colours(tmp_path, order, channels):
    values = np.stack([RAMP * 5, 240 - RAMP * 5, np.full_like(RAMP, 90), np.where(RAMP < 10, 0, 255)][:channels], -1)
    more = {'t338': 2} if channels == 4 else {}
    page = tags(48, 40, bits=(16,) * channels, **more), (values * 257).astype(f'{order}u2').tobytes()
    data = tiff(page, order=order)
    expected = values[..., :3] if channels == 3 else np.where(RAMP[..., None] < 10, 255, values[..., :3])
    np.testing.assert_allclose(pixels(tmp_path, data), expected, atol=1)


@pytest.mark.parametrize(
    ('bits', 'format', 'words'),
    [(32, 3, 'floating-point'), (32, 1, '32-bit'), (32, 2, '32-bit'), (16, 2, 'signed')],
)
def test_values_of_no_photo_are_refused(tmp_path, bits, format, words):
    data = tiff((tags(4, 4, bits=(bits,), photometric=1, t339=format), bytes(16 * bits // 8)))
    assert sentence(tmp_path, data) == f'holds {words} values; save it with 8 or 16 bits per channel'


# Metadata and limits


LONG = 2_000_000
CHUNKS = {
    'zTXt': b'w\0\0' + zlib.compress(b'x' * LONG),
    'iTXt': b'w\0\1\0\0\0' + zlib.compress(b'x' * LONG),
    'iCCP': b'p\0\0' + zlib.compress(b'x' * LONG),
    'tEXt': b'w\0' + b'x' * LONG,
}


@pytest.mark.parametrize('name', CHUNKS)
def test_long_metadata_does_not_cost_a_photo(tmp_path, name):
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    plain = png(quarters().astype(int), 8, 2)
    image = pixels(tmp_path, inserted(plain, chunk(name.encode(), CHUNKS[name])))
    np.testing.assert_array_equal(image, quarters())
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_metadata_behind_the_pixels_is_read_over_too(tmp_path):
    plain = png(quarters().astype(int), 8, 2)
    data = plain[:-12] + chunk(b'zTXt', CHUNKS['zTXt']) + plain[-12:]
    np.testing.assert_array_equal(pixels(tmp_path, data), quarters())


def test_limits_are_put_back_when_the_last_reader_leaves():
    before = PngImagePlugin.MAX_TEXT_CHUNK
    inside, leave = threading.Event(), threading.Event()

    def reader():
        with decode._LIMITS:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=reader)
    thread.start()
    inside.wait(5)
    with decode._LIMITS:
        pass
    assert PngImagePlugin.MAX_TEXT_CHUNK > before
    leave.set()
    thread.join()
    assert PngImagePlugin.MAX_TEXT_CHUNK == before


def test_a_cut_exif_block_turns_nothing_and_costs_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a description' * 9
    whole = exif.tobytes()
    for length in range(6, len(whole), 7):
        Image.fromarray(quarters()).save(tmp_path / 'x.png', exif=whole[:length])
        assert decode_image(tmp_path / 'x.png').size == (64, 64)


def test_a_phones_200_million_pixels_pass_and_more_are_named(tmp_path, monkeypatch):
    assert decode.MAX_PIXELS > 16320 * 12240
    data = io.BytesIO()
    Image.new('L', (2000, 2000)).save(data, 'PNG')
    for limit in (3_000_000, 1_000_000):  # past twice the limit Pillow itself refuses
        monkeypatch.setattr(decode, 'MAX_PIXELS', limit)
        assert sentence(tmp_path, data.getvalue()) == (
            f'is an image of more than {limit // 10**6} million pixels; scale it down or take it out of its folder'
        )


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP', 'AVIF'])
@pytest.mark.parametrize('orientation', STORED)
def test_every_format_is_turned_upright_once(tmp_path, kind, orientation):
    exif, image = Image.Exif(), Image.fromarray(quarters(40, 60))
    exif[0x0112] = orientation
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    image.save(tmp_path / 'x', kind, exif=exif)
    image = decode_image(tmp_path / 'x')
    assert image.size == image_size(tmp_path / 'x') == (60, 40)
    assert_shows_quarters(np.asarray(image.resize((64, 64))), 12)


def test_the_reader_of_heic_is_not_imported_before_it_is_needed():
    code = 'import sys, dreambooth_jax.data.subjects; print("pillow_heif" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


def test_a_bent_byte_gives_an_image_or_a_sentence_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    files = {'heic': heic(quarters(40, 40)), 'png': png(quarters(40, 40).astype(int), 8, 2)}
    files['raw.tif'] = tiff((tags(16, 12, t254=1), bytes(576)), inner=[(tags(20, 16), bytes(960))])
    files['grey.tif'] = tiff((tags(48, 40, bits=(16,), photometric=0), RAMP.astype('<u2').tobytes()))
    for kind in ('JPEG', 'WEBP', 'AVIF', 'GIF', 'BMP', 'JPEG2000', 'PPM'):
        data = io.BytesIO()
        Image.fromarray(quarters(40, 40)).save(data, kind)
        files[kind] = data.getvalue()
    for name, whole in files.items():
        path = tmp_path / name
        for _ in range(12):
            bent = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
            for index in rng.integers(min(len(bent), rng.choice([64, len(bent)])), size=3):
                bent[index] = rng.integers(256)
            path.write_bytes(bytes(bent))
            try:
                image_size(path)
                assert decode_image(path).mode == 'RGB'
            except ImageError as error:
                assert str(error).startswith(f'{path} ')


# What a file says about itself, and images at a part of their size


@pytest.mark.parametrize('orientation', [None, *STORED])
@pytest.mark.parametrize('format', ['JPEG', 'HEIF'])
def test_the_head_says_how_the_image_lies_in_its_file(tmp_path, format, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if format == 'HEIF':
        (tmp_path / 'image').write_bytes(heic(quarters(64, 96), exif=exif if orientation else None))
    else:
        Image.fromarray(quarters(64, 96)).save(tmp_path / 'image', 'JPEG', exif=exif)
    head = read_head(tmp_path / 'image')
    assert head.size == image_size(tmp_path / 'image') and head.format == format and head.profile is None
    assert head.is_turned == (orientation not in (None, 1)) and head.data == (tmp_path / 'image').read_bytes()


def test_the_head_names_the_profile_from_which_colours_are_converted(tmp_path):
    display_p3, srgb = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
    for mode in ('RGB', 'RGBA', 'P'):
        image = Image.new(mode, (8, 8))
        for profile, name in ((matrix_profile(display_p3), 'CICP'), (matrix_profile(srgb), None), (b'broken', None)):
            image.save(tmp_path / 'image.png', icc_profile=profile)
            assert read_head(tmp_path / 'image.png').profile == name
    with pytest.raises(ImageError, match='is text, not an image'):
        (tmp_path / 'text').write_text('a dog')
        read_head(tmp_path / 'text')


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_if_that_is_enough(tmp_path):
    image = Image.fromarray(quarters(800, 1200))
    image.save(tmp_path / 'image.jpg')
    image.save(tmp_path / 'image.png')
    for enough, size in ((None, (1200, 800)), (700, (1200, 800)), (400, (600, 400)), (100, (150, 100))):
        decoded = decode_image(tmp_path / 'image.jpg', enough)
        assert decoded.size == size and decoded.mode == 'RGB'
        assert_shows_quarters(np.asarray(decoded.resize((64, 64))), 8)
    assert decode_image(tmp_path / 'image.png', 100).size == (1200, 800)
