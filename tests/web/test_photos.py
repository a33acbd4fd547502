"""Uploads are photos that train can read, under names that were made here, or they are refused in a sentence."""

import io
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import checked_photos
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.web import photos as photos_module
from dreambooth_jax.web.photos import PhotoError, Photos
from tests.support.served import image_bytes, mask_bytes

NOTHING = checked_photos.CheckedSubject('rex', [], [])


@pytest.fixture
def photos(tmp_path):
    made = Photos(tmp_path / 'photos')
    made.create('rex')
    return made


def png_head(width, height):
    """A PNG that says it is as large; it holds next to nothing."""

    def chunk(kind, data):
        return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')

    head = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + b'\x08\x02\0\0\0'
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('1.png', image_bytes())
    return file.getvalue()


def test_photos_are_kept_as_they_came_under_names_made_here(photos, tmp_path):
    first = image_bytes(format='JPEG')
    assert photos.add('rex', first, '../../etc/IMG 1.png').name == '001.jpg'
    assert photos.add('rex', image_bytes(format='WEBP'), 'x').name == '002.webp'
    assert photos.add('rex', image_bytes(format='AVIF'), 'x').name == '003.avif'
    assert photos.path('rex', '001.jpg').read_bytes() == first
    assert {path.name for path in tmp_path.rglob('*')} == {'photos', 'rex', '001.jpg', '002.webp', '003.avif'}
    assert photos.all() == {'rex': 3}
    found, skipped = list_images(photos.folder('rex'))  # as train does
    assert len(found) == 3 and skipped == {}


@pytest.mark.parametrize(
    ('data', 'status', 'told'),
    [
        (b'', 415, 'an empty file'),
        (b'hello', 415, 'no photo'),
        (b'\x80\x04\x95cos\nsystem\n', 415, 'no photo'),  # a pickle
        (zipped(), 415, 'an archive'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, 'no photo'),
        (b'\x89PNG\r\n\x1a\n' + b'x' * 100, 422, 'damaged'),
        (image_bytes(format='JPEG')[:400], 422, ''),
        (png_head(60_000, 60_000), 422, 'million pixels'),
        (png_head(20_000, 10_000), 413, 'more than 100 million pixels'),
        (png_head(5_000, 5_000), 422, 'damaged'),
    ],
)
def test_what_is_no_photo_is_refused(data, status, told, photos):
    with pytest.raises(PhotoError) as error:
        photos.add('rex', data, 'IMG.jpg')
    assert (error.value.status, told in str(error.value), 'IMG.jpg' in str(error.value)) == (status, True, True)
    assert photos.all() == {'rex': 0}


def test_limits(photos, monkeypatch):
    monkeypatch.setattr(photos_module, 'MOST_BYTES', 100)
    with pytest.raises(PhotoError, match='has more than'):
        photos.add('rex', image_bytes(), 'IMG.png')
    monkeypatch.undo()
    monkeypatch.setattr(photos_module, 'MOST_PHOTOS', 2)
    photos.add('rex', image_bytes(), 'IMG.png')
    photos.add('rex', image_bytes(), 'IMG.png')
    with pytest.raises(PhotoError, match='holds 2 photos already'):
        photos.add('rex', image_bytes(), 'IMG.png')


@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', '../x', '/x', '.hidden', 'a b', 'a\0', 'x' * 65, '-x', 'ü'])
def test_names_that_could_be_paths_are_refused(name, photos):
    with pytest.raises(PhotoError, match='cannot name photos'):
        photos.create(name)
    with pytest.raises(PhotoError, match='there are no photos'):
        photos.folder(name)
    photos.add('rex', image_bytes(), 'x')
    with pytest.raises(PhotoError, match='there is no photo'):
        photos.path('rex', name)


def test_folders(photos):
    assert [photos.create(), photos.create()] == ['photos-1', 'photos-2']
    with pytest.raises(PhotoError, match='already'):
        photos.create('rex')
    photos.remove('photos-1')
    assert photos.all() == {'photos-2': 0, 'rex': 0} and photos.create() == 'photos-1'


