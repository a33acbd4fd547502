"""A subject's folder: what counts as an image, captions, crops, and a sentence for every folder that is of no use."""

import io
import unicodedata

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.subjects import list_images, read_subject
from tests.support.made_files import tags, tiff

KINDS = 'JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF, BMP'


def save(path, colour='red', size=(60, 40), kind='PNG'):
    Image.new('RGB', size, colour).save(path, kind)


def sentence(folder):
    with pytest.raises(ImageError) as error:
        read_subject(folder, 32, 'a sks dog')
    return str(error.value)


def test_images_come_sorted_by_name_with_their_prompts(tmp_path):
    for name, colour in (('b.png', 'blue'), ('a.png', 'red'), ('c.png', 'white')):
        save(tmp_path / name, colour)
    images = read_subject(tmp_path, 32, 'a sks dog')
    assert images.names == ['a.png', 'b.png', 'c.png']
    assert images.prompts == ['a sks dog'] * 3
    assert images.skipped == {}
    assert images.images.shape == (3, 32, 32, 3) and images.images.dtype == np.uint8
    assert images.images[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255], [255, 255, 255]]


def test_content_decides_what_an_image_is(tmp_path):
    save(tmp_path / 'photo.dat', kind='JPEG')
    save(tmp_path / 'wrong.jpg', kind='PNG')
    save(tmp_path / 'image.txt', kind='PNG')
    save(tmp_path / '.hidden.jpg')
    pillow_heif.from_pillow(Image.new('RGB', (60, 40), 'blue')).save(tmp_path / 'phone.jpg')
    (tmp_path / 'notes.md').write_text('notes')
    (tmp_path / 'nothing').touch()
    (tmp_path / 'alone.txt').write_text('a caption without an image')
    (tmp_path / 'IMG_1.MOV').write_bytes(b'\0\0\0\x14ftypqt  ' + bytes(99))
    (tmp_path / 'IMG_1.AAE').write_text('<plist/>')
    (tmp_path / 'Thumbs.db').write_bytes(b'\xd0\xcf\x11\xe0' + bytes(99))
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more.txt').mkdir()
    (tmp_path / '.hidden').write_text('ignored')
    (tmp_path / '.DS_Store').touch()
    (tmp_path / '._wrong.jpg').write_bytes(b'\0\5\x16\7' + bytes(99))
    images, skipped = list_images(tmp_path)
    assert [file.path.name for file in images] == ['image.txt', 'phone.jpg', 'photo.dat', 'wrong.jpg']
    assert skipped == {
        '.hidden.jpg': 'hidden',
        'IMG_1.AAE': 'edits of Apple Photos, which are not applied',
        'IMG_1.MOV': 'a video or audio file',
        'Thumbs.db': 'not an image',
        'alone.txt': 'a caption without an image',
        'more': 'a folder',
        'more.txt': 'a folder',
        'notes.md': 'text',
        'nothing': 'an empty file',
    }
    assert read_subject(tmp_path, 32, 'a sks dog').skipped == skipped
    assert read_subject(tmp_path, 32, 'a sks dog').images[1, 9, 9, 2] > 250


@pytest.mark.parametrize(
    ('name', 'content', 'sentence_end'),
    [
        ('a.jpg', b'', 'is named like a photo but is an empty file; replace it or take it out of its folder'),
        ('a.png', b'<html>', 'is named like a photo but is a web page; replace it or take it out of its folder'),
        (
            'a',
            b'8BPS\0\1',
            'is a file with layers (Photoshop), which cannot be read; save it as JPEG or PNG, or take '
            'it out of its folder',
        ),
        (
            'a',
            b'\xff\xd8\xff\xe0',
            'starts like a JPEG image but is damaged or of a rare kind; save it anew as JPEG '
            'or PNG, or take it out of its folder',
        ),
        (
            'a.arw',
            b'II*\0\x08\0\0\0',
            'is a camera raw file (Sony ARW), which cannot be read; export it from your raw converter as JPEG, PNG '
            'or TIFF, or take it out of its folder',
        ),
        (
            'a.HEIC',
            b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(500),
            'is truncated or damaged; replace it or take it out of its folder',
        ),
    ],
)
def test_a_photo_that_cannot_be_read_stops_the_reading(tmp_path, name, content, sentence_end):
    save(tmp_path / 'good.png')
    (tmp_path / name).write_bytes(content)
    assert sentence(tmp_path) == f'{tmp_path}/{name} {sentence_end}'


