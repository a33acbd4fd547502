"""Subjects that come from a dataset of TFDS are those of a folder with the same files."""

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.datasets import data_source
from dreambooth_jax.finetune import instance_images

pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')

WORDS = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
CUP = {'subject': 'vase', 'instance_prompt': 'a zwx vase', 'class_prompt': 'a vase'}


@pytest.fixture
def config(tmp_path):
    """Settings with the dataset of a painted dog, or with other settings of `data`."""

    def made(**data):
        return resolve(DreamBoothConfig, {'data': {'tfds_dir': str(tmp_path / 'sets'), **data}})

    return made


@pytest.fixture
def folder(tmp_path):
    """The same dog in a folder."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for file in data_source.read('dreambench/storybook_dog', data_dir=tmp_path / 'sets').files:
        (folder / file.path.name).write_bytes(file.path.read_bytes())
    return str(folder)


def test_images_and_their_order_are_those_of_a_folder(config, folder):
    dataset = config(tfds='dreambench/storybook_dog', crops=3, **WORDS)
    same = resolve(DreamBoothConfig, {'data': {'instance_dir': folder, 'crops': 3, **WORDS}})
    for order in (None, ['03.png', '01.png', '02.png', '00.png']):
        left, right = (
            instance_images.read(one, 64, order=order and {f'data.{name}': order})
            for one, name in ((dataset, 'tfds'), (same, 'instance_dir'))
        )
        assert np.array_equal(left[0].images, right[0].images) and left[0].masks is right[0].masks is None
        assert left[0].prompts == right[0].prompts == ['a sks dog'] * 12
        assert left[0].class_prompts == right[0].class_prompts


def test_photos_are_listed_under_the_setting_that_names_them(config, folder):
    one = instance_images.photos(config(tfds='dreambench/storybook_dog', **WORDS))
    assert {setting: [file.path.name for file in files] for setting, files in one.items()} == {
        'data.tfds': ['00.png', '01.png', '02.png', '03.png']
    }
    several = (CUP, {'tfds': 'dreambench/storybook_cat', **WORDS}, {'instance_dir': folder, **WORDS})
    assert list(instance_images.photos(config(subjects=several))) == [
        'data.subjects[1].tfds',
        'data.subjects[2].instance_dir',
    ]


def test_several_subjects_may_come_from_everywhere(config, folder):
    several = (
        {'tfds': 'dreambench/storybook_dog', 'tfds_split': 'test[:2]', **WORDS},
        {'instance_dir': folder, **WORDS},
        CUP,
    )
    (found,) = instance_images.read(config(subjects=several), 32)
    assert found.prompts[:6] == ['a sks dog'] * 6 and set(found.prompts[6:]) == {'a zwx vase'}
    assert np.array_equal(found.images[:2], found.images[2:4])


def test_a_dataset_is_described_image_by_image(config):
    assert instance_images.describe_folders(config(tfds='dreambench/storybook_dog', **WORDS)).splitlines() == [
        "  dreambench/storybook_dog/1.0.0 of TFDS: 4 files, 'a sks dog'",
        '    00.png: 128 x 128',
        '    01.png: 128 x 128',
        '    02.png: 128 x 128',
        '    03.png: 128 x 128',
    ]


def test_a_dataset_without_captions_needs_none(config, caplog):
    with caplog.at_level('WARNING'):
        instance_images.check_folders(config(tfds='dreambench/storybook_dog', **WORDS))
    assert caplog.records == []


@pytest.mark.parametrize('is_one_of_several', [False, True])
def test_what_is_wrong_with_a_dataset_is_told_with_the_setting(config, tmp_path, is_one_of_several):
    wrong = {'tfds': 'dreambench/dog', **WORDS}
    manual = {'tfds_manual_dir': str(tmp_path)}
    found = config(subjects=(CUP, wrong), **manual) if is_one_of_several else config(**wrong, **manual)
    with pytest.raises(ConfigError) as error:
        instance_images.photos(found)
    assert str(error.value) == (
        f"config.data.{'subjects[1].' if is_one_of_several else ''}tfds is 'dreambench/dog' but {tmp_path}/dog holds "
        f'no JPEG or PNG file; clone https://github.com/google/dreambooth and give its folder dataset as manual_dir, '
        f'in a run as config.data.tfds_manual_dir'
    )
