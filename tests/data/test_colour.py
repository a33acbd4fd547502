"""Colour profiles: what a photo shows under its own is what it shows in sRGB; without one nothing is touched."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_jax.data import colour
from dreambooth_jax.data.decode import decode_image, decode_mask
from tests.data.test_decode import heic
from tests.support.made_files import chunk, cmyk_profile, grey_profile, inserted, png

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
ADOBE = colour.matrix_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), (2.19921875,))
SRGB_AS_MATRIX = colour.matrix_profile(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))
P3 = colour.cicp_profile(12)
# Linear light to linear sRGB, from the primaries' published chromaticities; white is D65 in both.
TO_SRGB = {
    'P3': [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]],
    'Adobe': [[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]],
}
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
BLOCKS = COLOURS.repeat(8, 0).repeat(8, 1)


def decoded_srgb(values):
    values = np.asarray(values) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded_srgb(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def expected(values, name):
    light = decoded_srgb(values) if name == 'P3' else (np.asarray(values) / 255) ** 2.19921875
    return encoded_srgb(light @ np.array(TO_SRGB[name]).T)


def middles(image):
    return np.asarray(image, float)[4::8, 4::8]


@pytest.mark.parametrize('name', ['P3', 'Adobe'])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'HEIF', 'palette'])
def test_colours_under_a_profile_come_out_in_srgb(tmp_path, name, kind):
    path, profile = tmp_path / 'x', {'P3': P3, 'Adobe': ADOBE}[name]
    if kind == 'HEIF':
        path.write_bytes(heic(BLOCKS, quality=100, icc_profile=profile, icc_profile_type='prof'))
    elif kind == 'palette':
        Image.fromarray(BLOCKS).quantize(64).save(path, 'PNG', icc_profile=profile)
    else:
        lossy = {
            'JPEG': {'quality': 100, 'subsampling': 0},
            'WEBP': {'lossless': True},
            'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
        }
        Image.fromarray(BLOCKS).save(path, kind, icc_profile=profile, **lossy.get(kind, {}))
    exact = kind in ('PNG', 'WEBP', 'TIFF')
    difference = np.abs(middles(decode_image(path)) - expected(COLOURS, name))
    assert difference.max() <= (1 if exact else 24) and difference.mean() < (0.5 if exact else 3)
    untouched = np.abs(middles(BLOCKS) - expected(COLOURS, name))
    assert untouched.mean() > 2 * difference.mean()


@pytest.mark.parametrize('profile', [None, SRGB, SRGB_AS_MATRIX, b''])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'LA', '1'])
def test_srgb_by_any_name_leaves_every_pixel_alone(tmp_path, profile, mode):
    image = Image.fromarray(BLOCKS).convert(mode)
    image.save(tmp_path / 'plain.png')
    image.save(tmp_path / 'named.png', **({} if profile is None else {'icc_profile': profile}))
    plain, named = (np.asarray(decode_image(tmp_path / f'{name}.png')) for name in ('plain', 'named'))
    np.testing.assert_array_equal(named, plain)
    np.testing.assert_array_equal(plain, np.asarray(image.convert('RGB')))


def test_transparency_stays_where_it_was_under_a_profile(tmp_path):
    clear = Image.fromarray(BLOCKS)
    clear.putalpha(Image.fromarray((np.arange(64) < 32).astype(np.uint8)[:, None].repeat(64, 1) * 255))
    clear.save(tmp_path / 'x.png', icc_profile=P3)
    image = np.asarray(decode_image(tmp_path / 'x.png'), float)
    assert np.abs(image[4:32:8, 4::8] - expected(COLOURS[:4], 'P3')).max() <= 1 and image[32:].min() == 255


@pytest.mark.parametrize('mode', ['L', 'LA', 'I;16'])
def test_grey_under_a_grey_profile(tmp_path, mode):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == 'I;16' else Image.fromarray(ramp).convert(mode)
    image.save(tmp_path / 'x.png', icc_profile=grey_profile(1.0))
    light = encoded_srgb(np.arange(256) / 255)
    image = np.asarray(decode_image(tmp_path / 'x.png'), float)
    assert np.abs(image[3] - light[:, None]).max() <= 1.5


def test_cmyk_under_its_profile_and_without_one(tmp_path):
    """A printer's magenta ink that is green: the plain complement would show it magenta."""
    inks = cmyk_profile(lambda c, m, y, k: (0, 0, 0) if k else (60, -60, 50) if m else (100, 0, 0))
    magenta = np.zeros((16, 16, 4), np.uint8)
    magenta[:, :8, 1] = 255
    image = Image.fromarray(magenta, 'CMYK')
    for kind in ('JPEG', 'TIFF'):
        image.save(tmp_path / 'x', kind, icc_profile=inks)
        red, green, blue = np.asarray(decode_image(tmp_path / 'x'), int)[8, 3]
        assert green > 140 > 60 > red and blue < 90
        assert np.asarray(decode_image(tmp_path / 'x'))[8, 12].min() > 250
        image.save(tmp_path / 'x', kind)
        np.testing.assert_array_equal(decode_image(tmp_path / 'x'), Image.open(tmp_path / 'x').convert('RGB'))


