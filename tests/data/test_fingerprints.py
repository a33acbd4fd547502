"""Photos are found again by content, in the order in which they were written down."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.fingerprints import fingerprint, match
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.subjects import list_images, read_buckets


@pytest.fixture
def folder(tmp_path):
    """Photos 1 to 3; the first has a caption and the second a mask."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name)
    (folder / '1.txt').write_text('a sks dog on a rug')
    Image.new('L', (24, 24), 255).save(folder / '2.mask.png')
    return folder


def prints(folder):
    return [fingerprint(file) for file in list_images(folder)[0]]


def names(photos):
    return [photo.name for photo in photos]


def rename(folder, **renamed):
    """Renames photos with what lies beside them."""
    for before, after in renamed.items():
        for path in list(folder.glob(f'{before[1:]}.*')):
            path.rename(folder / f'{after}{path.name[1:]}')


def test_what_is_moved_and_renamed_is_found_in_the_order_that_was_written_down(folder, tmp_path):
    recorded = prints(folder)
    rename(folder, _1='z', _2='y')
    moved = shutil.move(folder, tmp_path / 'elsewhere')
    assert names(prints(moved)) == ['3.png', 'y.png', 'z.png']
    found, differences = match(recorded, prints(moved))
    assert names(found) == ['z.png', 'y.png', '3.png'] and differences == []
    assert [photo.content for photo in found] == [photo.content for photo in recorded]


def test_crops_and_rows_follow_the_order_that_is_given(folder):
    options = {'prompt': 'a sks dog', 'sizes': [(16, 16)], 'crops': 3, 'seed': 5}
    before = read_buckets(folder, **options)[16, 16]
    rename(folder, _1='z')
    after = read_buckets(folder, order=['z.png', '2.png', '3.png'], **options)[16, 16]
    assert np.array_equal(after.images, before.images) and np.array_equal(after.masks, before.masks)
    assert after.prompts == before.prompts
    assert not np.array_equal(read_buckets(folder, **options)[16, 16].images, before.images)


@pytest.mark.parametrize(
    'change, differences',
    [
        (lambda folder: (folder / '3.png').unlink(), ['3.png is missing']),
        (lambda folder: shutil.copy(folder / '2.mask.png', folder / 'cat.png'), ['cat.png is new']),
        (lambda folder: Image.new('RGB', (24, 24)).save(folder / '3.png'), ['3.png is another image']),
        (lambda folder: (folder / '1.txt').write_text('a dog'), ['the caption of 1.png is another']),
        (lambda folder: (folder / '1.txt').unlink(), ['the caption of 1.png is missing']),
        (lambda folder: (folder / '3.txt').write_text('a dog'), ['3.png has a new caption']),
        (lambda folder: Image.new('L', (24, 24)).save(folder / '2.mask.png'), ['the mask of 2.png is another']),
        (lambda folder: (folder / '2.mask.png').unlink(), ['the mask of 2.png is missing']),
        (lambda folder: Image.new('L', (24, 24)).save(folder / '3.mask.png'), ['3.png has a new mask']),
        (lambda folder: shutil.copy(folder / '2.png', folder / '1.png'), ['1.png is another image']),
        (lambda folder: shutil.copy(folder / '3.png', folder / '4.png'), ['4.png is new']),
        (
            lambda folder: (folder / '1.txt').rename(folder / '3.txt'),
            ['the caption of 1.png is missing', '3.png has a new caption'],
        ),
    ],
)
def test_what_changed_is_named(folder, change, differences):
    recorded = prints(folder)
    change(folder)
    assert match(recorded, prints(folder))[1] == differences


def test_two_equal_photos_are_two(folder):
    shutil.copy(folder / '3.png', folder / '4.png')
    recorded = prints(folder)
    assert names(match(recorded, prints(folder))[0]) == ['1.png', '2.png', '3.png', '4.png']
    (folder / '3.png').unlink()
    assert match(recorded, prints(folder))[1] == ['4.png is missing']


def test_line_breaks_of_a_caption_do_not_count_as_they_are_not_read(folder):
    recorded = prints(folder)
    (folder / '1.txt').write_text('\ufeffa sks dog\r\non a rug\n', encoding='utf-8')
    assert match(recorded, prints(folder))[1] == []


def test_a_photo_that_is_gone_meanwhile_is_a_sentence(folder):
    (file, *_), _ = list_images(folder)
    file.path.unlink()
    with pytest.raises(ImageError, match='1.png cannot be read: No such file or directory'):
        fingerprint(file)
