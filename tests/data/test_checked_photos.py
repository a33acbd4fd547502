"""Photos of a subject, checked together with their folder."""

import json

import numpy as np
import pytest

from dreambooth_jax.data import checked_photos
from dreambooth_jax.data.checked_photos import check_folder, verdict
from dreambooth_jax.data.decode import ImageError
from dreambooth_jax.data.photo_checks import Reading
from tests.support.made_photos import scene

SQUARE = Reading({'training': ((256, 256),)})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'photos').mkdir()
    for number in range(3):
        scene(number).save(tmp_path / 'photos' / f'{number}.png')
    return tmp_path / 'photos'


def told(subject):
    return [str(finding) for finding in subject.all_findings]


def test_good_photos_have_no_finding(folder):
    found = check_folder(folder, SQUARE)
    assert told(found) == [] and [photo.name for photo in found.photos] == ['0.png', '1.png', '2.png']
    assert found.place == str(folder)
    assert verdict([found]) == 'nothing found: these photos can be trained on'


def test_findings_of_photos_and_of_all_are_put_in_order(folder):
    scene(0, (300, 225)).save(folder / '4.png')
    scene(1).save(folder / '5.png')
    (folder / 'notes.pdf').write_bytes(b'%PDF-1.4 \x00\x01')
    found = check_folder(folder, SQUARE)
    assert [(one.severity, one.check, one.photo) for one in found.all_findings] == [
        ('error', 'too small', '4.png'),
        ('warning', 'duplicate', '5.png'),
        ('note', 'skipped', 'notes.pdf'),
    ]
    assert told(found)[2] == (
        'note: notes.pdf: it is skipped: a document; take it out of the folder if it is not meant for this'
    )
    assert found.of_photo(found.photos[4]) == [found.all_findings[1]]
    assert verdict([found]) == '1 error, 1 warning, 1 note: training would refuse these photos'


def test_the_verdict_counts_warnings_and_notes(folder):
    scene(1).save(folder / '5.png')
    found = check_folder(folder, SQUARE)
    assert verdict([found, found]) == '2 warnings: training would begin, but look at the warnings first'
    (folder / '5.png').unlink()
    (folder / '1.png').unlink()
    assert verdict([check_folder(folder, SQUARE)]) == '1 note: these photos can be trained on'


def test_a_folder_that_training_refuses_is_an_error_and_its_photos_are_checked_all_the_same(folder):
    (folder / '7.mask.png').write_bytes((folder / '0.png').read_bytes())
    found = check_folder(folder, SQUARE)
    assert told(found)[0] == (
        f'error: all photos: the mask {folder}/7.mask.png has no image beside it (7.jpg, 7.png or another kind); '
        f'rename it or take it out of its folder'
    )
    assert [photo.name for photo in found.photos] == ['0.png', '1.png', '2.png', '7.mask.png']


def test_a_folder_without_photos_or_none_is_refused(tmp_path):
    with pytest.raises(ImageError) as error:
        check_folder(tmp_path, SQUARE)
    assert str(error.value).startswith(f'the folder {tmp_path} holds no image; put images (JPEG')
    with pytest.raises(ImageError, match='does not exist; create it'):
        check_folder(tmp_path / 'none', SQUARE)


def test_features_are_asked_for_once_for_the_photos_that_can_be_read(folder):
    scene(3).save(folder / '3.png')
    scene(0, (200, 200)).save(folder / '4.png')
    seen = []

    def embed(images):
        seen.append([image.shape for image in images])
        return np.eye(2, dtype=np.float32)[[0, 0, 1, 0]]

    found = check_folder(folder, SQUARE, embed)
    assert seen == [[(256, 256, 3)] * 4]
    assert [(one.check, one.photo) for one in found.all_findings] == [
        ('too small', '4.png'),
        ('other subject', '2.png'),
    ]


def test_everything_can_be_written_as_json(folder):
    scene(0, (512, 384)).save(folder / '4.png')
    (folder / '5.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    reading = Reading({'base': ((64, 64),), 'super_resolution': ((256, 256),)}, crops=2)
    content = json.loads(json.dumps(check_folder(folder, reading).to_json()))
    assert content['place'] == str(folder) and len(content['photos']) == 5
    wide, broken = content['photos'][3:]
    assert wide['size'] == [512, 384] and wide['proposed crop'] is None
    for stage, pixel in (('base', 8), ('super_resolution', 2)):  # sides of a pixel of the crop
        np.testing.assert_allclose(wide['crops'][stage][0], [64, 0, 448, 384], atol=pixel)
    assert len(wide['crops']['base']) == 2
    assert broken == {'name': '5.png', 'size': None, 'crops': {}, 'proposed crop': None}
    assert set(content['findings'][0]) == {'severity', 'check', 'photo', 'found', 'advice'}


def test_files_from_elsewhere_are_checked_as_well(folder):
    files, _ = checked_photos.list_images(folder)
    assert checked_photos.check_files('a set', files[:2], SQUARE).findings[0].check == 'few photos'