@pytest.mark.parametrize('points', [(12, 13), (12, 1), (1, 13), (2, 2)])
def test_colours_named_by_code_points(tmp_path, points):
    """As HEIC, AVIF and PNG may have them in the place of a profile."""
    primaries, transfer = points
    wanted = expected(COLOURS, 'P3') if primaries == 12 else COLOURS
    data = inserted(png(BLOCKS.astype(int), 8, 2), chunk(b'cICP', bytes((primaries, transfer, 0, 1))))
    (tmp_path / 'x.png').write_bytes(data)
    assert np.abs(middles(decode_image(tmp_path / 'x.png')) - wanted).max() <= 1
    options = {'color_primaries': primaries, 'transfer_characteristics': transfer, 'save_nclx_profile': True}
    (tmp_path / 'x.heic').write_bytes(heic(BLOCKS, quality=100, **options))
    assert np.abs(middles(decode_image(tmp_path / 'x.heic')) - wanted).mean() < 3
    Image.fromarray(BLOCKS).save(tmp_path / 'x.avif', quality=100, subsampling='4:4:4')
    data = (tmp_path / 'x.avif').read_bytes()
    at = data.index(b'colrnclx') + 8
    (tmp_path / 'x.avif').write_bytes(data[:at] + struct.pack('>HH', *points) + data[at + 4 :])
    assert np.abs(middles(decode_image(tmp_path / 'x.avif')) - wanted).mean() < 3


@pytest.mark.parametrize('broken', ['cut', 'noise', 'of another space', 'of CMYK'])
def test_a_profile_that_cannot_be_used_is_left_out_with_a_warning(tmp_path, caplog, broken):
    profile = {
        'cut': P3[:200],
        'noise': bytes(range(200)),
        'of another space': P3.replace(b'RGB ', b'GRAY', 1),
        'of CMYK': cmyk_profile(lambda *inks: (50, 0, 0)),
    }[broken]
    Image.fromarray(BLOCKS).save(tmp_path / 'x.png', icc_profile=profile)
    with caplog.at_level('WARNING'):
        for _ in range(2):
            np.testing.assert_array_equal(decode_image(tmp_path / 'x.png'), BLOCKS)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f'the colour profile of {tmp_path}/x.png cannot be used (')
    assert warning.endswith('), so its colours are taken as sRGB')


def test_a_masks_values_are_weights_under_any_profile(tmp_path):
    Image.fromarray(BLOCKS[..., 0]).save(tmp_path / 'x.png', icc_profile=grey_profile(1.0))
    np.testing.assert_array_equal(decode_mask(tmp_path / 'x.png'), BLOCKS[..., 0])


def test_a_profile_in_a_long_chunk_is_used(tmp_path):
    profile = P3 + bytes(2_000_000)
    profile = struct.pack('>I', len(profile)) + profile[4:]
    data = inserted(png(BLOCKS.astype(int), 8, 2), chunk(b'iCCP', b'p\0\0' + zlib.compress(profile)))
    (tmp_path / 'x.png').write_bytes(data)
    assert np.abs(middles(decode_image(tmp_path / 'x.png')) - expected(COLOURS, 'P3')).max() <= 1
