"""Masks beside images: which belongs to which, that they stay on their images, and a sentence for each misfit."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.images import ImageError, read_image, read_masked_image
from dreambooth_jax.data.subjects import list_images, read_buckets, read_subject


def image(height=48, width=70, seed=0):
    """Coarse noise: a crop that is one pixel off is seen, and resizing it changes little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def white(height=48, width=70):
    return np.full((height, width), 255, np.uint8)


def sentence(folder, **options):
    with pytest.raises(ImageError) as error:
        read_subject(folder, 32, 'a sks dog', **options)
    return str(error.value)


def test_a_mask_is_no_image_and_belongs_to_the_one_of_its_name(tmp_path):
    for name in ('a.jpg', 'b.c.png', 'mask.png', 'd.png'):
        save(tmp_path / name, image())
    save(tmp_path / 'a.mask.png', white())
    save(tmp_path / 'b.c.MASK.webp', white())
    (tmp_path / 'a.mask.txt').write_text('what a captioning tool wrote beside the mask')
    files, skipped = list_images(tmp_path)
    found = {file.path.name: file.mask and file.mask.name for file in files}
    assert found == {'a.jpg': 'a.mask.png', 'b.c.png': 'b.c.MASK.webp', 'd.png': None, 'mask.png': None}
    assert list(skipped) == ['a.mask.txt']
    images = read_subject(tmp_path, 32, 'a sks dog')
    assert images.masks.shape == (4, 32, 32, 1) and images.masks.dtype == np.uint8
    assert (images.masks == 255).all() and images.prompts == ['a sks dog'] * 4


def test_without_any_mask_there_is_none(tmp_path):
    save(tmp_path / 'a.png', image())
    assert read_subject(tmp_path, 32, 'a sks dog').masks is None


@pytest.mark.parametrize('crop', ['center', 'random'])
@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_a_mask_is_turned_resized_and_cropped_as_its_image(tmp_path, crop, orientation):
    """The image's own grey as its mask comes out as the grey of what is read of the image."""
    for seed in range(4):
        grey = image(92, 61, seed)[..., :1].repeat(3, 2)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path, mask = save(tmp_path / 'a.png', grey, exif=exif), save(tmp_path / 'a.mask.png', grey, exif=exif)
        pixels, weights = read_masked_image(path, mask, [(32, 32)], crop=crop, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(pixels, read_image(path, 32, crop=crop, rng=np.random.default_rng(seed)))
        # Alike up to their filters, box against Lanczos, but not one pixel further.
        likeness = [
            np.corrcoef(weights[..., 0].ravel(), np.roll(pixels[..., 0], shift, axis).ravel())[0, 1]
            for shift, axis in ((0, 0), (1, 0), (-1, 0), (1, 1), (-1, 1))
        ]
        assert likeness[0] > 0.98 > 0.95 > max(likeness[1:])


def test_a_mask_that_is_stored_upright_fits_an_image_that_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'a.jpg', image(48, 70), exif=exif)
    upper = white(70, 48)
    upper[35:] = 0
    save(tmp_path / 'a.mask.png', upper)
    masks = read_subject(tmp_path, 48, 'a sks dog').masks
    assert masks[0, :24].min() == 255 and masks[0, 24:].max() == 0


def test_a_mask_gives_the_mean_over_each_pixels_area_and_no_echo_of_its_edges(tmp_path):
    mask = np.zeros((96, 96))
    mask[:, 41:] = 255
    save(tmp_path / 'a.png', image(96, 96))
    save(tmp_path / 'a.mask.png', mask)
    row = read_subject(tmp_path, 32, 'a sks dog').masks[0, 5, :, 0]
    np.testing.assert_array_equal(row, [0] * 13 + [85] + [255] * 18)


@pytest.mark.parametrize('kind', ['1', 'L', 'P', 'RGB', 'LA', 'I;16', 'JPEG'])
def test_every_kind_of_file_gives_white_1_black_0_and_grey_between(tmp_path, kind):
    values = np.zeros((32, 32), np.uint8)
    values[:, 8:24] = 255
    if kind != '1':
        values[:, 16:24] = 51
    mask = Image.fromarray(values)
    if kind == 'I;16':
        mask = Image.fromarray(values.astype(np.uint16) * 257)
    elif kind != 'JPEG':
        mask = mask.convert(kind)
    mask.save(tmp_path / f'a.mask.{"jpg" if kind == "JPEG" else "png"}')
    save(tmp_path / 'a.png', image(32, 32))
    read = read_subject(tmp_path, 32, 'a sks dog').masks[0, ..., 0]
    np.testing.assert_allclose(read, values, atol=6 if kind == 'JPEG' else 0)