def test_captions_are_those_that_train_reads(photos):
    name = photos.add('rex', image_bytes(), 'x').name
    assert photos.photos_in('rex')[0].caption is None
    photos.set_caption('rex', name, '  a sks\n dog, asleep ')
    assert photos.photos_in('rex')[0].caption == 'a sks dog, asleep'
    assert list_images(photos.folder('rex'))[0][0].caption == 'a sks dog, asleep'
    with pytest.raises(PhotoError, match='more than 2000'):
        photos.set_caption('rex', name, 'x' * 2001)
    photos.set_caption('rex', name, ' ')
    assert list_images(photos.folder('rex'))[0][0].caption is None
    photos.set_caption('rex', name, 'x')
    photos.remove('rex', name)
    assert list(photos.folder('rex').iterdir()) == []


def test_numbers_are_not_given_again_while_a_later_photo_is_there(photos):
    for _ in range(3):
        photos.add('rex', image_bytes(), 'x')
    photos.remove('rex', '002.png')
    assert photos.add('rex', image_bytes(), 'x').name == '004.png'


def test_a_crop_is_what_the_model_is_shown(photos):
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    Image.fromarray(pixels).save(file, 'JPEG', exif=turned, quality=100)
    name = photos.add('rex', file.getvalue(), 'x').name
    assert (photos.photos_in('rex')[0].width, photos.photos_in('rex')[0].height) == (80, 120)
    shown = np.asarray(Image.open(io.BytesIO(photos.crop('rex', name, 64))))
    assert np.array_equal(shown, read_image(photos.path('rex', name), 64))
    assert Image.open(io.BytesIO(photos.crop('rex', name, 500))).size == (80, 80)  # never enlarged
    photos.path('rex', name).write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(PhotoError):
        photos.crop('rex', name, 64)


def test_masks_are_those_that_train_reads_and_darken_what_they_leave_out(photos):
    name = photos.add('rex', mask_bytes(slice(None)), 'x').name
    photos.set_mask('rex', name, mask_bytes(slice(30, None)), 'mine.png')
    assert photos.photos_in('rex')[0].masked > 0
    (found,) = list_images(photos.folder('rex'))[0]
    assert found.mask.name == '001.mask.png'
    shown = np.asarray(Image.open(io.BytesIO(photos.crop('rex', name, 40))))
    assert (shown[:, 25:] == 255).all() and (shown[:, :15] == 64).all()
    # Another one takes its place, also one of another format.
    photos.set_mask('rex', name, mask_bytes(slice(None), format='WEBP'), 'all.webp')
    assert [path.name for path in sorted(photos.folder('rex').iterdir())] == ['001.mask.webp', '001.png']
    assert (np.asarray(Image.open(io.BytesIO(photos.crop('rex', name, 40)))) == 255).all()
    photos.set_mask('rex', name, b'', '')
    assert photos.photos_in('rex')[0].masked is None
    photos.set_mask('rex', name, mask_bytes(slice(30, None)), 'mine.png')
    photos.remove('rex', name)
    assert list(photos.folder('rex').iterdir()) == []


@pytest.mark.parametrize(
    ('data', 'status', 'told'),
    [
        (
            mask_bytes(slice(0, 9), 40, 60),
            422,
            'the mask IMG.png is 40 x 60 pixels but its image 001.png 60 x 40, both as they are shown upright; make '
            'the mask as large as its image',
        ),
        (
            mask_bytes(slice(0, 0)),
            422,
            'the mask IMG.png is black all over, or all but a few dots, so nothing of its image 001.png would be '
            'learned; paint white what counts, or take both out of their folder',
        ),
        (zipped(), 415, None),
        (b'x' * 50, 415, None),
        (png_head(60_000, 60_000), 422, None),
    ],
    ids=['another size', 'black', 'zip', 'text', 'huge'],
)
def test_what_is_no_mask_of_a_photo_is_refused_and_the_one_before_stays(data, status, told, photos):
    name = photos.add('rex', mask_bytes(slice(None)), 'x').name
    photos.set_mask('rex', name, mask_bytes(slice(30, None)), 'mine.png')
    before = photos.path('rex', name).with_name('001.mask.png').read_bytes()
    with pytest.raises(PhotoError) as error:
        photos.set_mask('rex', name, data, '../../IMG.png')
    assert error.value.status == status and told in (None, str(error.value))
    assert {path.name: path.stat().st_size for path in photos.folder('rex').iterdir()} == {
        '001.png': photos.path('rex', name).stat().st_size,
        '001.mask.png': len(before),
    }
    with pytest.raises(PhotoError, match='there is no photo'):
        photos.set_mask('rex', '../001.png', mask_bytes(slice(30, None)), 'x')