def test_a_raw_file_beside_its_jpeg_is_skipped_and_named(tmp_path):
    save(tmp_path / 'IMG_1.JPG', kind='JPEG')
    thumbnail, whole = (tags(16, 12, t254=1), bytes(576)), (tags(80, 60), bytes(14400))
    (tmp_path / 'IMG_1.dng').write_bytes(tiff(thumbnail, inner=[whole]))
    (tmp_path / 'img_1.psd').write_bytes(b'8BPS\0\1')
    files, skipped = list_images(tmp_path)
    assert [file.path.name for file in files] == ['IMG_1.JPG']
    assert skipped == {
        'IMG_1.dng': 'a camera raw file (DNG), in whose place IMG_1.JPG is used',
        'img_1.psd': 'a file with layers (Photoshop), in whose place IMG_1.JPG is used',
    }
    (tmp_path / 'IMG_2.dng').write_bytes(tiff(thumbnail, inner=[whole]))
    assert sentence(tmp_path).startswith(f'{tmp_path}/IMG_2.dng is a camera raw file (DNG), which cannot be read')


@pytest.mark.parametrize('name', ['x.txt', 'x.TXT', 'X.txt', 'x.caption', 'x.Caption', 'x.jpg.txt'])
def test_captions_of_other_trainers_are_read(tmp_path, name):
    save(tmp_path / 'x.jpg', kind='JPEG')
    (tmp_path / name).write_text('a sks dog asleep')
    images = read_subject(tmp_path, 32, 'a sks dog')
    assert images.prompts == ['a sks dog asleep'] and images.skipped == {}


def test_two_captions_of_one_image_must_agree(tmp_path):
    save(tmp_path / 'x.jpg', kind='JPEG')
    (tmp_path / 'x.txt').write_text('a sks dog')
    (tmp_path / 'x.caption').write_text('a sks  dog\n')
    assert read_subject(tmp_path, 32, 'a dog').prompts == ['a sks dog']
    (tmp_path / 'x.caption').write_text('a sks cat')
    assert sentence(tmp_path) == (
        f'{tmp_path}/x.caption and {tmp_path}/x.txt are different captions of one image; keep one of them'
    )


def test_a_caption_of_two_images_is_named_with_a_way_out(tmp_path):
    for name in ('1.jpg', '1.png'):
        save(tmp_path / name)
    assert [file.caption for file in list_images(tmp_path)[0]] == [None, None]
    (tmp_path / '1.txt').write_text('a sks dog')
    assert sentence(tmp_path) == (
        f'the caption {tmp_path}/1.txt could belong to 1.jpg or 1.png; name it 1.jpg.txt, or rename one of the images'
    )
    (tmp_path / '1.txt').rename(tmp_path / '1.png.txt')
    assert [file.caption for file in list_images(tmp_path)[0]] == [None, 'a sks dog']


def test_names_that_differ_in_capitals_keep_their_own_captions(tmp_path):
    for name, caption in (('a', 'small'), ('A', 'large'), ('caf\u00e9', 'accent')):
        save(tmp_path / f'{name}.png')
        name = unicodedata.normalize('NFD', name)  # as a Mac writes it
        (tmp_path / f'{name}.txt').write_text(caption)
    found = {file.path.stem: file.caption for file in list_images(tmp_path)[0]}
    assert found == {'a': 'small', 'A': 'large', 'caf\u00e9': 'accent'}


def test_a_caption_beside_an_image_replaces_the_prompt(tmp_path):
    save(tmp_path / 'x.jpg', kind='JPEG')
    save(tmp_path / 'y.png')
    (tmp_path / 'x.txt').write_bytes('\ufeffa sks dog\n  on a café table\n'.encode())
    images = read_subject(tmp_path, 32, 'a sks dog', crops=2)
    assert images.prompts == ['a sks dog on a café table'] * 2 + ['a sks dog'] * 2
    assert images.skipped == {}


