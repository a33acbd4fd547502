"""Photos of the experiments' subjects are painted, or read from a folder of folders."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.evaluation.trial_photos import TrialPhotos
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import captions, reference_scenes


@pytest.fixture
def folder(tmp_path):
    for name, subject in enumerate(('dog', 'can')):
        (tmp_path / subject).mkdir()
        for number in range(3):
            Image.new('RGB', (40, 50 + number), (name * 90, number, 0)).save(tmp_path / subject / f'{number:02d}.png')
    Image.new('L', (40, 51), 255).save(tmp_path / 'dog' / '01.mask.png')
    return tmp_path


def test_painted_photos_need_no_settings_and_have_masks():
    photos = TrialPhotos()
    images, masks = photos.of('vase', 32)
    scenes = reference_scenes('vase')
    assert photos.are_painted and photos.settings('vase') == {} and len(images) == len(masks) == len(scenes)
    assert np.array_equal(images[1], draw.paint(scenes[1], 32)) and masks[1].shape == (32, 32)


def test_photos_of_a_folder_are_read_whole_with_the_masks_that_there_are(folder):
    photos = TrialPhotos(folder)
    images, masks = photos.of('dog', 32)
    assert not photos.are_painted and photos.settings('dog') == {'data.instance_dir': folder / 'dog'}
    assert [image.shape for image in images] == [(50, 40, 3), (51, 40, 3), (52, 40, 3)]
    assert masks[0] is None and masks[2] is None and masks[1].shape == (51, 40) and masks[1].min() == 255


@pytest.mark.parametrize('count', [1, 2, 9])
def test_the_first_photos_are_written(folder, tmp_path, count):
    TrialPhotos(folder).write('can', count, tmp_path / 'some', 'a sks can')
    written = sorted(tmp_path.joinpath('some').iterdir())
    assert [path.name for path in written] == ['00.png', '01.png', '02.png'][:count]
    assert written[0].read_bytes() == (folder / 'can' / '00.png').read_bytes()
    TrialPhotos().write('can', count, tmp_path / 'painted', 'a sks can')
    painted, _ = list_images(tmp_path / 'painted')
    scenes = reference_scenes('can')[:count]
    assert len(painted) == len(scenes)
    assert np.array_equal(np.asarray(Image.open(painted[0].path)), draw.paint(scenes[0], 128))
    assert [file.caption for file in painted] == captions('can', 'a sks can', len(scenes))


def test_captions_and_masks_go_with_their_photos(folder, tmp_path):
    (folder / 'dog' / '02.txt').write_text('a sks dog asleep')
    TrialPhotos(folder).write('dog', 3, tmp_path / 'some', 'a sks dog')
    files, _ = list_images(tmp_path / 'some')
    assert [(file.caption, file.mask and file.mask.name) for file in files] == [
        (None, None),
        (None, '01.mask.png'),
        ('a sks dog asleep', None),
    ]


def test_a_subject_without_photos_is_named(folder):
    with pytest.raises(ImageError, match=r'^the folder .*/cat does not exist; create it and put images'):
        TrialPhotos(folder).of('cat', 32)
    (folder / 'cat').mkdir()
    with pytest.raises(ImageError, match=r'^the folder .*/cat holds no photo of cat; put some there$'):
        TrialPhotos(folder).of('cat', 32)
