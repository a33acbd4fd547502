"""A resumed run knows its photos, captions, masks, class pictures and model by content, wherever they lie by now."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.training import loop, placement
from dreambooth_jax.watching import metrics
from dreambooth_jax.weights import files
from tests import smallest_pipelines

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
    config.prior.num_images = 3
    config.prior.steps = 2
    config.prior.sampler = 'ddim'
    config.prior.guidance_scale = 1.0
    config.base.steps = 4
    config.base.learning_rate = 1e-3
    config.samples.steps = 2
    config.samples.num_images = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    config.samples.prompts = ('a sks dog',)
    return config
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


def noise(path, side=24, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder: config.py, model/ and photos/ with a caption and a mask."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    for number in (1, 2, 3):
        noise(tmp_path / 'photos' / f'{number}.png', seed=number)
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
        return program('train', '--config=config.py', f'--workdir={workdir}', *(f'--config.{one}' for one in settings))

    return run


def trained(home, workdir):
    return files.read_tensors(home / workdir / 'model' / 'unet' / 'diffusion_pytorch_model.safetensors')


def pretend_trained(home, workdir='run'):
    """As after two steps, for what is refused before anything is computed."""
    (home / workdir / 'base' / 'checkpoints' / '2').mkdir(parents=True)


def last(ended):
    assert ended.code == 1
    return ended.error.splitlines()[-1]


def test_a_run_goes_on_bit_for_bit_with_photos_and_model_that_were_moved_and_renamed(train, home):
    assert train(workdir='whole').code == 0
    assert train('base.steps=2').code == 0
    for before, after in (('1.png', 'zebra.png'), ('3.png', '0.png'), ('3.mask.png', '0.mask.png')):
        (home / 'photos' / before).rename(home / 'photos' / after)
    shutil.move(home / 'photos', home / 'album')
    shutil.move(home / 'model', home / 'sd')
    shutil.move(home / 'run' / 'prior', home / 'shared')
    ended = train(f'data.instance_dir={home}/album', f'model={home}/sd', 'prior.dir=shared')
    assert ended.code == 0, ended.error
    whole, parts = trained(home, 'whole'), trained(home, 'run')
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[name], parts[name]) for name in whole)
    losses = [[line['loss'] for line in metrics.read(home / run, 'base')] for run in ('whole', 'run')]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert json.loads((home / 'run' / 'config.json').read_text())['data']['instance_dir'] == f'{home}/album'
    photos = json.loads((home / 'run' / 'inputs.json').read_text())['photos']['data.instance_dir']
    assert [photo['name'] for photo in photos] == ['zebra.png', '2.png', '0.png']


def test_other_photos_captions_and_masks_are_refused_by_name(train, home, monkeypatch):
    monkeypatch.setattr(loop, 'run', lambda state, *arguments, **options: (state, False))
    assert train().code == 0
    pretend_trained(home)
    record = (home / 'run' / 'inputs.json').read_bytes()
    noise(home / 'photos' / '1.png', seed=9)
    (home / 'photos' / '2.txt').write_text('a sks cat')
    (home / 'photos' / '3.mask.png').unlink()
    noise(home / 'photos' / 'cat.png', seed=10)
    sentence = (
        "config.data.instance_dir is 'photos', which does not hold what run was begun with: 1.png is another picture, "
        'the caption of 2.png is another, the mask of 3.png is missing, cat.png is new; put that back, or start '
        'another run with --workdir (with --config.prior.dir=run/prior it has the same class pictures)'
    )
    assert last(train('base.steps=8')) == sentence
    assert last(train('base.steps=8', 'data.instance_dir=photos/../photos')).replace('photos/../', '') == sentence
    assert json.loads((home / 'run' / 'config.json').read_text())['base']['steps'] == 4
    assert (home / 'run' / 'inputs.json').read_bytes() == record


def test_another_model_under_the_same_name_is_refused(train, home, monkeypatch):
    monkeypatch.setattr(loop, 'run', lambda state, *arguments, **options: (state, False))
    assert train().code == 0
    pretend_trained(home)
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


def test_photos_of_ones_own_are_class_pictures_and_known_by_content(program, train, home):
    own = home / 'dogs'
    own.mkdir()
    for number in range(4):
        noise(own / f'{number}.png', side=10 + number, seed=number)
    planned = program('train', '--config=config.py', '--workdir=run', '--dry_run', '--config.prior.dir=dogs')
    assert 'class pictures: 4 photos of your own in dogs, all used, none drawn\n' in planned.out
    assert train('prior.dir=dogs', 'base.steps=2').code == 0
    assert not (home / 'run' / 'prior').exists() and len(list(own.iterdir())) == 4
    assert {'prior_loss'} <= metrics.read(home / 'run', 'base')[0].keys()
    shutil.move(own, home / 'pets')
    (home / 'pets' / '0.png').rename(home / 'pets' / 'z.png')
    assert train('prior.dir=pets', 'base.steps=3').code == 0
    assert last(train('base.steps=4')) == (
        'config.prior.dir is None, so class pictures are drawn by the model, but run was begun with class pictures '
        'that are photos of your own; set it back, or start another run with --workdir'
    )
    noise(home / 'pets' / '1.png', side=12, seed=9)
    assert last(train('prior.dir=pets', 'base.steps=4')) == (
        "config.prior.dir is 'pets', which does not hold what run was begun with: 1.png is another picture; put that "
        'back, or start another run with --workdir'
    )
    noise(home / 'pets' / '1.png', side=7)
    small = last(train('prior.dir=pets', workdir='other'))
    assert small.startswith('pets/1.png is 7 x 7 pixels, smaller than the resolution 8; ')


def test_memory_that_is_full_is_one_sentence_whose_advice_works_in_the_same_folder(train, home, monkeypatch):
    run_loop = loop.run

    def full(*arguments, **options):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n more')

    monkeypatch.setattr(loop, 'run', full)
    assert last(train()) == (
        "the device's memory is full while the base stage trains (RESOURCE_EXHAUSTED: Out of memory while trying to "
        'allocate 9 bytes.); try --config.parallel.remat=True, then --config.optimizer.moments=int8, then '
        '--config.base.accumulation=2, then --config.lora.rank=16, and start again: what is done is kept'
    )
    monkeypatch.setattr(loop, 'run', run_loop)
    drawn = {path: path.stat().st_mtime_ns for path in (home / 'run' / 'prior').iterdir()}
    less = ('parallel.remat=True', 'optimizer.moments=int8', 'base.accumulation=2', 'lora.rank=2', 'base.steps=1')
    assert train(*less).code == 0
    assert {path: path.stat().st_mtime_ns for path in (home / 'run' / 'prior').iterdir()} == drawn


def test_a_run_without_class_rows_needs_no_class_prompt(train, home):
    assert train('prior.weight=0', 'data.class_prompt=', 'samples.prompts=()', 'base.steps=1').code == 0
    assert (home / 'run' / 'model').is_dir()