def test_transparent_parts_of_a_mask_are_black(tmp_path):
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[:16, :, 3] = 0
    save(tmp_path / 'a.mask.png', pixels)
    save(tmp_path / 'a.png', image(32, 32))
    masks = read_subject(tmp_path, 32, 'a sks dog').masks
    assert masks[0, :16].max() == 0 and masks[0, 16:].min() == 255


def test_random_crops_have_their_own_part_of_the_mask(tmp_path):
    save(tmp_path / 'a.png', np.stack([np.tile(np.arange(120), (60, 1))] * 3, -1))
    save(tmp_path / 'a.mask.png', np.tile(np.arange(120), (60, 1)))
    images = read_subject(tmp_path, 32, 'a sks dog', crops=4, seed=3)
    assert len(set(images.images[:, 16, 16, 0].tolist())) > 2
    np.testing.assert_allclose(images.masks[..., 0], images.images[..., 0], atol=2)


def test_a_mask_without_its_image_is_named(tmp_path):
    save(tmp_path / 'a.png', image())
    save(tmp_path / 'b.mask.png', white())
    assert sentence(tmp_path) == (
        f'the mask {tmp_path}/b.mask.png has no image beside it (b.jpg, b.png or another kind); rename it or take it '
        f'out of its folder'
    )


def test_a_mask_of_another_size_is_named_with_both_sizes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'a.jpg', image(48, 70), exif=exif)
    save(tmp_path / 'a.mask.png', white(48, 70))
    assert sentence(tmp_path) == (
        f'the mask {tmp_path}/a.mask.png is 70 x 48 pixels but its image {tmp_path}/a.jpg 48 x 70, both as they are '
        f'shown upright; make the mask as large as its image'
    )


@pytest.mark.parametrize('dots', [0, 1])
def test_a_mask_of_which_nothing_is_left_is_named(tmp_path, dots):
    mask = np.zeros((400, 800))
    mask[200, 400 : 400 + dots] = 60  # of the 150 pixels that become one
    save(tmp_path / 'a.png', image(400, 800))
    save(tmp_path / 'a.mask.png', mask)
    assert sentence(tmp_path, crops=2) == (
        f'the mask {tmp_path}/a.mask.png is black all over, or all but a few dots, so nothing of its image '
        f'{tmp_path}/a.png would be learned; paint white what counts, or take both out of their folder'
    )


def test_a_crop_in_the_middle_that_misses_the_mask_moves_to_where_it_holds_most(tmp_path):
    columns = np.tile(np.arange(160), (64, 1))
    mask = np.where((columns < 20) | (columns == 120), 255, 0)
    save(tmp_path / 'a.png', np.stack([columns] * 3, -1))
    save(tmp_path / 'a.mask.png', mask)
    images = read_subject(tmp_path, 64, 'a sks dog')
    # The square in the middle is columns 48 to 111; the nearest that holds all of the left part begins at 0.
    np.testing.assert_array_equal(images.images[0, 0, :, 0], np.arange(64))
    np.testing.assert_array_equal(images.masks[0, 0, :, 0], np.where(np.arange(64) < 20, 255, 0))
    mask[:, 50] = 255
    save(tmp_path / 'a.mask.png', mask)
    assert read_subject(tmp_path, 64, 'a sks dog').images[0, 0, 0, 0] == 48  # not moved: it meets the mask


@pytest.mark.parametrize('seed', range(6))
def test_every_crop_meets_a_small_mask(tmp_path, seed):
    """As the upscaler takes them: eight crops from a third of the photo's side up to all of it."""
    for number, (top, left) in enumerate([(0, 0), (170, 128), (340, 250), (0, 250), (300, 20)]):
        mask = np.zeros((512, 384))
        mask[top : top + 170, left : left + 128] = 255
        save(tmp_path / f'{number}.png', image(512, 384, number))
        save(tmp_path / f'{number}.mask.png', mask)
    options = {'crops': 8, 'max_zoom': 4.0}
    found = read_buckets(tmp_path, [(128, 128)], 'a sks dog', seed=seed, **options)[128, 128]
    assert len(found.images) == 40 and found.masks.reshape(40, -1).max(1).min() > 0
    again = read_buckets(tmp_path, [(128, 128)], 'a sks dog', seed=seed, **options)[128, 128]
    np.testing.assert_array_equal(again.images, found.images)


