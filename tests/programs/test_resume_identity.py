"""A resumed run knows its photos, captions, masks, class images and model by content, wherever they lie by now."""

import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.generation import sample_grid
from dreambooth_jax.generation.cascade import Cascade, Images
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import loop, placement
from dreambooth_jax.weights import files
from tests.support import smallest_pipelines

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = 'model'
    config.super_resolution_model = 'none'
    config.data.instance_dir = 'photos'
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.data.crops = 2
    config.prior.dir = 'dogs'
    config.base.steps = 4
    config.base.learning_rate = 1e-3
    return config
"""


@pytest.fixture(autouse=True)
def no_samples_on_one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)
    monkeypatch.setattr(sample_grid.SampleGrid, 'save', lambda self, *arguments: None)


@pytest.fixture
def untrained(monkeypatch):
    """The programs as they are, but that every training ends at once: for what is decided before or after it."""
    monkeypatch.setattr(loop, 'run', lambda state, *arguments, **options: (state, True))


def noise(path, side=24, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder: config.py, model/, photos/ with a caption and a mask, and dogs/, own class images."""
    monkeypatch.chdir(tmp_path)
    for folder, side in (('photos', 24), ('dogs', 12)):
        (tmp_path / folder).mkdir()
        for number in (1, 2, 3):
            noise(tmp_path / folder / f'{number}.png', side, seed=number)
    (tmp_path / 'photos' / '2.txt').write_text('a sks dog on a rug')
    mask = np.zeros((24, 24), np.uint8)
    mask[4:20] = 255
    Image.fromarray(mask).save(tmp_path / 'photos' / '3.mask.png')
    shutil.copytree(smallest_pipelines.folder('pixels'), tmp_path / 'model')
    shutil.rmtree(tmp_path / 'model' / 'super_resolution')
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


@pytest.fixture
def train(program):
    def run(*settings, workdir='run'):
        flags = [one if one.startswith('--') else f'--config.{one}' for one in settings]
        return program('train', '--config=config.py', f'--workdir={workdir}', *flags)

    return run


def trained(home, workdir):
    return files.read_tensors(home / workdir / 'model' / 'unet' / 'diffusion_pytorch_model.safetensors')


def last(ended):
    assert ended.code == 1
    return ended.error.splitlines()[-1]


def stop_after_write(self, step, values, write=metrics.Metrics.write):
    """In the place of Metrics.write: asks the program to save and end, as a shell's `kill` does."""
    write(self, step, values)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_with_photos_and_model_that_were_moved_and_renamed(train, home, monkeypatch):
    assert train(workdir='whole').code == 0
    with monkeypatch.context() as patched:
        patched.setattr(metrics.Metrics, 'write', stop_after_write)
        assert 'stopped in the base stage' in train().out
    for folder, before, after in (('photos', '1', 'zebra'), ('photos', '3', '0'), ('dogs', '2', 'z')):
        for path in list((home / folder).glob(f'{before}.*')):
            path.rename(home / folder / (after + path.name[1:]))
    for before, after in (('photos', 'album'), ('model', 'sd'), ('dogs', 'pets')):
        shutil.move(home / before, home / after)
    ended = train(f'data.instance_dir={home}/album', f'model={home}/sd', 'prior.dir=./pets')
    assert ended.code == 0, ended.error
    whole, parts = trained(home, 'whole'), trained(home, 'run')
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[name], parts[name]) for name in whole)
    losses = [[line['loss'] for line in metrics.read(home / run, 'base')] for run in ('whole', 'run')]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert json.loads((home / 'run' / 'config.json').read_text())['data']['instance_dir'] == f'{home}/album'
    photos = json.loads((home / 'run' / 'inputs.json').read_text())['photos']
    assert [photo['name'] for photo in photos['data.instance_dir']] == ['zebra.png', '2.png', '0.png']
    assert [photo['name'] for photo in photos['prior.dir']] == ['1.png', 'z.png', '3.png']


def test_other_photos_captions_and_masks_are_refused_by_name(train, home, untrained):
    assert train().code == 0
    record = (home / 'run' / 'inputs.json').read_bytes()
    noise(home / 'photos' / '1.png', seed=9)
    (home / 'photos' / '2.txt').write_text('a sks cat')
    (home / 'photos' / '3.mask.png').unlink()
    noise(home / 'photos' / 'cat.png', seed=10)
    sentence = (
        "config.data.instance_dir is 'photos', which does not hold what run was begun with: 1.png is another image, "
        'the caption of 2.png is another, the mask of 3.png is missing, cat.png is new; put that back, or start '
        'another run with --workdir (with --config.prior.dir=dogs it has the same class images)'
    )
    assert last(train('base.steps=8')) == sentence
    assert last(train('base.steps=8', '--dry_run')) == sentence
    assert json.loads((home / 'run' / 'config.json').read_text())['base']['steps'] == 4
    assert (home / 'run' / 'inputs.json').read_bytes() == record
    assert train(workdir='other').code == 0


