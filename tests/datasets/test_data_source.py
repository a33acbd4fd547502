"""Any dataset of TFDS read as photos: dreambench, which is prepared on the way, and others that are prepared."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.decode import decode_image
from dreambooth_jax.data.fingerprints import fingerprint
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.datasets import data_source

tfds = pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')

from dreambooth_jax.datasets import dreambench  # noqa: E402


class ForTests(tfds.core.GeneratorBasedBuilder):
    """Two splits, train with three images and test with one, and whatever further features a test asks for."""

    VERSION = tfds.core.Version('2.1.0')
    more, names = {}, None

    def _info(self):
        features = {'photo': tfds.features.Image(), 'label': tfds.features.Scalar(np.int64), **self.more}
        if self.names:
            features['image/filename'] = tfds.features.Text()
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(0, 3), 'test': self._generate_examples(3, 4)}

    def _generate_examples(self, first, last):
        for number in range(first, last):
            image = Image.fromarray(np.full((8, 9, 3), 40 * number, np.uint8))
            example = {'photo': image, 'label': number, **dict.fromkeys(self.more, image)}
            if self.names:
                example['image/filename'] = self.names[number]
            yield number, example


@pytest.fixture
def made(tmp_path):
    def make():
        builder = tfds.builder('for_tests', data_dir=tmp_path)
        builder.download_and_prepare(file_format='array_record')
        return builder

    return make


def refusal(*arguments, **options):
    with pytest.raises(ImageError) as error:
        data_source.read(*arguments, **options)
    return str(error.value)


def test_a_photo_is_the_same_photo_in_a_dataset_and_in_a_folder(manual_dir, tmp_path):
    name, files = data_source.read('dreambench/dog', data_dir=tmp_path / 'sets', manual_dir=manual_dir)
    there, _ = list_images(manual_dir / 'dog')
    assert name == 'dreambench/dog/1.0.0' and len(files) == 3
    assert [fingerprint(file) for file in files] == [fingerprint(file) for file in there]
    for file, on_disk in zip(files, there, strict=True):
        assert (file.caption, file.mask) == (None, None)
        assert np.array_equal(decode_image(file.path), decode_image(on_disk.path))


def test_dreambench_is_prepared_once_and_quietly(manual_dir, tmp_path, capfd):
    first = data_source.read('dreambench/dog', data_dir=tmp_path / 'sets', manual_dir=manual_dir)
    shutil.rmtree(manual_dir)
    assert data_source.read('dreambench/dog:1.0.0', data_dir=tmp_path / 'sets') == first
    assert capfd.readouterr() == ('', '')
    assert tfds.core.utils.tqdm_utils._active  # TFDS shows its progress again to others


def test_a_damaged_photo_of_a_dataset_is_named_with_it(manual_dir, tmp_path):
    (manual_dir / 'vase' / '00.png').write_bytes((manual_dir / 'vase' / '00.png').read_bytes()[:300])
    (file,) = data_source.read('dreambench/vase', data_dir=tmp_path / 'sets', manual_dir=manual_dir).files
    with pytest.raises(ImageError, match='^00.png of dreambench/vase/1.0.0 is truncated or damaged; replace it'):
        decode_image(file.path)


def test_any_prepared_dataset_with_an_image_is_read(made, tmp_path):
    made()
    name, files = data_source.read('for_tests', data_dir=tmp_path)
    assert name == 'for_tests/2.1.0'
    levels = {file.path.name: int(np.asarray(decode_image(file.path)).mean()) for file in files}
    assert sorted(levels.values()) == [0, 40, 80, 120]
    assert list(levels) == ['00000', '00001', '00002', '00003']  # nothing says what the files were called
    (_, second) = data_source.read('for_tests', 'train[1:]', data_dir=tmp_path).files
    assert np.asarray(decode_image(second.path)).mean() == 80


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['b.png', 'a.png', 'c.png', 'd.png'], ['b.png', 'a.png', 'c.png']),
        (['a.png', 'a.png', 'c.png', 'd.png'], ['00000', '00001', '00002']),  # names must tell files apart
    ],
)
def test_files_have_the_names_that_a_dataset_gives_them(made, tmp_path, monkeypatch, names, expected):
    monkeypatch.setattr(ForTests, 'names', names)
    made()
    files = data_source.read('for_tests', 'train', data_dir=tmp_path).files
    assert [file.path.name for file in files] == expected


def test_masks_are_no_second_image(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ForTests, 'more', {'mask': tfds.features.LabeledImage(labels=2, shape=(None, None, 1))})
    made()
    assert len(data_source.read('for_tests', data_dir=tmp_path).files) == 4


def test_two_images_are_one_too_many(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ForTests, 'more', {'depth': tfds.features.Image()})
    made()
    assert refusal('for_tests', data_dir=tmp_path) == (
        'for_tests/2.1.0 must have one feature that is an image, but has 2 among depth, label, photo'
    )


def test_other_datasets_are_not_prepared_by_the_way(tmp_path):
    assert refusal('for_tests', data_dir=tmp_path) == (
        f'it is not prepared in {tmp_path}; prepare it there as array_record (a run prepares only dreambench)'
    )
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(made, tmp_path):
    path = made().data_path / 'dataset_info.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'fileFormat': 'tfrecord'}))
    assert refusal('for_tests', data_dir=tmp_path) == (
        'it is prepared in another format than array_record; prepare it as that'
    )


@pytest.mark.parametrize(
    ('name', 'split', 'sentence'),
    [
        ('dreambench', None, 'dreambench needs the name of a configuration, such as dreambench/dog; it has backpack, '),
        ('dreambench/dog9', None, 'dreambench needs the name of a configuration, such as dreambench/dog; it has '),
        ('no_such_dataset', None, 'TFDS says: Dataset no_such_dataset not found.'),
        ('my photos', None, 'TFDS says: Parsing builder name string my photos failed.'),
        ('dreambench/dog/data_dir=x', None, 'it holds arguments (data_dir); give the name alone'),
        ('dreambench/storybook_can:9.0.0', None, 'TFDS says: Failed to construct dataset "dreambench"'),
        ('dreambench/storybook_can', 'train', "TFDS says: Unknown split 'train'. Should be one of ['test']."),
        ('dreambench/storybook_can', 'test[50%:50%]', 'test[50%:50%] of dreambench/storybook_can/1.0.0 holds no '),
        ('dreambench/dog', None, "manual_dir (where none is given, downloads/manual in TFDS's data_dir) is missing or"),
    ],
)
def test_what_is_wrong_is_one_clause(name, split, sentence, tmp_path):
    told = refusal(name, split, data_dir=tmp_path)
    assert told.startswith(sentence) and '\n' not in told


@pytest.mark.parametrize('package', ['tensorflow_datasets', 'array_record', 'importlib_resources'])
def test_a_missing_package_is_named_with_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    assert refusal('dreambench/storybook_dog') == f"the package {package} is not installed; pip install -e '.[tfds]'"


def test_a_dataset_that_another_process_prepares_at_the_same_time_is_read(tmp_path, monkeypatch):
    prepare = dreambench.Dreambench.download_and_prepare

    def lose(self, **options):
        prepare(tfds.builder('dreambench/storybook_can', data_dir=tmp_path), **options)
        raise FileExistsError(39, 'Directory not empty')

    monkeypatch.setattr(dreambench.Dreambench, 'download_and_prepare', lose)
    assert data_source.read('dreambench/storybook_can', data_dir=tmp_path).files


def test_a_disk_that_cannot_be_written_stays_an_error_of_the_disk(tmp_path, monkeypatch):
    def fail(self, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(dreambench.Dreambench, 'download_and_prepare', fail)
    with pytest.raises(OSError, match='No space left on device'):
        data_source.read('dreambench/storybook_can', data_dir=tmp_path)