def test_a_mask_that_is_met_changes_no_crop(tmp_path):
    save(tmp_path / 'a.png', image(96, 128))
    plain = read_subject(tmp_path, 32, 'a sks dog', crops=6, seed=5).images
    mask = white(96, 128)
    mask[:8] = 0
    save(tmp_path / 'a.mask.png', mask)
    np.testing.assert_array_equal(read_subject(tmp_path, 32, 'a sks dog', crops=6, seed=5).images, plain)
    rng = np.random.default_rng([5, 0, 3])  # the random numbers of crop 3, as every version has made them
    side = int(rng.uniform(32, 1.25 * 32 + 1))
    left, top = rng.integers(side * 128 // 96 - 32 + 1), rng.integers(side - 32 + 1)
    resized = Image.fromarray(image(96, 128)).resize((side * 128 // 96, side), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resized.crop((left, top, left + 32, top + 32)), plain[3])


def test_a_tiny_mask_is_found_by_every_crop(tmp_path):
    mask = np.zeros((256, 256))
    mask[250:, 250:] = 255
    save(tmp_path / 'a.png', image(256, 256))
    save(tmp_path / 'a.mask.png', mask)
    found = read_buckets(tmp_path, [(32, 32)], 'a sks dog', crops=9, max_zoom=8.0)[32, 32]
    assert found.masks.reshape(9, -1).max(1).min() > 0


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('psd', b'8BPS\0\1', 'a file with layers (Photoshop), which cannot be read; save it as JPEG or PNG, or'),
        ('json', b'{}', 'data of another program (captions are read from .txt and .caption files), not an image'),
        ('png', b'hello', 'named like a photo but is text; replace it or take it out of its folder'),
    ],
)
def test_a_mask_that_is_no_image_is_named(tmp_path, name, content, words):
    save(tmp_path / 'a.png', image())
    (tmp_path / f'a.mask.{name}').write_bytes(content)
    assert sentence(tmp_path).startswith(f'the mask {tmp_path}/a.mask.{name} is {words}')


@pytest.mark.parametrize('name', ['a-masklabel.png', 'A-MASKLABEL.PNG', 'a.mask', 'a.Mask.webp', 'a.jpg.mask.png'])
def test_masks_of_other_trainers_are_masks_and_no_photos(tmp_path, name):
    half = white()
    half[:, :35] = 0
    save(tmp_path / 'a.jpg', image())
    save(tmp_path / name, half, format='PNG')
    images = read_subject(tmp_path, 48, 'a sks dog')
    assert images.names == ['a.jpg'] and images.skipped == {}
    np.testing.assert_array_equal(images.masks[0, 9, :, 0], np.where(np.arange(48) < 24, 0, 255))


def test_a_mask_of_two_images_is_named_with_a_way_out(tmp_path):
    for name in ('a.jpg', 'a.png'):
        save(tmp_path / name, image())
    mask = save(tmp_path / 'a-masklabel.png', white())
    assert sentence(tmp_path) == (
        f'the mask {tmp_path}/a-masklabel.png could belong to a.jpg or a.png; name it a.jpg-masklabel.png, or rename '
        f'one of the images'
    )
    mask.rename(tmp_path / 'a.jpg-masklabel.png')
    files, _ = list_images(tmp_path)
    assert [file.mask and file.mask.name for file in files] == ['a.jpg-masklabel.png', None]


@pytest.mark.parametrize('name', ['a_mask.png', 'a-Mask.png', 'a_masklabel.png', 'a mask.jpg'])
def test_what_may_be_a_mask_is_not_trained_as_a_photo(tmp_path, name):
    save(tmp_path / 'a.jpg', image())
    save(tmp_path / name, white())
    suffix = name.rpartition('.')[2]
    assert sentence(tmp_path) == (
        f'{tmp_path}/{name} is named like a mask of a.jpg; name it a.mask.{suffix} if it is one, or without "mask" if '
        f'it is a photo'
    )
    (tmp_path / 'a.jpg').rename(tmp_path / 'b.jpg')  # with no a.jpg it is a photo, of a dog with a mask
    assert len(list_images(tmp_path)[0]) == 2


def test_conditions_of_another_trainer_are_skipped_and_named(tmp_path):
    save(tmp_path / 'a.jpg', image())
    save(tmp_path / 'a-condlabel.png', image())
    files, skipped = list_images(tmp_path)
    assert len(files) == 1 and skipped == {'a-condlabel.png': 'a condition for another kind of model'}


def test_two_masks_of_one_image_are_named(tmp_path):
    save(tmp_path / 'a.png', image())
    for name in ('a.mask.jpg', 'a.mask.png'):
        save(tmp_path / name, white())
    assert sentence(tmp_path) == (
        f'{tmp_path}/a.mask.jpg and {tmp_path}/a.mask.png are masks of the same image; keep one of them'
    )
