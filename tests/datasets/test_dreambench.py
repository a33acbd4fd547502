"""The dataset as a user of TFDS sees it: prepared from photos or painted, read by a data source without tensorflow."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.images import ImageError
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.text import prompts

tfds = pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')

from dreambooth_jax.datasets import dreambench  # noqa: E402

DATASET = os.environ.get('DREAMBOOTH_DATASET')
RAW = {'image': tfds.decode.SkipDecoding()}
AS_MANUAL_DIR = (
    '; clone https://github.com/google/dreambooth and give its folder dataset as manual_dir, in a run as '
    'config.data.tfds_manual_dir'
)


def prepared(config, data_dir, manual_dir=None):
    builder = tfds.builder(f'dreambench/{config}', data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def test_photos_come_in_the_order_of_their_names_with_what_is_known_of_them(manual_dir, tmp_path):
    builder = prepared('dog', tmp_path / 'sets', manual_dir)
    examples = builder.as_data_source('test')
    assert [example['file_name'] for example in examples] == [b'00.jpg', b'01.jpeg', b'02.JPG']
    for example, name, width in zip(examples, ('00.jpg', '01.jpeg', '02.JPG'), (25, 26, 24), strict=True):
        assert example['image'].shape == (20, width, 3)
        assert np.array_equal(example['image'], np.asarray(Image.open(manual_dir / 'dog' / name)))
        assert (example['subject'], example['class_noun'], bool(example['is_live'])) == (b'dog', b'dog', True)


def test_photos_keep_the_bytes_of_their_files(manual_dir, tmp_path):
    (example,) = prepared('vase', tmp_path / 'sets', manual_dir).as_data_source('all', decoders=RAW)
    assert example['image'] == (manual_dir / 'vase' / '00.png').read_bytes()
    assert (example['class_noun'], bool(example['is_live'])) == (b'vase', False)


def test_painted_images_are_the_subjects_reference_scenes(tmp_path):
    examples = prepared('storybook_dog6', tmp_path).as_data_source('test')
    scenes = subjects.reference_scenes('dog6')
    assert [example['file_name'].decode() for example in examples] == [f'{n:02d}.png' for n in range(len(scenes))]
    for example, scene in zip(examples, scenes, strict=True):
        assert np.array_equal(example['image'], draw.paint(scene, 128))
        assert example['subject'] == b'dog6'


def test_every_subject_has_a_configuration_of_each_kind():
    configs = dreambench.Dreambench.builder_configs
    assert list(configs) == [*subjects.SUBJECTS, *(f'storybook_{name}' for name in subjects.SUBJECTS)]
    assert len(configs) == 60 and {config.subject for config in configs.values()} == set(subjects.SUBJECTS)
    assert all(config.is_painted == name.startswith('storybook_') for name, config in configs.items())
    assert configs['bear_plushie'].description == "The stuffed animal 'bear_plushie' in photos."


def test_the_card_names_source_and_licence(tmp_path):
    photos, painted = (tfds.builder(f'dreambench/{name}', data_dir=tmp_path).info for name in ('dog', 'storybook_dog'))
    assert str(photos.version) == '1.0.0' and 'ruiz2023dreambooth' in photos.citation
    assert photos.homepage == 'https://dreambooth.github.io'
    licences = [info.as_proto.redistribution_info.license for info in (photos, painted)]
    assert 'CC BY 4.0' in licences[0] and 'Unsplash' in licences[0] and licences[1] == 'Apache-2.0'


@pytest.mark.parametrize(
    ('config', 'manual', 'lacking'),
    [
        ('dog', 'nowhere', "manual_dir (where none is given, downloads/manual in TFDS's data_dir) is missing or empty"),
        ('cat', 'dreambooth/dataset', '{manual}/cat holds no JPEG or PNG file'),
        ('teapot', 'dreambooth/dataset', '{manual}/teapot holds no JPEG or PNG file'),  # an empty folder
        ('dog', 'dreambooth', '{manual}/dog holds no JPEG or PNG file'),  # the folder above the right one
    ],
)
def test_a_wrong_manual_dir_is_answered_with_what_to_download(config, manual, lacking, manual_dir, tmp_path):
    with pytest.raises(ImageError) as error:
        prepared(config, tmp_path / 'sets', tmp_path / manual)
    assert str(error.value) == lacking.format(manual=tmp_path / manual) + AS_MANUAL_DIR
    assert not tfds.builder(f'dreambench/{config}', data_dir=tmp_path / 'sets').data_path.exists()


@pytest.mark.slow
def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    script = f"""
import sys
import tensorflow_datasets as tfds
import dreambooth_jax.datasets.dreambench
builder = tfds.builder('dreambench/storybook_can', data_dir={str(tmp_path)!r}, file_format='array_record')
builder.download_and_prepare()
shapes = [example['image'].shape for example in builder.as_data_source('test')]
print(shapes, {{'tensorflow', 'jax'}} & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    shapes = [(128, 128, 3)] * len(subjects.reference_scenes('can'))
    assert ended.stdout.splitlines()[-1] == f'{shapes} set()'


@pytest.mark.skipif(not DATASET, reason='DREAMBOOTH_DATASET names no folder')
def test_the_papers_photos_make_all_thirty_configurations(tmp_path):
    listed = (Path(DATASET) / 'prompts_and_classes.txt').read_text('utf-8').split('Prompts')[0]
    nouns = dict(line.split(',') for line in listed.splitlines() if ',' in line)
    for name in subjects.SUBJECTS:
        found = list(prepared(name, tmp_path, DATASET).as_data_source('test', decoders=RAW))
        there = sorted((Path(DATASET) / name).iterdir())
        assert [example['file_name'].decode() for example in found] == [path.name for path in there]
        assert [example['image'] for example in found] == [path.read_bytes() for path in there]
        noun = found[0]['class_noun'].decode()
        assert noun == nouns[name] and bool(found[0]['is_live']) == (noun in prompts.LIVE_CLASSES)
        assert Image.open(io.BytesIO(found[0]['image'])).format == 'JPEG'
