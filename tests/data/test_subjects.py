"""A subject's folder: what counts as a picture, captions, crops, and a sentence for every folder that is of no use."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.images import PictureError
from dreambooth_jax.data.subjects import list_pictures, read_subject

KINDS = 'JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP'


def save(path, colour='red', size=(60, 40), kind='PNG'):
    Image.new('RGB', size, colour).save(path, kind)


def sentence(folder):
    with pytest.raises(PictureError) as error:
        read_subject(folder, 32, 'a sks dog')
    return str(error.value)


def test_pictures_come_sorted_by_name_with_their_prompts(tmp_path):
    for name, colour in (('b.png', 'blue'), ('a.png', 'red'), ('c.png', 'white')):
        save(tmp_path / name, colour)
    pictures = read_subject(tmp_path, 32, 'a sks dog')
    assert pictures.names == ['a.png', 'b.png', 'c.png']
    assert pictures.prompts == ['a sks dog'] * 3
    assert pictures.skipped == {}
    assert pictures.images.shape == (3, 32, 32, 3) and pictures.images.dtype == np.uint8
    assert pictures.images[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255], [255, 255, 255]]


def test_content_decides_what_a_picture_is(tmp_path):
    save(tmp_path / 'photo.dat', kind='JPEG')
    save(tmp_path / 'wrong.jpg', kind='PNG')
    save(tmp_path / 'picture.txt', kind='PNG')
    (tmp_path / 'notes.md').write_text('notes')
    (tmp_path / 'fake.png').write_text('not a picture')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'alone.txt').write_text('a caption without a picture')
    (tmp_path / 'more').mkdir()
    (tmp_path / '.hidden').write_text('ignored')
    (tmp_path / '.DS_Store').touch()
    pictures, skipped = list_pictures(tmp_path)
    assert [file.path.name for file in pictures] == ['photo.dat', 'picture.txt', 'wrong.jpg']
    assert skipped == {
        'alone.txt': f'not a picture ({KINDS})',
        'empty.jpg': 'an empty file',
        'fake.png': f'not a picture ({KINDS})',
        'more': 'a folder',
        'notes.md': f'not a picture ({KINDS})',
    }
    assert read_subject(tmp_path, 32, 'a sks dog').skipped == skipped


def test_a_caption_beside_a_picture_replaces_the_prompt(tmp_path):
    save(tmp_path / 'x.jpg', kind='JPEG')
    save(tmp_path / 'y.png')
    (tmp_path / 'x.txt').write_bytes('\ufeffa sks dog\n  on a café table\n'.encode())
    pictures = read_subject(tmp_path, 32, 'a sks dog', crops=2)
    assert pictures.prompts == ['a sks dog on a café table'] * 2 + ['a sks dog'] * 2
    assert pictures.skipped == {}


def test_an_empty_caption_is_named(tmp_path):
    save(tmp_path / 'x.png')
    (tmp_path / 'x.txt').write_text(' \n')
    assert sentence(tmp_path) == (
        f'the caption {tmp_path}/x.txt is empty; write what its picture shows, or delete it'
    )


def test_a_caption_in_another_encoding_is_named(tmp_path):
    save(tmp_path / 'x.png')
    (tmp_path / 'x.txt').write_bytes('café'.encode('latin-1'))
    assert sentence(tmp_path) == f'the caption {tmp_path}/x.txt is not UTF-8 text; save it as UTF-8 or delete it'


def test_a_missing_folder_is_named(tmp_path):
    folder = tmp_path / 'photos'
    assert sentence(folder) == f'the folder {folder} does not exist; create it and put pictures ({KINDS}) there'


def test_a_file_for_a_folder_is_named(tmp_path):
    save(tmp_path / 'x.png')
    assert sentence(tmp_path / 'x.png') == f'{tmp_path}/x.png is a file; give the folder that holds the pictures'


def test_an_empty_folder_is_named(tmp_path):
    assert sentence(tmp_path) == f'the folder {tmp_path} holds no picture (it is empty); put pictures ({KINDS}) there'


def test_a_folder_without_pictures_says_what_was_found(tmp_path):
    (tmp_path / 'a.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    (tmp_path / 'b.jpg').touch()
    assert sentence(tmp_path) == (
        f'the folder {tmp_path} holds no picture (a.heic is not a picture ({KINDS}); b.jpg is an empty file); '
        f'put pictures ({KINDS}) there'
    )


def test_one_truncated_picture_stops_the_reading(tmp_path):
    save(tmp_path / 'a.png')
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'b.jpg')
    data = (tmp_path / 'b.jpg').read_bytes()
    (tmp_path / 'b.jpg').write_bytes(data[: len(data) // 2])
    assert sentence(tmp_path) == f'{tmp_path}/b.jpg is truncated or damaged; replace it or take it out of its folder'


def test_one_small_picture_stops_the_reading(tmp_path):
    save(tmp_path / 'a.png', size=(31, 90))
    assert sentence(tmp_path) == (
        f'{tmp_path}/a.png is 31 x 90 pixels, smaller than the resolution 32; '
        f'use a larger picture or a lower resolution'
    )


def test_crops_start_with_the_centre_and_depend_on_the_seed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 90, 3), dtype=np.uint8)
    for name in ('a.png', 'b.png'):
        Image.fromarray(pixels).save(tmp_path / name)
    one = read_subject(tmp_path, 32, 'a sks dog', seed=7)
    three = read_subject(tmp_path, 32, 'a sks dog', crops=3, seed=7)
    other = read_subject(tmp_path, 32, 'a sks dog', crops=3, seed=8)
    assert three.names == ['a.png'] * 3 + ['b.png'] * 3
    np.testing.assert_array_equal(three.images[::3], one.images)
    np.testing.assert_array_equal(three.images, read_subject(tmp_path, 32, 'a sks dog', crops=3, seed=7).images)
    assert len({image.tobytes() for image in three.images}) == 5  # one centre, four random ones
    assert (three.images[1] != other.images[1]).any()