def test_another_model_under_the_same_name_is_refused(train, home, untrained):
    assert train().code == 0
    path = home / 'model' / 'scheduler' / 'scheduler_config.json'
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), 'prediction_type': 'v_prediction'}))
    assert last(train()) == (
        "config.model is 'model', which differs in noise schedule or prediction type from the model that run was begun "
        'with; put that model back, or start another run with --workdir'
    )
    path.write_text(before)
    weights = home / 'model' / 'unet' / 'diffusion_pytorch_model.safetensors'
    tensors = files.read_tensors(weights)
    files.write_tensors(weights, {**tensors, 'conv_in.bias': tensors['conv_in.bias'] + 1})
    assert "config.model is 'model', which differs in weights from" in last(train())


def test_photos_of_ones_own_are_class_images_and_known_by_content(train, home, untrained):
    planned = train('--dry_run')
    assert 'class images: 3 photos of your own in dogs, all used, none generated\n' in planned.out
    assert train().code == 0
    assert len(list((home / 'dogs').iterdir())) == 3
    manifest = json.loads((home / 'run' / 'prior' / 'manifest.json').read_text())
    assert len(manifest['photos']['images']) == 3 and manifest['photos']['folder'] == str(home / 'dogs')
    assert last(train('prior.dir=None')) == (
        'config.prior.dir is None, no folder of photos of your own, but run was begun with class images that are '
        'such photos; set it back, or start another run with --workdir'
    )
    noise(home / 'dogs' / '1.png', side=12, seed=9)
    assert last(train()) == (
        "config.prior.dir is 'dogs', which does not hold what run was begun with: 1.png is another image; put that "
        'back, or start another run with --workdir'
    )
    noise(home / 'dogs' / '1.png', side=7)
    assert last(train(workdir='other')).startswith('dogs/1.png is 7 x 7 pixels, smaller than the resolution 8; ')


def paint(self, prompts, requests, options):
    """In the place of Cascade.stream: grey images."""
    for number in range(len(requests)):
        yield range(number, number + 1), Images(np.full((1, 8, 8, 3), 128, np.uint8), None)


def test_memory_that_is_full_is_one_sentence_whose_advice_works_in_the_same_folder(train, home, monkeypatch):
    def full(*arguments, **options):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n more')

    generated = ('prior.dir=None', 'prior.num_images=3', 'prior.batch_size=8')
    with monkeypatch.context() as patched:
        patched.setattr(Cascade, 'stream', full)
        assert last(train(*generated)) == (
            "the device's memory is full while class images are generated (RESOURCE_EXHAUSTED: Out of memory while "
            'trying to allocate 9 bytes.); try --config.prior.batch_size=4, and start again: what is done is kept'
        )
    monkeypatch.setattr(Cascade, 'stream', paint)
    with monkeypatch.context() as patched:
        patched.setattr(loop, 'run', full)
        assert last(train(*generated)) == (
            "the device's memory is full while the base stage trains (RESOURCE_EXHAUSTED: Out of memory while trying "
            'to allocate 9 bytes.); try --config.parallel.remat=True, then --config.optimizer.state_dtype=int8, then '
            '--config.base.gradient_accumulation_steps=2, then --config.lora.rank=16, and start again: what is done '
            'is kept'
        )
    before = {path: path.stat().st_mtime_ns for path in (home / 'run' / 'prior').iterdir()}
    assert len(before) == 4
    monkeypatch.setattr(loop, 'run', lambda state, *arguments, **options: (state, True))
    less = ('parallel.remat=True', 'optimizer.state_dtype=int8', 'base.gradient_accumulation_steps=2', 'lora.rank=2')
    ended = train(*generated[:2], 'prior.batch_size=4', *less)
    assert ended.code == 0, ended.error
    assert {path: path.stat().st_mtime_ns for path in (home / 'run' / 'prior').iterdir()} == before


def test_a_run_without_class_examples_needs_no_class_prompt(train, home, untrained):
    ended = train('prior.dir=None', 'prior.weight=0', 'data.class_prompt=')
    assert ended.code == 0 and (home / 'run' / 'model').is_dir()
