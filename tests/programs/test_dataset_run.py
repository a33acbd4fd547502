"""A run on a dataset of TFDS: it learns what it would from a folder of the same photos, and knows them by content."""

import functools
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from dreambooth_jax.datasets import data_source
from dreambooth_jax.generation import sample_grid
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import loop, placement
from dreambooth_jax.weights import files
from tests.support import smallest_pipelines

pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record.python.array_record_data_source')  # it defines flags, which `program` would take away

CONFIG = Path(__file__).parents[2] / 'configs' / 'dog.py'
DATASET = ('data.tfds=dreambench/storybook_dog', 'data.tfds_dir=sets')
UNETS = ('unet', 'super_resolution/unet')


@pytest.fixture(autouse=True)
def no_samples_on_one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)
    monkeypatch.setattr(sample_grid.SampleGrid, 'save', lambda self, *arguments: None)


@pytest.fixture
def untrained(monkeypatch):
    """The programs as they are, but that every training ends at once."""
    monkeypatch.setattr(loop, 'run', lambda state, *arguments, **options: (state, True))


@pytest.fixture
def train(program, tmp_path, monkeypatch):
    """Trains both stages of a tiny model for a few steps, without class images, in a folder of the current one."""
    monkeypatch.chdir(tmp_path)
    steps = ('prior.weight=0', 'base.steps=3', 'super_resolution.steps=2', 'data.crops=2', 'evaluation.every=0')
    few = (f'model={smallest_pipelines.folder("pixels")}', *steps)

    def run(*settings, workdir='run'):
        flags = [one if one.startswith('--') else f'--config.{one}' for one in (*few, *settings)]
        return program('train', f'--config={CONFIG}', f'--workdir={workdir}', *flags)

    return run


def write_folder(dataset, folder):
    folder.mkdir()
    for file in data_source.read(dataset, data_dir='sets').files:
        (folder / file.path.name).write_bytes(file.path.read_bytes())


def refusal(ended):
    assert ended.code == 1
    return ended.error.splitlines()[-1]


@pytest.mark.slow
def test_a_plan_lists_the_photos_of_a_dataset(train, tmp_path):
    ended = train(*DATASET, '--dry_run')
    assert ended.code == 0, ended.error
    assert (
        "photos:\n  dreambench/storybook_dog/1.0.0 of TFDS: 4 files, 'a sks dog'\n    00.png: 128 x 128\n" in ended.out
    )
    assert [path.name for path in tmp_path.iterdir()] == ['sets']  # prepared there, as a model is fetched from its hub


def test_a_run_knows_the_photos_of_its_dataset(train, tmp_path, untrained):
    ended = train(*DATASET)
    assert ended.code == 0, ended.error
    listed = json.loads((tmp_path / 'run' / 'inputs.json').read_text())['photos']
    assert [photo['name'] for photo in listed['data.tfds']] == ['00.png', '01.png', '02.png', '03.png']
    again = ('data.tfds=dreambench/storybook_dog:1.0.0', 'data.tfds_dir=elsewhere', 'data.tfds_split=test')
    assert train(*again).code == 0
    assert refusal(train('data.tfds=dreambench/storybook_dog8', 'data.tfds_dir=sets')).startswith(
        "config.data.tfds is 'dreambench/storybook_dog8', which does not hold what run was begun with: 00.png is "
        'another image, 01.png is another image, '
    )
    assert refusal(train(*DATASET, 'data.tfds_split=test[:3]')).startswith(
        "config.data.tfds is 'dreambench/storybook_dog', which does not hold what run was begun with: 03.png is missing"
    )
    write_folder('dreambench/storybook_dog', tmp_path / 'photos')
    assert refusal(train('data.instance_dir=photos')).startswith(
        "config.data.instance_dir is 'photos' but run was begun with None; set it back, or start another run"
    )


def test_photos_that_are_not_there_are_asked_for_before_anything_is_written(train, tmp_path):
    (tmp_path / 'dataset' / 'vase').mkdir(parents=True)
    assert refusal(train('data.tfds=dreambench/dog', 'data.tfds_dir=sets', 'data.tfds_manual_dir=dataset')) == (
        "config.data.tfds is 'dreambench/dog' but dataset/dog holds no JPEG or PNG file; clone "
        'https://github.com/google/dreambooth and give its folder dataset as manual_dir, in a run as '
        'config.data.tfds_manual_dir'
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_on_a_dataset_is_the_run_on_a_folder_of_its_photos(train, tmp_path, monkeypatch):
    write = metrics.Metrics.write

    def write_then_end(self, step, values):
        write(self, step, values)
        if (self.stage, step) == ('base', 1):
            os.kill(os.getpid(), signal.SIGTERM)

    write_folder('dreambench/storybook_dog', tmp_path / 'photos')
    ended = train('data.instance_dir=photos', workdir='folder')
    assert ended.code == 0, ended.error
    with monkeypatch.context() as patched:
        patched.setattr(metrics.Metrics, 'write', write_then_end)
        assert 'stopped in the base stage' in train(*DATASET, workdir='dataset').out
    assert train(*DATASET, workdir='dataset').code == 0
    for stage, steps in (('base', 3), ('super_resolution', 2)):
        losses = [[line['loss'] for line in metrics.read(tmp_path / run, stage)] for run in ('folder', 'dataset')]
        assert losses[0] == losses[1] and len(losses[0]) == steps
    for unet in UNETS:
        path = Path('model') / unet / 'diffusion_pytorch_model.safetensors'
        folder, dataset = (files.read_tensors(tmp_path / run / path) for run in ('folder', 'dataset'))
        assert folder.keys() == dataset.keys() and all(np.array_equal(folder[name], dataset[name]) for name in folder)
    prints = [json.loads((tmp_path / run / 'inputs.json').read_text())['photos'] for run in ('folder', 'dataset')]
    assert prints[0]['data.instance_dir'] == prints[1]['data.tfds']
