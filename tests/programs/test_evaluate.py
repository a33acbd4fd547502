"""evaluate from the command line: the scores of a run, from its images to scores.json."""

import json

import jax
import numpy as np
import optax
import pytest
import torch
from PIL import Image

from dreambooth_jax.config import BaseConfig, DataConfig, DreamBoothConfig, RunSamplesConfig, to_dict
from dreambooth_jax.evaluation import protocol
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import make_placement
from dreambooth_jax.training.state import init_state
from tests.support import made_certificates, smallest_pipelines, tiny_encoders


def write_run(workdir, photos, seed, *, trained=True, second='none'):
    """Writes a run with one checkpoint, or without any, and its photos."""
    model = smallest_pipelines.folder('pixels')
    photos.mkdir(parents=True)
    workdir.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(photos / name)
    config = DreamBoothConfig(
        model=str(model),
        super_resolution_model=second,
        data=DataConfig(instance_dir=str(photos), instance_prompt='a sks dog', class_prompt='a dog'),
        base=BaseConfig(steps=1),
        samples=RunSamplesConfig(steps=2, guidance_scale=1.0, sampler='ddim'),
    )
    (workdir / 'config.json').write_text(json.dumps(to_dict(config)))
    if not trained:
        return
    base = read_pipeline(model)
    checkpoints = Checkpoints(workdir / 'base' / 'checkpoints', keep=1)
    params = {base.family.denoiser: jax.tree.map(lambda x: x * (1.05 + 0.01 * seed), base.denoiser.params)}
    checkpoints.save(1, init_state(params, optax.sgd(1e-3), ema=False), wait=True)
    checkpoints.close()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with one checkpoint, and photos."""
    folder = tmp_path_factory.mktemp('evaluate')
    write_run(folder / 'run', folder / 'photos', 0)
    return folder / 'run'


@pytest.fixture(scope='module')
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoders')
    return {name: tiny_encoders.write(name, folder / name) for name in ('dino', 'clip')}


def arguments(run, encoders, output):
    sources = [f'--{name}={folder}' for name, folder in encoders.items()]
    return f'--model={run}', f'--workdir={output}', '--num_images=2', '--class_images=4', '--batch_size=4', *sources


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


def test_masks_beside_photos_give_a_second_column(program, run, encoders, tmp_path):
    masks = [run.parent / 'photos' / f'{number}.mask.png' for number in (1, 3)]
    try:
        for mask in masks:
            Image.fromarray(np.repeat(np.arange(40) < 20, 36).reshape(40, 36)).save(mask)
        ended = program('evaluate', *arguments(run, encoders, tmp_path), '--nobase', '--metrics=dino')
    finally:
        for mask in masks:
            mask.unlink()
    assert ended.code == 0, ended.error
    found = json.loads((tmp_path / 'scores.json').read_text())
    bare = [np.asarray(Image.open(run.parent / 'photos' / f'{number}.png')).copy() for number in (1, 3)]
    for photo in bare:
        photo[20:] = (124, 116, 104)
    (folder,) = (tmp_path / 'images' / 'run').iterdir()
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob('*sks_dog*.png'))]
    with torch.no_grad():
        wanted = (direct('dino', images) @ direct('dino', bare).T).mean()
        ceiling = direct('dino', bare[:1]) @ direct('dino', bare[1:]).T
    told = found['models']['run']['sks dog']
    assert told['dino_masked']['value'] == pytest.approx(wanted, abs=1e-3) != told['dino']['value']
    assert found['ceiling']['dino_masked']['sks dog']['others'] == pytest.approx(ceiling.item(), abs=1e-3)
    assert set(found['models']) == {'run'}


@pytest.mark.slow
def test_the_images_of_a_run_are_signed_as_its_settings_say(program, encoders, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    made, run, few = made_certificates.make(tmp_path), tmp_path / 'run', ('--num_images=1', '--class_images=2')
    write_run(run, tmp_path / 'photos', 0)
    config = json.loads((run / 'config.json').read_text())
    config['samples'] |= {'c2pa_certificate': str(made.certificate), 'c2pa_key': str(made.key)}
    (run / 'config.json').write_text(json.dumps(config))
    arguments = (f'--model={run}', f'--dino={encoders["dino"]}', '--metrics=dino', '--nobase', *few)
    ended = program('evaluate', *arguments)
    assert ended.code == 0, ended.error
    images = list((run / 'evaluation' / 'images').rglob('*.png'))
    assert len(images) == 27 and {c2pa.Reader(str(path)).get_validation_state() for path in images} == {'Valid'}
    made.key.unlink()
    ended = program('evaluate', *arguments)
    assert (ended.code, ended.error.splitlines()[-1]) == (
        1,
        f'config.samples.c2pa_certificate and config.samples.c2pa_key: {made.key} cannot be read: No such file or '
        f'directory; give a PEM file that can, or give --nosign',
    )
    assert program('evaluate', *arguments, '--nosign').code == 0


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'side'), [('base', 8), ('last', 16)])
def test_the_images_of_either_stage_can_be_scored(stage, side, program, encoders, tmp_path):
    write_run(tmp_path / 'run', tmp_path / 'photos', 0, second=None)
    few = ('--num_images=1', '--class_images=2', '--nobase', '--metrics=dino', f'--stage={stage}')
    ended = program('evaluate', f'--model={tmp_path / "run"}', f'--dino={encoders["dino"]}', *few)
    assert ended.code == 0, ended.error
    found = json.loads((tmp_path / 'run' / 'evaluation' / 'scores.json').read_text())
    assert found['sampling']['super_resolution'] == (stage == 'last')
    folder = tmp_path / 'run' / 'evaluation' / 'images' / found['images']['run']
    assert {Image.open(path).size for path in folder.iterdir()} == {(side, side)}


def benchmark(program, runs, encoders, *more):
    sources = [f'--{name}={folder}' for name, folder in encoders.items()]
    return program('evaluate', f'--benchmark={runs}', '--num_images=1', '--class_images=2', *sources, *more)


@pytest.mark.slow
def test_a_benchmark_scores_all_runs_of_a_folder(program, encoders, tmp_path, caplog):
    runs = tmp_path / 'runs'
    for seed, name in enumerate(('dog', 'dog2')):
        write_run(runs / name, tmp_path / 'photos' / name, seed)
    write_run(runs / 'half', tmp_path / 'photos' / 'half', 7, trained=False)
    ended = benchmark(program, runs, encoders)
    assert ended.code == 0, ended.error
    missing = f'{runs}/half holds neither checkpoints nor a model/; start train with it first'
    assert f'half is left out: {missing}' in caplog.messages
    workdir = runs / 'benchmark'
    assert ended.out.splitlines()[-2:] == [str(workdir / name) for name in ('scores.json', 'report.html')]
    assert '\nhalf     missing' in ended.out
    page = (workdir / 'report.html').read_text('utf-8')
    assert page.count('<details class="run">') == 2 and f'<b>half</b> is missing: {missing}' in page
    whole = (workdir / 'scores.json').read_bytes()
    found = json.loads(whole)
    assert (list(found['subjects']), found['missing']) == (['dog', 'dog2'], {'half': missing})
    # The model before is one model, asked for the same: its images are there once.
    assert {path.name: len(list(path.glob('*/*.png'))) for path in (workdir / 'images').iterdir()} == {
        'base': 27,
        'dog': 27,
        'dog2': 27,
    }

    # Alone, a run has the same scores, but for its look-alikes.
    sources = [f'--{name}={folder}' for name, folder in encoders.items()]
    ended = program('evaluate', f'--model={runs / "dog"}', '--num_images=1', '--class_images=2', *sources)
    assert ended.code == 0, ended.error
    alone = json.loads((runs / 'dog' / 'evaluation' / 'scores.json').read_text())
    for part in (alone, together := found['subjects']['dog']):
        part.pop('images')
        for title in part['models']:
            assert part['models'][title]['sks dog'].pop('dino_retrieval')['value'] > 0
            part['models'][title]['sks dog'].pop('clip_i_retrieval')
    assert alone == together

    # Again, nothing is generated or embedded, and everything is the same; lost images are made again.
    lost = next((workdir / 'images' / 'dog2').glob('*/*snow*.png'))
    pixels = lost.read_bytes()
    lost.unlink()
    (workdir / 'dog2.json').unlink()
    always = ('scores.json', 'report.html')  # they are written at the end of every evaluation
    written = {path: path.stat().st_mtime_ns for path in workdir.rglob('*.*') if path.name not in always}
    assert benchmark(program, runs, encoders).code == 0
    assert (workdir / 'scores.json').read_bytes() == whole and lost.read_bytes() == pixels
    assert written.items() <= {path: path.stat().st_mtime_ns for path in workdir.rglob('*.*')}.items()


def test_a_benchmark_of_nothing_but_half_runs_fails(program, encoders, tmp_path):
    write_run(tmp_path / 'runs' / 'half', tmp_path / 'photos', 7, trained=False)
    ended = benchmark(program, tmp_path / 'runs', encoders)
    assert ended.code == 1
    assert ended.error.splitlines()[-1] == f'none of the 1 runs in {tmp_path}/runs could be scored'
    assert not (tmp_path / 'runs' / 'benchmark' / 'scores.json').exists()


def test_images_are_the_same_on_one_device_and_on_four(tmp_path):
    assert len(jax.local_devices()) == 4
    options = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim', batch_size=4)
    cascade = Cascade.load(smallest_pipelines.folder('pixels'), super_resolution_model='none')
    one = cascade.on(make_placement('pmap', devices=jax.local_devices()[:1]))
    assert one._devices.devices == 1 and cascade._devices.devices == 4
    images = [
        protocol.Album(model, options, tmp_path / name, name)(['a sks dog', 'a dog'], 3).astype(int)
        for model, name in ((cascade, 'four'), (one, 'one'))
    ]
    assert np.abs(images[0] - images[1]).max() <= 2


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (['--metrics=dino,fid'], "--metrics has 'fid' but each must be one of dino, dinov2, clip, lpips, classifier"),
        (['--metrics='], '--metrics is empty; name some of dino, dinov2, clip, lpips, classifier'),
        (['--metrics=lpips'], '--metrics has lpips but --lpips is not given; give its .safetensors file'),
        (
            ['--metrics=lpips', '--lpips=x.safetensors', '--num_images=1'],
            '--metrics has lpips, which compares images of one prompt; set --num_images to at least 2',
        ),
        (
            ['--benchmark=runs'],
            'either --model or --benchmark must be given but both are given; --help says what they are',
        ),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(program, given, sentence):
    ended = program('evaluate', '--model=nowhere', *given)
    assert (ended.code, ended.error.strip()) == (1, sentence)


def test_without_a_model_there_is_nothing_to_score(program):
    ended = program('evaluate')
    assert (ended.code, ended.error.strip()) == (
        1,
        'either --model or --benchmark must be given but neither is given; --help says what they are',
    )


def test_the_classifier_is_refused_for_photos(program, run):
    ended = program('evaluate', f'--model={run}', '--metrics=classifier')
    model = smallest_pipelines.folder('pixels')
    assert (ended.code, ended.error.strip()) == (
        1,
        f"--metrics has classifier, which knows the built-in subjects of 'storybook' and 'storybook-flow' alone, but "
        f"the run began with '{model}'; leave classifier out",
    )


def test_published_encoders_without_the_hub_are_one_sentence(program, run):
    ended = program('evaluate', f'--model={run}')
    assert ended.code == 1 and len(ended.error.strip().splitlines()) == 1
    assert 'facebook/dino-vits16' in ended.error


def test_what_is_no_run_is_one_sentence(program, tmp_path):
    ended = program('evaluate', f'--model={tmp_path}')
    assert ended.code == 1 and ended.error.strip() == (
        f"{tmp_path} is no run's folder: {tmp_path}/config.json is missing; give the --workdir of train"
    )
