"""Aspect buckets: their sizes, which one an image goes to and what is kept of it, and the order of the steps."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.buckets import bucket_of_step, bucket_sizes, nearest
from dreambooth_jax.data.images import ImageError, fit
from dreambooth_jax.data.subjects import read_buckets
from dreambooth_jax.data.table import Examples, make_table

SIZES = bucket_sizes(64, 8)


@pytest.mark.parametrize(
    ('resolution', 'multiple', 'max_ratio'),
    [(512, 64, 2), (768, 64, 2), (1024, 64, 2), (1024, 64, 4), (64, 8, 2), (32, 8, 2), (8, 2, 2), (64, 64, 2)],
)
def test_sizes_have_the_area_of_the_square_but_for_one_multiple(resolution, multiple, max_ratio):
    sizes = bucket_sizes(resolution, multiple, max_ratio)
    ratios = [height / width for height, width in sizes]
    assert (resolution, resolution) in sizes
    assert ratios == sorted(set(ratios)) and max(ratios) <= max_ratio
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        missing = resolution**2 - height * width
        assert 0 <= missing < multiple * max(height, width)


def test_sizes_at_1024_are_those_that_sdxl_was_trained_on():
    """From 1:2 to 2:1, of the table in SDXL's paper (Podell et al. 2023, appendix I), (height, width)."""
    published = {(704, 1408), (768, 1344), (768, 1280), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)}
    assert published <= set(bucket_sizes(1024, 64))


def test_a_size_that_cannot_be_is_named():
    with pytest.raises(ValueError, match='must be a multiple of 64, got 500'):
        bucket_sizes(500, 64)
    with pytest.raises(ValueError, match='max_ratio must be >= 1, got 0.5'):
        bucket_sizes(512, 64, 0.5)


def test_nearest_goes_by_the_ratio_alone():
    sizes = bucket_sizes(512, 64)
    photos = {
        (4000, 4100): (512, 512),
        (3000, 4000): (576, 448),
        (4000, 3000): (448, 576),
        (9, 16): (640, 384),
        (5000, 100): (384, 640),
    }
    assert {photo: nearest(*photo, sizes) for photo in photos} == photos
    assert nearest(1, 1, [(8, 8), (16, 16)]) == (16, 16)


def save(path, width, height, **options):
    """Left to right in red, top to bottom in green: pixels tell where they are from, in 1/255 of a side."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8)).save(path, **options)


def kept(image):
    """Share of the whole photo's area that an image shows."""
    red, green = image[..., 0].astype(float), image[..., 1].astype(float)
    return (red.max() - red.min()) * (green.max() - green.min()) / 255**2


@pytest.mark.parametrize(('width', 'height'), [(300, 400), (225, 400), (400, 300), (400, 230)])
def test_portrait_and_landscape_photos_keep_more_than_nine_tenths_of_their_area(tmp_path, width, height):
    save(tmp_path / 'a.png', width, height)
    save(tmp_path / 'square.png', 200, 200)
    found = read_buckets(tmp_path, SIZES, 'a sks dog')
    (size,) = found.keys() - {(64, 64)}
    assert (size[0] > size[1]) == (height > width)
    assert found[size].images.shape == (1, *size, 3) and found[size].names == ['a.png']
    assert kept(found[size].images[0]) > 0.9 and kept(found[64, 64].images[0]) > 0.95
    square = read_buckets(tmp_path, [(64, 64)], 'a sks dog')[64, 64].images[0]
    assert kept(square) < 0.8  # what the buckets are for


def test_buckets_come_in_the_order_of_the_sizes_with_their_own_captions_masks_and_crops(tmp_path):
    save(tmp_path / 'tall.png', 150, 200)
    save(tmp_path / 'wide.png', 200, 150)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'turned.png', 200, 150, exif=exif)
    (tmp_path / 'wide.txt').write_text('a sks dog on a rug')
    Image.new('L', (150, 200), 9).save(tmp_path / 'tall.mask.png')
    (tmp_path / 'notes.md').write_text('no image')
    found = read_buckets(tmp_path, SIZES, 'a sks dog', crops=3, seed=1)
    assert list(found) == [(56, 72), (72, 56)]
    wide, tall = found.values()
    assert wide.prompts == ['a sks dog on a rug'] * 3 and wide.masks is None
    assert tall.names == ['tall.png'] * 3 + ['turned.png'] * 3 and tall.prompts == ['a sks dog'] * 6
    assert (tall.masks[:3] == 9).all() and (tall.masks[3:] == 255).all()
    assert len({image.tobytes() for image in tall.images}) == 6
    assert wide.skipped.keys() == tall.skipped.keys() == {'notes.md'}


def test_a_photo_smaller_than_its_bucket_is_named(tmp_path):
    save(tmp_path / 'a.png', 45, 75)
    with pytest.raises(ImageError) as error:
        read_buckets(tmp_path, SIZES, 'a sks dog')
    assert str(error.value) == (
        f'{tmp_path}/a.png is 45 x 75 pixels, smaller than the 48 x 80 of its aspect bucket; use a larger image or a '
        f'lower resolution'
    )


def test_class_images_are_fitted_to_the_bucket_and_lose_only_what_its_ratio_takes():
    rng = np.random.default_rng(0)
    squares = np.zeros((3, 64, 64, 3), np.uint8)
    squares[..., 0] = np.linspace(0, 255, 64)
    squares[..., 1] = np.linspace(0, 255, 64)[:, None]
    assert fit(squares, (64, 64)) is squares
    tall = fit(squares, (80, 48))
    assert tall.shape == (3, 80, 48, 3)
    assert 0.57 < kept(tall[0]) < 0.62  # 48 / 80
    mine = Examples(rng.integers(0, 256, (2, 80, 48, 3), np.uint8), ['a sks dog'] * 2)
    table = make_table(mine, Examples(squares, ['a dog'] * 3))
    assert (table.num_instance, table.num_class) == (2, 3)
    np.testing.assert_array_equal(table.images[2:], tall)
    with pytest.raises(ValueError, match='images of 32 x 32 pixels are too small for 48 x 80'):
        fit(squares[:, ::2, ::2], (80, 48))


@pytest.mark.parametrize('counts', [(3, 1), (5, 2, 13), (4,)])
def test_every_bucket_has_its_share_of_every_epochs_steps(counts):
    total = sum(counts)
    steps = [bucket_of_step(7, step, counts) for step in range(40 * total)]
    for epoch in range(40):
        taken = [bucket for bucket, _ in steps[epoch * total : (epoch + 1) * total]]
        assert np.bincount(taken, minlength=len(counts)).tolist() == list(counts)
    for bucket, count in enumerate(counts):  # turns count the bucket's own steps
        assert [turn for taken, turn in steps if taken == bucket] == list(range(40 * count))


def test_the_order_of_buckets_changes_from_epoch_to_epoch_and_with_the_seed_and_is_a_pure_function():
    counts = (5, 2, 13)
    orders = {seed: [bucket_of_step(seed, step, counts)[0] for step in range(100)] for seed in (0, 1)}
    assert len({tuple(order[start : start + 20]) for order in orders.values() for start in range(0, 100, 20)}) == 10
    backwards = [bucket_of_step(0, step, counts)[0] for step in reversed(range(100))]
    assert backwards[::-1] == orders[0]
