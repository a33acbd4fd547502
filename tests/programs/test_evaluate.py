"""evaluate from the command line: the scores of a run, from its images to scores.json."""

import json

import jax
import numpy as np
import optax
import pytest
import torch
from PIL import Image

from dreambooth_jax.config import BaseConfig, DataConfig, DreamBoothConfig, SamplesConfig, to_dict
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.state import init_state
from tests.support import smallest_pipelines, tiny_encoders


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with one checkpoint, and photos."""
    folder = tmp_path_factory.mktemp('evaluate')
    photos, workdir, model = folder / 'photos', folder / 'run', smallest_pipelines.folder('pixels')
    photos.mkdir()
    workdir.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(photos / name)
    config = DreamBoothConfig(
        model=str(model),
        super_resolution_model='none',
        data=DataConfig(instance_dir=str(photos), instance_prompt='a sks dog', class_prompt='a dog'),
        base=BaseConfig(steps=1),
        samples=SamplesConfig(steps=2, guidance_scale=1.0, sampler='ddim'),
    )
    (workdir / 'config.json').write_text(json.dumps(to_dict(config)))
    base = read_pipeline(model)
    checkpoints = Checkpoints(workdir / 'base' / 'checkpoints', keep=1)
    params = {base.family.denoiser: jax.tree.map(lambda x: x * 1.05, base.denoiser.params)}
    checkpoints.save(1, init_state(params, optax.sgd(1e-3), ema=False), wait=True)
    checkpoints.close()
    return workdir


@pytest.fixture(scope='module')
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoders')
    return {name: tiny_encoders.write(name, folder / name) for name in ('dino', 'clip')}


def arguments(run, encoders, output):
    sources = [f'--{name}={folder}' for name, folder in encoders.items()]
    return f'--model={run}', f'--workdir={output}', '--num_images=2', '--class_images=4', '--batch_size=64', *sources


def direct(name, images):
    """Features by transformers, of images prepared as the protocol says."""
    from dreambooth_jax.evaluation import preprocessing

    prepare = {'dino': preprocessing.dino, 'clip': preprocessing.clip}[name]
    _, found = tiny_encoders.pooled(name, np.stack([prepare(pixels, size=32) for pixels in images]))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_scores_are_those_of_transformers_on_the_images_that_lie_there(program, run, encoders, tmp_path):
    ended = program('evaluate', *arguments(run, encoders, tmp_path))
    assert ended.code == 0, ended.error
    assert '  dino ' in ended.out
    assert ended.out.splitlines()[-2:] == [str(tmp_path / name) for name in ('scores.json', 'report.html')]
    found = json.loads((tmp_path / 'scores.json').read_text())
    assert found['weights'] == ['base: checkpoint 1'] and set(found['encoders']) == {'dino', 'clip'}
    photos = [np.asarray(Image.open(path)) for path in sorted((run.parent / 'photos').glob('*.png'))]
    with torch.no_grad():
        for title in ('run', 'base'):
            (folder,) = (tmp_path / 'images' / title).iterdir()
            told = found['models'][title]['sks dog']
            images = [np.asarray(Image.open(path)) for path in sorted(folder.glob('*sks_dog*.png'))]
            of_class = [np.asarray(Image.open(path)) for path in sorted(folder.glob('a_dog_*.png'))]
            assert (len(images), len(of_class)) == (50, 4)
            for name, key in (('dino', 'dino'), ('clip', 'clip_i')):
                fidelity = direct(name, images) @ direct(name, photos).T
                assert told[key]['value'] == pytest.approx(fidelity.mean(), abs=1e-3)
                pres = direct(name, of_class) @ direct(name, photos).T
                assert told[f'{key}_pres']['value'] == pytest.approx(pres.mean(), abs=1e-3)
            assert told['dino']['images'] == 50 and set(told['dino']['kinds']) == {'context', 'accessory', 'property'}
    others = direct('dino', photos) @ direct('dino', photos).T
    ceiling = (others.sum() - 3) / 6
    assert found['ceiling']['dino']['sks dog']['others'] == pytest.approx(ceiling, abs=1e-3)

    page = (tmp_path / 'report.html').read_text('utf-8')
    assert page.count('of the subject, as the model saw it"') == 2 * 3  # words of the image and of its button
    assert [page.count(f', {title}, image 2"') for title in ('this run', 'model before')] == [2 * 26] * 2

    # Again, nothing is generated and everything is the same.
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')}
    assert program('evaluate', *arguments(run, encoders, tmp_path)).code == 0
    assert json.loads((tmp_path / 'scores.json').read_text()) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')} == written


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (['--metrics=dino,fid'], "--metrics has 'fid' but each must be one of dino, dinov2, clip, lpips"),
        (['--metrics='], '--metrics is empty; name some of dino, dinov2, clip, lpips'),
        (['--metrics=lpips'], '--metrics has lpips but --lpips is not given; give its .safetensors file'),
        (
            ['--metrics=lpips', '--lpips=x.safetensors', '--num_images=1'],
            '--metrics has lpips, which compares images of one prompt; set --num_images to at least 2',
        ),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(program, given, sentence):
    ended = program('evaluate', '--model=nowhere', *given)
    assert (ended.code, ended.error.strip()) == (1, sentence)


def test_what_is_no_run_is_one_sentence(program, tmp_path):
    ended = program('evaluate', f'--model={tmp_path}')
    assert ended.code == 1 and ended.error.strip() == (
        f"{tmp_path} is no run's folder: {tmp_path}/config.json is missing; give the --workdir of train"
    )
