"""train from the command line, both stages on a tiny random model: the contracts of a run's folder."""

import functools
import json
import os
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import loop, placement
from dreambooth_jax.weights import files
from dreambooth_jax.weights.textual_inversion import read_textual_inversion
from tests.support import image_metadata, made_certificates, smallest_pipelines, tiny_pipelines

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.num_images = 3
    config.prior.steps = 2
    config.prior.sampler = 'ddim'
    config.prior.guidance_scale = 1.0
    config.prior.batch_size = 2
    config.base.steps = 4
    config.base.batch_size = 2
    config.base.learning_rate = 1e-3
    config.super_resolution.steps = 2
    config.super_resolution.batch_size = 1
    config.super_resolution.learning_rate = 1e-3
    config.optimizer.ema_decay = 0.5
    config.checkpoint.every = 2
    config.samples.steps = 2
    config.samples.num_images = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    return config
"""
WEIGHTS = (
    'unet/diffusion_pytorch_model.safetensors',
    'super_resolution/unet/diffusion_pytorch_model.safetensors',
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('train')
    photos = folder / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(photos / name)
    (photos / '2.txt').write_text('a sks dog on a rug')
    (photos / 'notes.md').write_text('no image')
    path = folder / 'config.py'
    path.write_text(CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(photos)))
    return path


def weights(run):
    return [files.read_tensors(run / 'model' / name) for name in WEIGHTS]


def equal(left, right):
    return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(left, right))  # noqa: B905


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
    """An uninterrupted run, made on first use through the given `program`."""
    made = {}

    def run(program):
        if not made:
            made['run'] = tmp_path_factory.mktemp('finished') / 'run'
            made['ended'] = program('train', f'--config={config}', f'--workdir={made["run"]}')
        return made['run'], made['ended']

    return run


def test_a_run_leaves_what_its_folder_promises(program, finished, caplog):
    run, ended = finished(program)
    assert ended.code == 0 and f'trained model: {run}/model' in ended.out
    assert 'notes.md in ' in caplog.text and 'is skipped' in caplog.text
    assert json.loads((run / 'config.json').read_text())['base']['steps'] == 4
    assert len(list((run / 'prior').glob('*.png'))) == 3 and (run / 'prior' / 'manifest.json').is_file()
    for stage, steps in (('base', 4), ('super_resolution', 2)):
        assert (run / stage / 'checkpoints' / str(steps)).is_dir()
        assert (run / 'samples' / stage / f'{steps:06d}.png').is_file()
        lines = metrics.read(run, stage)
        assert [line['step'] for line in lines] == list(range(1, steps + 1))
        assert {'loss', 'instance_loss', 'gradient_norm', 'learning_rate', 'images_per_second'} <= lines[0].keys()
    assert list(run.glob('events.out.tfevents*'))
    images = [*(run / 'prior').rglob('*.png'), *(run / 'samples').rglob('*.png')]
    # In both stages, the grid and one image of each of the two prompts.
    assert len(images) == 3 + 2 * (1 + 2) and all(map(image_metadata.is_marked, images))
    assert all(image_metadata.parameters(image)['Model'] == 'pixels' for image in images)
    pipeline = read_pipeline(run)
    assert pipeline.super_resolution_folder is not None
    before = [files.read_tensors(smallest_pipelines.folder('pixels') / name) for name in WEIGHTS]
    assert not any(
        np.array_equal(new['conv_in.weight'], old['conv_in.weight'])
        for new, old in zip(weights(run), before, strict=True)
    )


@pytest.mark.slow
def test_samples_are_signed_class_images_are_not_and_the_key_stays_where_it_is(program, config, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    for name in ('one', 'other'):
        (tmp_path / name).mkdir()
    one, other = (made_certificates.make(tmp_path / name, name=name) for name in ('one', 'other'))
    run = tmp_path / 'run'
    options = [f'--config={config}', f'--workdir={run}', '--config.super_resolution_model=none']

    def train(made, *more):
        signing = (f'--config.samples.c2pa_certificate={made.certificate}', f'--config.samples.c2pa_key={made.key}')
        return program('train', *options, *signing, *more)

    assert train(one, '--config.base.steps=2').code == 0
    assert train(other).code == 0  # who signs may change
    for step, name in ((2, 'one'), (4, 'other')):
        grid = run / 'samples' / 'base' / f'{step:06d}.png'
        files = [grid, *grid.with_suffix('').iterdir()]
        found = [c2pa.Reader(str(file)) for file in files]
        assert [reader.get_validation_state() for reader in found] == ['Valid'] * 3
        assert {reader.get_active_manifest()['signature_info']['common_name'] for reader in found} == {name}
        assert all(map(image_metadata.is_marked, files))
    (image, *_) = (run / 'prior').glob('*.png')
    assert 'caBX' not in [name for name, _ in image_metadata.chunks(image.read_bytes())]
    assert json.loads((run / 'config.json').read_text())['samples']['c2pa_key'] == str(other.key)
    secret = other.key.read_bytes().splitlines()[1]
    assert not [path for path in run.rglob('*') if path.is_file() and secret in path.read_bytes()]


def test_a_certificate_that_does_not_sign_is_one_sentence_before_any_work(program, config, tmp_path):
    pytest.importorskip('c2pa')
    made, run = made_certificates.make(tmp_path, expired=True), tmp_path / 'run'
    signing = (f'--config.samples.c2pa_certificate={made.certificate}', f'--config.samples.c2pa_key={made.key}')
    for more in ((), ('--dry_run',)):
        ended = program('train', f'--config={config}', f'--workdir={run}', *signing, *more)
        assert (ended.code, ended.out) == (1, '') and not run.exists()
        assert ended.error.splitlines()[-1].startswith(
            f'config.samples.c2pa_certificate and config.samples.c2pa_key: {made.certificate} and {made.key} do not '
            f'sign (Signature: the certificate was not valid at time of signing); give a certificate'
        )


def test_photos_of_people_need_consent_before_any_work(program, config, tmp_path):
    run = tmp_path / 'run'
    arguments = (f'--config={config}', f'--workdir={run}', '--config.data.class_prompt=a young woman')
    for more in ((), ('--dry_run',)):
        ended = program('train', *arguments, *more)
        assert (ended.code, ended.out) == (1, '') and not run.exists()
        assert "config.data.class_prompt is 'a young woman', in which 'woman' names a person" in ended.error
    planned = program('train', *arguments, '--dry_run', '--config.data.consent=Ana Lima, by letter of 2026-11-02')
    assert planned.code == 0 and 'Ana Lima, by letter of 2026-11-02' in planned.out and not run.exists()


@pytest.mark.slow
def test_a_run_that_is_ended_by_sigterm_goes_on_as_if_it_had_not_been(program, finished, config, tmp_path, monkeypatch):
    run = tmp_path / 'run'
    write = metrics.Metrics.write

    def write_then_end(self, step, values):
        write(self, step, values)
        if (self.stage, step) == ('base', 1):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(metrics.Metrics, 'write', write_then_end)
        ended = program('train', f'--config={config}', f'--workdir={run}')
    assert ended.code == 0 and 'stopped in the base stage, saved' in ended.out
    assert not (run / 'model').exists()
    assert program('train', f'--config={config}', f'--workdir={run}').code == 0
    whole, _ = finished(program)
    assert equal(weights(run), weights(whole))
    assert [line['step'] for line in metrics.read(run, 'base')] == [1, 2, 3, 4]


def test_a_finished_run_started_again_changes_nothing(program, finished, config):
    run, _ = finished(program)
    before = weights(run)
    assert program('train', f'--config={config}', f'--workdir={run}').code == 0
    assert equal(weights(run), before)
    assert len(metrics.read(run, 'base')) == 4


def test_another_rate_under_the_same_workdir_is_refused(program, finished, config):
    run, _ = finished(program)
    ended = program('train', f'--config={config}', f'--workdir={run}', '--config.base.learning_rate=0.01')
    assert (ended.code, ended.error.splitlines()[-1]) == (
        1,
        f'config.base.learning_rate is 0.01 but {run} was begun with 0.001; set it back, or start another run with '
        f'--workdir',
    )


@pytest.mark.slow
def test_prior_weight_zero_generates_no_class_images_and_logs_no_prior_loss(program, config, tmp_path):
    run = tmp_path / 'run'
    ended = program(
        'train',
        f'--config={config}',
        f'--workdir={run}',
        '--config.prior.weight=0',
        '--config.super_resolution_model=none',
    )
    assert ended.code == 0 and not (run / 'prior').exists()
    assert not [name for line in metrics.read(run, 'base') for name in line if name.startswith('prior')]
    assert not (run / 'super_resolution').exists()


@pytest.mark.slow
def test_the_text_encoder_moves_only_if_it_is_trained(program, finished, config, tmp_path):
    name = 'text_encoder/model.safetensors'
    before = files.read_tensors(smallest_pipelines.folder('pixels') / name)
    run, _ = finished(program)
    frozen = files.read_tensors(run / 'model' / name)
    assert all(np.array_equal(frozen[key], before[key]) for key in before)
    # A learning rate of its own that is too low for float32 moves nothing, so the learning rate is the one used.
    for run, learning_rate, moves in ((tmp_path / 'run', None, True), (tmp_path / 'slow', '1e-30', False)):
        options = ['--config.base.train_text_encoder=True', '--config.super_resolution_model=none']
        options += [] if learning_rate is None else [f'--config.base.text_encoder_learning_rate={learning_rate}']
        assert program('train', f'--config={config}', f'--workdir={run}', *options).code == 0
        trained = files.read_tensors(run / 'model' / name)
        assert any(not np.array_equal(trained[key], before[key]) for key in before) == moves


@pytest.mark.slow
def test_a_new_word_is_learned_alone_generated_and_written(program, config, tmp_path):
    run, options = (
        tmp_path / 'run',
        [
            f'--config={config}',
            '--config.data.instance_prompt=a <my-dog> dog',
            '--config.base.train_denoiser=False',
            '--config.textual_inversion.token=<my-dog>',
            '--config.textual_inversion.initializer=dog',
            '--config.prior.weight=0',
            '--config.super_resolution_model=none',
            '--config.base.steps=2',
        ],
    )
    planned = program('train', *options, f'--workdir={run}', '--dry_run')
    assert 'base: 2 steps of 2 examples, 0.0M parameters trained, 0 MiB' in planned.out and not run.exists()
    assert program('train', *options, f'--workdir={run}').code == 0
    assert (run / 'samples' / 'base' / '000002.png').is_file()
    before = files.read_tensors(smallest_pipelines.folder('pixels') / 'text_encoder' / 'model.safetensors')
    after = files.read_tensors(run / 'model' / 'text_encoder' / 'model.safetensors')
    token, rows = read_textual_inversion(run / 'my-dog.safetensors', {'text_encoder': 24})
    assert token == '<my-dog>' and np.array_equal(after['shared.weight'][-1:], rows['text_encoder'])
    assert np.array_equal(after['shared.weight'][:-1], before['shared.weight'])
    # The file generates with the first model what the run itself generates.
    images, model = [], smallest_pipelines.folder('pixels')
    quick = ('--prompt=<my-dog>', '--num_images=1', '--steps=1', '--guidance_scale=1', '--sampler=ddim')
    for name, given in (
        ('run', [f'--model={run}']),
        ('file', [f'--model={model}', f'--embedding={run / "my-dog.safetensors"}']),
    ):
        ended = program('sample', *given, *quick, '--super_resolution_model=none', f'--output={tmp_path / name}')
        assert ended.code == 0, ended.error
        images.append(np.asarray(Image.open(tmp_path / name / '000_00.png')))
    np.testing.assert_array_equal(*images)
    read = [Cascade.load(path).encode(['<my-dog>'])['encoder_hidden_states'] for path in (run, model)]
    assert not np.array_equal(*read)
    folders = smallest_pipelines.folder('pixels'), run / 'model'
    before, after = (files.read_tensors(folder / WEIGHTS[0]) for folder in folders)
    assert equal([before], [after])
    refused = program('train', *options, f'--workdir={tmp_path / "new"}', '--config.textual_inversion.initializer=xqjk')
    assert refused.code == 1 and "config.textual_inversion.initializer 'xqjk' is" in refused.error
    assert not (tmp_path / 'new').exists()


def train_on_two_ratios(program, finished, config, folder, run, steps, *more):
    """Trains on a tall and two wide photos, with the class images of the run that is there."""
    photos = folder / 'photos'
    if not photos.exists():
        photos.mkdir()
        rng = np.random.default_rng(1)
        for name, shape in (('tall', (40, 24)), ('wide', (24, 40)), ('wider', (24, 50))):
            Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(photos / f'{name}.png')
    return program(
        'train',
        f'--config={config}',
        f'--workdir={run}',
        f'--config.data.instance_dir={photos}',
        '--config.data.aspect_buckets=True',
        f'--config.prior.dir={finished(program)[0] / "prior"}',
        '--config.samples.steps=1',
        f'--config.base.steps={steps}',
        f'--config.super_resolution.steps={steps}',
        *more,
    )


@pytest.mark.slow
def test_photos_of_two_ratios_train_in_buckets_of_their_own_and_go_on_as_if_not_ended(
    program, finished, config, tmp_path
):
    base = '--config.super_resolution_model=none'
    for run, steps, *more in (('whole', 6), ('parts', 3, base), ('parts', 6, base)):
        ended = train_on_two_ratios(program, finished, config, tmp_path, tmp_path / run, steps, *more)
        assert ended.code == 0 and 'images: 2 of 10 x 6, 1 of 6 x 10 pixels' in ended.out
        lines = metrics.read(tmp_path / run, 'base')
        assert len(lines) == steps and all(line['instance_loss'] > 0 and line['prior_loss'] > 0 for line in lines)
    lines = metrics.read(tmp_path / 'whole', 'super_resolution')
    assert len(lines) == 6 and all(line['instance_loss'] > 0 for line in lines)
    for stage in ('base', 'super_resolution'):
        assert (tmp_path / 'whole' / 'samples' / stage / '000006.png').is_file()
    whole, parts = (files.read_tensors(tmp_path / run / 'model' / WEIGHTS[0]) for run in ('whole', 'parts'))
    assert equal([whole], [parts])


@pytest.mark.slow
def test_dry_run_tells_the_plan_and_writes_nothing(program, config, tmp_path):
    run = tmp_path / 'run'
    ended = program('train', f'--config={config}', f'--workdir={run}', '--dry_run')
    assert ended.code == 0 and not run.exists()
    assert 'config.base.steps = 4' in ended.out
    assert 'base: 4 steps of 4 examples, ' in ended.out and 'super_resolution: 2 steps of 1 examples' in ended.out
    many = [f'--config={config}', f'--workdir={run}', '--dry_run', f'--config.model={tiny_pipelines.folder()}']
    cheaper = (
        [],
        ['--config.base.gradient_accumulation_steps=2', '--config.optimizer.state_dtype=int8'],
        ['--config.lora.rank=2'],
        ['--config.prior.kind=distillation'],
    )
    plans = [program('train', *many, *options).out for options in cheaper]
    assert 'base: 4 steps of 4 examples in 2 micro-batches, ' in plans[1]
    trained, memory = zip(*(re.search(r'base: .* ([\d.]+)M .* (\d+) MiB for', plan).groups() for plan in plans))  # noqa: B905
    assert float(trained[2]) < float(trained[0]) == float(trained[1])
    whole, small, adapters, teacher = map(int, memory)
    assert small < whole and adapters < whole < teacher


@pytest.mark.parametrize('flag', ['--topology=v5e:2x4', '--compile', '--price_per_hour=1.20', '--as_json'])
def test_a_flag_of_the_plan_without_a_plan_is_one_sentence(program, config, tmp_path, flag):
    ended = program('train', f'--config={config}', f'--workdir={tmp_path / "run"}', flag)
    name = flag.partition('=')[0]
    assert (ended.code, (tmp_path / 'run').exists()) == (1, False)
    sentence = f'{name} is for a plan, which is not run; give --dry_run too, or leave it out'
    assert ended.error.splitlines()[-1] == sentence


def test_a_price_is_told_in_the_last_line_of_the_plan_and_a_wrong_one_ends_the_program(program, config, tmp_path):
    options = [f'--config={config}', f'--workdir={tmp_path / "run"}', '--dry_run']
    ended = program('train', *options, '--price_per_hour=1.20 EUR')
    assert re.search(r' (about \d+\.\d\d|less than 0\.01) EUR at 1\.20 EUR an hour$', ended.out.strip()), ended.out
    told = json.loads(program('train', *options, '--price_per_hour=1.20 EUR', '--as_json').out)
    assert told['price'].endswith(' EUR at 1.20 EUR an hour') and told['text'].strip().endswith(told['price'])
    assert told['cost'] == pytest.approx(1.2 * told['seconds'] / 3600) and '2.png: 24 x 24' in told['text']
    ended = program('train', *options, '--price_per_hour=1,20')
    assert (ended.code, ended.out, len(ended.error.splitlines())) == (1, '', 1)
    assert ended.error.startswith("--price_per_hour is '1,20' but must be what an hour of the devices costs")


def test_dry_run_looks_at_the_photos_as_the_run_will(program, config, tmp_path):
    run = tmp_path / 'run'
    options = [f'--config={config}', f'--workdir={run}', '--dry_run']
    told = program('train', *options).out
    assert "    2.png: 24 x 24, caption 'a sks dog on a rug'" in told and 'skipped: notes.md is text' in told
    assert 'crops for base: 3 of 8 x 8 pixels' in told and 'crops for super_resolution: 3 of 16 x 16 pixels' in told
    small = tmp_path / 'small'
    small.mkdir()
    Image.new('RGB', (9, 9)).save(small / 'x.png')
    (tmp_path / 'file').touch()
    for setting, sentence in (
        (f'data.instance_dir={tmp_path}/gone', f'the folder {tmp_path}/gone does not exist'),
        (f'data.instance_dir={tmp_path}/file', f'{tmp_path}/file is a file; give the folder that holds the images'),
        (f'data.instance_dir={small}', f'{small}/x.png is 9 x 9 pixels, smaller than the resolution 16'),
        ('super_resolution.crop=7', 'config.super_resolution.crop is 7 but must be a multiple of 2'),
    ):
        ended = program('train', *options, f'--config.{setting}')
        assert ended.code == 1 and ended.error.splitlines()[-1].startswith(sentence) and not run.exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(program, config, tmp_path, monkeypatch):
    run = tmp_path / 'run'
    options = [f'--config={config}', f'--workdir={run}', '--config.super_resolution_model=none']
    assert program('train', *options, '--config.base.steps=2').code == 0
    run_loop = loop.run

    def poisoned(state, *arguments, **options):
        state.params = jax.tree.map(lambda x: x * np.nan, state.params)
        return run_loop(state, *arguments, **options)

    monkeypatch.setattr(loop, 'run', poisoned)
    ended = program('train', *options)
    assert ended.code == 1
    assert 'base: the loss of step 3 is nan; training stopped and the last good checkpoint is untouched.' in ended.error
    assert sorted(path.name for path in (run / 'base' / 'checkpoints').iterdir()) == ['2']


@pytest.mark.parametrize(
    ('argument', 'sentence'),
    [
        ('--config.data.resolution=12', 'config.data.resolution is 12 but the base stage of'),
        ('--config.base.steps=-1', 'config.base.steps must be >= 0, got -1'),
        ('--config.model=nowhere', "model 'nowhere' is not there"),
        ('--config.data.instance_dir=nowhere', 'the folder nowhere does not exist'),
        (
            '--config.lora.rank=2 --config.lora.targets=("to_p",)',
            (
                "config.lora: LoRA's target 'to_p' matches no linear or convolution layer of unet of the base stage; "
                'it must match a whole path, such as '
            ),
        ),
        (
            '--config.samples.c2pa_key=key.pem',
            "config.samples.c2pa_key is 'key.pem' but config.samples.c2pa_certificate is None; give both, or",
        ),
        ('--config.base.stepps=1', 'config.base.stepps is not a known setting; did you mean config.base.steps?'),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(program, config, tmp_path, argument, sentence):
    run = tmp_path / 'run'
    ended = program('train', f'--config={config}', f'--workdir={run}', *argument.split())
    assert ended.code == 1 and sentence in ended.error
    assert not run.exists()
