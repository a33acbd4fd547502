"""Reading image files: every kind of image comes out as the same pixels, everything else as one sentence."""

import warnings

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dreambooth_jax.data.images import ImageError, decode_image, read_image

RED, GREEN, BLUE, WHITE = (200, 40, 30), (30, 160, 60), (40, 60, 200), (255, 255, 255)


def quarters(height=64, width=64):
    """Red | green over blue | white: every turn and mirroring looks different."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, WHITE
    return image


def corners(image):
    inset = len(image) // 4
    return [tuple(int(v) for v in image[y, x]) for y in (inset, -inset) for x in (inset, -inset)]


def assert_shows_quarters(image, tolerance=0):
    np.testing.assert_allclose(corners(image), [RED, GREEN, BLUE, WHITE], atol=tolerance)


@pytest.mark.parametrize(
    ('kind', 'tolerance'),
    [
        ('PNG', 0),
        ('BMP', 0),
        ('TIFF', 0),
        ('PPM', 0),
        ('GIF', 0),
        ('JPEG', 4),
        ('WEBP', 6),
        ('AVIF', 8),
        ('JPEG2000', 8),
        ('HEIF', 8),
    ],
)
def test_every_format_shows_the_same_image(tmp_path, kind, tolerance):
    path = tmp_path / 'image'  # no extension: the content counts
    image = Image.fromarray(quarters())
    pillow_heif.from_pillow(image).save(path) if kind == 'HEIF' else image.save(path, kind)
    image = read_image(path, 32)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert_shows_quarters(image, tolerance)


@pytest.mark.parametrize('mode', ['P', 'RGBA', 'CMYK', 'LAB', 'YCbCr'])
def test_every_colour_mode_shows_the_same_image(tmp_path, mode):
    path = tmp_path / 'image.tif'
    image = Image.fromarray(quarters())
    (image.quantize(16) if mode == 'P' else image.convert(mode)).save(path)
    assert Image.open(path).mode == mode
    assert_shows_quarters(read_image(path, 32), {'LAB': 8, 'YCbCr': 3}.get(mode, 2))


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.fromarray(quarters()).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    assert Image.open(tmp_path / 'cmyk.jpg').mode == 'CMYK'
    assert_shows_quarters(read_image(tmp_path / 'cmyk.jpg', 32), tolerance=6)


def test_grey_becomes_three_equal_channels(tmp_path):
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(tmp_path / 'grey.png')
    assert (read_image(tmp_path / 'grey.png', 32) == 90).all()


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(np.arange(1600).reshape(40, 40) < 800).save(tmp_path / 'bit.png')
    image = read_image(tmp_path / 'bit.png', 40)
    assert (image[:20] == 255).all() and (image[20:] == 0).all()


@pytest.mark.parametrize('name', ['grey16.png', 'grey16.tif', 'grey16.pgm'])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / name)
    image = read_image(tmp_path / name, 64)
    np.testing.assert_array_equal(image, np.rint(ramp / 257).astype(np.uint8)[..., None].repeat(3, axis=-1))


def test_big_endian_sixteen_bit_grey_is_read_right(tmp_path):
    Image.frombytes('I;16B', (40, 40), np.full((40, 40), 25700, '>u2').tobytes()).save(tmp_path / 'big.tif')
    assert (read_image(tmp_path / 'big.tif', 32) == 100).all()


@pytest.mark.parametrize('name', ['alpha.png', 'alpha.webp', 'grey_alpha.png', 'palette_alpha.png', 'key_colour.png'])
def test_transparency_is_shown_on_white(tmp_path, name):
    colour = np.zeros((40, 40, 4), np.uint8)
    colour[:20] = (0, 0, 0, 255)  # the lower half is black, but cannot be seen
    image = Image.fromarray(colour)
    options = {'lossless': True} if name.endswith('webp') else {}
    if name.startswith('grey'):
        image = image.convert('LA')
    elif name.startswith('palette'):
        image = image.quantize()
    elif name.startswith('key'):
        colour[20:] = (9, 9, 9, 255)
        image, options = Image.fromarray(colour[..., :3]), {'transparency': (9, 9, 9)}
    image.save(tmp_path / name, **options)
    image = read_image(tmp_path / name, 40)
    assert (image[:20] == 0).all() and (image[20:] == 255).all()


def test_half_transparency_is_mixed_with_white(tmp_path):
    Image.new('RGBA', (40, 40), (0, 0, 0, 128)).save(tmp_path / 'half.png')
    assert abs(int(read_image(tmp_path / 'half.png', 32)[0, 0, 0]) - 127) <= 1


# What undoes each EXIF orientation: how a camera that writes it has stored the upright image.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize('orientation', STORED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(quarters(60, 90))
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    assert decode_image(tmp_path / 'turned.jpg').size == (90, 60)
    assert_shows_quarters(read_image(tmp_path / 'turned.jpg', 32), tolerance=6)


@pytest.mark.parametrize('exif', [b'Exif\0\0garbage', b'Exif\0\0II*\0\x08\0\0\0\xff\xff', b'Exif\0\0', b'junk'])
def test_a_broken_exif_block_does_not_matter(tmp_path, exif):
    Image.fromarray(quarters()).save(tmp_path / 'image.jpg', exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_shows_quarters(read_image(tmp_path / 'image.jpg', 32), tolerance=6)


@pytest.mark.parametrize('name', ['moving.gif', 'moving.png', 'moving.webp'])
def test_the_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new('RGB', (40, 40), colour) for colour in ('black', 'white')]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / name, 32).max() <= 2


@pytest.mark.parametrize(('height', 'width'), [(40, 100), (100, 40), (33, 77), (64, 64)])
def test_the_centre_is_cropped_and_nothing_is_squashed(tmp_path, height, width):
    y, x = np.mgrid[:height, :width]
    disc = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < (0.4 * min(height, width)) ** 2
    Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).save(tmp_path / 'disc.png')
    image = read_image(tmp_path / 'disc.png', 32)[..., 0].astype(float)
    rows, columns = image.sum(axis=1), image.sum(axis=0)
    ramp = np.arange(32)
    for profile in (rows, columns):
        assert abs((profile * ramp).sum() / profile.sum() - 15.5) < 0.6
    assert abs((image[:, 16] > 127).sum() - (image[16] > 127).sum()) <= 1


def test_resizing_is_antialiased(tmp_path):
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / 'board.png')
    image = read_image(tmp_path / 'board.png', 32)[2:-2, 2:-2].astype(int)
    assert np.abs(image - 127).max() <= 2


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'exact.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'exact.png', 32), pixels)
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(read_image(tmp_path / 'exact.png', 32, crop='random', rng=rng), pixels)


def test_random_crops_differ_and_are_reproducible(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    crops = [
        read_image(tmp_path / 'image.png', 32, crop='random', rng=np.random.default_rng(seed)) for seed in (0, 0, 1, 2)
    ]
    assert all(crop.shape == (32, 32, 3) for crop in crops)
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any() and (crops[2] != crops[3]).any()


def sentence(path, resolution=32):
    with pytest.raises(ImageError) as error:
        read_image(path, resolution)
    return str(error.value)


def test_a_small_image_is_named_with_its_size(tmp_path):
    path = tmp_path / 'small.png'
    Image.new('RGB', (100, 20)).save(path)
    assert sentence(path) == (
        f'{path} is 100 x 20 pixels, smaller than the resolution 32; use a larger image or a lower resolution'
    )


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'PPM'])
def test_a_truncated_image_is_named(tmp_path, kind):
    path = tmp_path / 'cut'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if kind != 'TIFF' else whole[:-1000])
    assert sentence(path) == f'{path} is truncated or damaged; replace it or take it out of its folder'


def test_damaged_bytes_never_give_a_traceback(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / 'damaged'
    for kind in ('JPEG', 'PNG', 'WEBP', 'AVIF', 'GIF', 'TIFF', 'BMP', 'JPEG2000', 'PPM'):
        Image.fromarray(quarters()).save(path, kind)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(20):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=10)] = rng.integers(256, size=10)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_image(path, 4).shape == (4, 4, 3)
            except ImageError as error:
                assert str(error).startswith(f'{path} ')


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / 'text.jpg').write_text('hello')
    (tmp_path / 'empty').touch()
    (tmp_path / 'noise').write_bytes(bytes(range(256)))
    advice = 'replace it or take it out of its folder'
    known = 'JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF, BMP'
    assert sentence(tmp_path / 'text.jpg') == f'{tmp_path}/text.jpg is named like a photo but is text; {advice}'
    assert sentence(tmp_path / 'empty') == f'{tmp_path}/empty is an empty file, not an image ({known}); {advice}'
    assert sentence(tmp_path / 'noise') == f'{tmp_path}/noise is not an image ({known}); {advice}'
    assert sentence(tmp_path / 'missing.png') == f'{tmp_path}/missing.png cannot be read: No such file or directory'
    assert sentence(tmp_path) == f'{tmp_path} cannot be read: Is a directory'


def test_an_unknown_crop_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crop must be 'center' or 'random', got 'left'"):
        Image.new('RGB', (40, 40)).save(tmp_path / 'x.png')
        read_image(tmp_path / 'x.png', 32, crop='left')