def test_an_empty_caption_is_named(tmp_path):
    save(tmp_path / 'x.png')
    (tmp_path / 'x.txt').write_text(' \n')
    assert sentence(tmp_path) == (f'the caption {tmp_path}/x.txt is empty; write what its image shows, or delete it')


def test_a_caption_in_another_encoding_is_named(tmp_path):
    save(tmp_path / 'x.png')
    (tmp_path / 'x.txt').write_bytes('café'.encode('latin-1'))
    assert sentence(tmp_path) == f'the caption {tmp_path}/x.txt is not UTF-8 text; save it as UTF-8 or delete it'


def test_a_missing_folder_is_named(tmp_path):
    folder = tmp_path / 'photos'
    assert sentence(folder) == f'the folder {folder} does not exist; create it and put images ({KINDS}) there'


def test_a_file_for_a_folder_is_named(tmp_path):
    save(tmp_path / 'x.png')
    assert sentence(tmp_path / 'x.png') == f'{tmp_path}/x.png is a file; give the folder that holds the images'


def test_an_empty_folder_is_named(tmp_path):
    assert sentence(tmp_path) == f'the folder {tmp_path} holds no image (it is empty); put images ({KINDS}) there'


def test_a_folder_without_images_says_what_was_found(tmp_path):
    (tmp_path / 'a.mp4').write_bytes(b'\0\0\0\x18ftypisom' + bytes(100))
    (tmp_path / 'b').mkdir()
    assert sentence(tmp_path) == (
        f'the folder {tmp_path} holds no image (a.mp4 is a video or audio file; b is a folder); put images '
        f'({KINDS}) there'
    )


def test_one_truncated_image_stops_the_reading(tmp_path):
    save(tmp_path / 'a.png')
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'b.jpg')
    data = (tmp_path / 'b.jpg').read_bytes()
    (tmp_path / 'b.jpg').write_bytes(data[: len(data) // 2])
    assert sentence(tmp_path) == f'{tmp_path}/b.jpg is truncated or damaged; replace it or take it out of its folder'


def test_one_small_image_stops_the_reading(tmp_path):
    save(tmp_path / 'a.png', size=(31, 90))
    assert sentence(tmp_path) == (
        f'{tmp_path}/a.png is 31 x 90 pixels, smaller than the resolution 32; use a larger image or a lower resolution'
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


def written(kind):
    data = io.BytesIO()
    Image.new('RGB', (40, 40), 'red').save(data, kind)
    return data.getvalue()


def test_no_file_is_lost_without_a_word(tmp_path):
    """Folders of files sampled at random: each file is used, or skipped with a reason, or the error is about it."""
    stems = ('a', 'A', 'b', 'a_mask', 'b.mask', 'a-masklabel', 'b-condlabel', 'c', '.c', 'a.jpg')
    suffixes = ('.jpg', '.png', '.txt', '.TXT', '.caption', '.dng', '.mov', '.json', '.psd', '')
    contents = [written('JPEG')] * 3 + [written('PNG')] * 2
    contents += [b'a sks dog', b'', b'8BPS\0\1', b'\0\0\0\x14ftypqt  ' + bytes(50), b'\xff\xd8\xff\xe0\0', b'\0\1\2']
    outcomes = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for _ in range(rng.integers(1, 5)):
            (folder / (rng.choice(stems) + rng.choice(suffixes))).write_bytes(contents[rng.integers(len(contents))])
        names = {path.name for path in folder.iterdir()}
        try:
            files, skipped = list_images(folder)
        except ImageError as error:
            assert any(f'{folder}/{name}' in str(error) for name in names)
            outcomes.add('error')
            continue
        images, masks = {file.path.name for file in files}, {file.mask.name for file in files if file.mask}
        captions = {name for name in names if name.lower().endswith(('.txt', '.caption'))} - images - set(skipped)
        assert len(captions) >= sum(file.caption is not None for file in files)
        hidden = {name for name in names if name.startswith('.')}
        assert names - hidden <= images | masks | captions | set(skipped) and not images & set(skipped)
        outcomes |= {'used' if images else 'none', 'mask' if masks else '', 'skipped' if skipped else ''}
    assert outcomes >= {'error', 'used', 'skipped', 'mask'}