def test_a_crop_keeps_the_ratio_as_buckets_do(photos):
    name = photos.add('rex', image_bytes(300, 200), 'x').name
    shown = Image.open(io.BytesIO(photos.crop('rex', name, 64, keeps_ratio=True)))
    assert shown.size == (80, 48)  # the bucket of 64 px that is nearest to 3 : 2


def test_what_check_photos_finds_is_told_and_stays_known_until_a_photo_changes(photos, monkeypatch):
    assert photos.findings('rex', 32) == []
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, 'PNG')
    first, second = (photos.add('rex', file.getvalue(), 'x').name for _ in range(2))
    found = photos.findings('rex', 32)
    assert 'duplicate' in {one.check for one in found} and {one.crop for one in found} == {None}
    too_small = photos.findings('rex', 512)
    assert [one.photo for one in too_small if one.severity == 'error'] == [first, second]

    checked = []
    monkeypatch.setattr(checked_photos, 'check_folder', lambda *arguments: checked.append(arguments) or NOTHING)
    assert photos.findings('rex', 512) == too_small and not checked
    photos.set_caption('rex', first, 'a sks dog')
    assert photos.findings('rex', 512) == [] and len(checked) == 1
    photos.findings('rex', 512, keeps_ratio=True)
    assert len(checked) == 2


def test_a_crop_that_is_proposed_is_told_and_shown(photos):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    pixels[:, :25] = pixels[:, 75:] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    name = photos.add('rex', file.getvalue(), 'x').name
    (bars,) = (one for one in photos.findings('rex', 32) if one.crop)
    assert (bars.check, bars.photo, bars.crop) == ('bars', name, (26, 6, 74, 54))
    assert {one.crop for one in photos.findings('rex', 60)} == {None}  # it would be too small
    shown = np.asarray(Image.open(io.BytesIO(photos.crop('rex', name, 256, box=bars.crop))))
    assert np.array_equal(shown, pixels[6:54, 26:74])
    photos.set_mask('rex', name, mask_bytes(slice(50, None), 100, 60), 'mask.png')
    shown = np.asarray(Image.open(io.BytesIO(photos.crop('rex', name, 256, box=(25, 5, 75, 55)))))
    assert np.array_equal(shown[:, 25:], pixels[5:55, 50:75]) and shown[:, :25].max() <= 64
    for box in ((0, 0, 101, 60), (5, 0, 5, 60), (0, 9, 10, 8), (-1, 0, 10, 10)):
        with pytest.raises(PhotoError, match='^the box must lie in the photo, which is 100 x 60 pixels$'):
            photos.crop('rex', name, 32, box=box)


def test_a_path_of_the_server_is_in_no_finding(photos, tmp_path):
    name = photos.add('rex', image_bytes(), 'x').name
    photos.set_mask('rex', name, mask_bytes(slice(None), 64, 48), 'mask.png')
    photos.remove('rex', name)
    (photos.folder('rex') / '001.png').write_bytes(image_bytes())
    (photos.folder('rex') / '007.mask.png').write_bytes(mask_bytes(slice(None), 64, 48))  # of no photo
    told = str(photos.findings('rex', 32))
    assert '007.mask.png' in told and str(tmp_path) not in told
