"""Runs of the rectified flows from the command line: the plan, class images, an interrupted and a whole training."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import SamplesConfig
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation import run_settings
from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.sample_grid import SampleGrid
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files, folders, lora_files, transformer_file
from dreambooth_jax.weights.identity import identity
from tests.support import tiny_flux, tiny_klein, tiny_sd3, tiny_z_image

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.data.resolution = {size}
    config.prior.num_images = 2
    config.prior.steps = config.samples.steps = 2
    config.prior.sampler = config.samples.sampler = 'euler'
    config.prior.guidance_scale = config.samples.guidance_scale = 1.0
    config.base.learning_rate = 1e-2
    config.lora.rank = {rank}
    config.samples.prompts = ('a sks dog',)
    config.samples.num_images = 1
    config.evaluation.every = 0
    return config
"""
NO_CLASS = '--config.prior.weight=0'  # where class images are not the point
TRANSFORMER = Path('transformer') / 'diffusion_pytorch_model.safetensors'


class Model(NamedTuple):
    """A tiny model, what the plan says of its noise, and how many layers have LoRA adapters."""

    tiny: object
    noise: str
    layers: int


MODELS = {
    'sd3': Model(tiny_sd3, 'shift 3 in training, 3 in generating (for every size)', 22),  # not one without effect
    'flux1': Model(tiny_flux, 'shift 1 in training, 1.588 in generating (for 36 tokens and 2 steps)', 18),
    'klein': Model(tiny_klein, 'shift 1 in training, 7.131 in generating (for 64 tokens and 2 steps)', 8),
    'z_image': Model(tiny_z_image, 'shift 6 in training, 6 in generating (for every size)', 28),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.fixture
def train(program, tmp_path):
    """Trains a model in a folder of tmp_path, (model, run, steps, *flags, rank=2); returns what was printed."""
    (tmp_path / 'photos').mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png'):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / 'photos' / name)

    def train(model, run, steps, *flags, rank=2):
        config = tmp_path / f'rank_{rank}.py'
        given = {'model': str(model.tiny.folder()), 'photos': str(tmp_path / 'photos'), 'size': model.tiny.SIZE}
        config.write_text(CONFIG.format(**given, rank=rank))
        ended = program(
            'train', f'--config={config}', f'--workdir={tmp_path / run}', f'--config.base.steps={steps}', *flags
        )
        assert ended.code == 0, ended.error
        return ended.out

    return train


@pytest.mark.slow
@pytest.mark.parametrize('rank', [2, None])
def test_kernels_that_stay_in_bfloat16_train_as_the_same_values_in_float32(rank, train, tmp_path):
    model = MODELS['z_image']
    half = folders.write_pipeline(read_pipeline(model.tiny.folder()), tmp_path / 'half', dtype='bfloat16')
    read = read_pipeline(half)
    assert read.denoiser.params['layers.0.attention.to_q.kernel'].dtype == 'bfloat16'
    full = folders.write_pipeline(read, tmp_path / 'full', dtype='float32')
    assert identity(read)['weights'] == identity(read_pipeline(full))['weights']
    runs = [tmp_path / f'{folder.name}_run' for folder in (half, full)]
    for folder, run in zip((half, full), runs, strict=True):
        train(model, run.name, 2, f'--config.model={folder}', NO_CLASS, rank=rank)
    ours, theirs = (files.read_tensors(run / 'model' / TRANSFORMER) for run in runs)
    before = files.read_tensors(full / TRANSFORMER)
    assert any((ours[name] != before[name]).any() for name in ours)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_run_trains_the_usual_layers_goes_on_and_writes_them_in_every_format(name, train, program, tmp_path):
    """With photos of two ratios, beside the frozen model's prediction."""
    model, run = MODELS[name], tmp_path / 'whole'
    wide = np.random.default_rng(1).integers(0, 256, (24, 96, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / 'photos' / 'wide.png')
    flags = '--config.data.aspect_buckets=True', '--config.prior.kind=distillation'
    assert f'noise: rectified flow, {model.noise}' in train(model, 'whole', 4, *flags, '--dry_run')
    size = model.tiny.SIZE
    assert re.search(rf'images: 1 of \d+ x \d+, 2 of {size} x {size} pixels', train(model, 'whole', 4, *flags))
    lines = [line for line in metrics.read(run, 'base') if 'loss' in line]
    assert len(lines) == 4 and lines[0]['prior_loss'] == pytest.approx(0, abs=1e-4)  # adapters begin at zero
    assert all(line['prior_loss'] > 1e-6 for line in lines[1:]) and all(line['instance_loss'] > 0.1 for line in lines)
    whole, before = (files.read_tensors(folder / TRANSFORMER) for folder in (run / 'model', model.tiny.folder()))
    moved = {name for name, value in whole.items() if not np.array_equal(value, before[name])}
    assert len(moved) == model.layers  # the usual LoRA targets of its blocks
    if name == 'klein':  # no family has a part in how a run goes on, so one is enough
        train(model, 'parts', 2, *flags)
        train(model, 'parts', 4, *flags)
        parts = files.read_tensors(tmp_path / 'parts' / 'model' / TRANSFORMER)
        for tensor, value in whole.items():
            np.testing.assert_array_equal(value, parts[tensor], err_msg=tensor)
    plain, trained = Cascade.load(model.tiny.folder(), size=size), read_pipeline(run).denoiser.params
    for format in lora_files.FORMATS:
        file = tmp_path / f'{format}.safetensors'
        exported = program('export', f'--workdir={run}', f'--format={format}', f'--output={file}')
        assert exported.code == 0 and 'tensors, read back and equal\n' in exported.out, exported.error
        merged = with_lora(plain, file).base.denoiser.params
        for tensor, value in trained.items():
            np.testing.assert_allclose(merged[tensor], value, atol=1e-6, err_msg=tensor)
    # And the whole transformer in the layout of its makers, from which the run's images are made beside the folder.
    file = tmp_path / 'single_file.safetensors'
    exported = program('export', f'--workdir={run}', '--format=single_file', f'--output={file}')
    assert exported.code == 0 and 'tensors, read back and equal\n' in exported.out, exported.error
    images = []
    for source in ((run,), (model.tiny.folder(), f'--model_transformer_file={file}')):
        output = tmp_path / f'out_{len(images)}'
        options = f'--resolution={size}', '--steps=2', '--guidance_scale=1', '--sampler=euler', '--num_images=1'
        sampled = program(
            'sample', f'--model={source[0]}', *source[1:], '--prompt=a sks dog', *options, f'--output={output}'
        )
        assert sampled.code == 0 and (output / 'grid.png').is_file(), sampled.error
        images.append(np.asarray(Image.open(output / '000_00.png')))
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_a_run_begins_with_a_file_of_the_transformer_and_is_held_to_it(train, program, tmp_path):
    """Beside int8 kernels, which export reads again as they are in the file."""
    model, file = MODELS['klein'], tmp_path / 'x.safetensors'
    base = read_pipeline(model.tiny.folder())
    moved = {name: value * np.float32(1.1) for name, value in base.denoiser.params.items()}
    transformer = dataclasses.replace(base.denoiser, params=moved)
    transformer_file.write(base.with_components(transformer=transformer), file)
    plain = '--config.lora.frozen_dtype=int8', NO_CLASS
    train(model, 'run', 2, *plain, f'--config.model_transformer_file={file}')
    targets = base.family.lora_targets
    for name, value in read_pipeline(tmp_path / 'run').denoiser.params.items():
        adapted = any(re.fullmatch(target, name.removesuffix('.kernel')) for target in targets)
        assert np.array_equal(value, moved[name]) != adapted, name
    file.rename(file.with_name('y.safetensors'))  # what it holds counts, not its name
    train(model, 'run', 4, *plain, f'--config.model_transformer_file={file.with_name("y.safetensors")}')
    again = 'train', f'--config={tmp_path / "rank_2.py"}', f'--workdir={tmp_path / "run"}', *plain
    ended = program(*again)  # with the model's own transformer
    assert ended.code == 1 and 'which differs in weights from the model that' in ended.error
    # A file of an export is another transformer.
    other = tmp_path / 'z.safetensors'
    assert program('export', f'--workdir={tmp_path / "run"}', '--format=single_file', f'--output={other}').code == 0
    ended = program(*again, f'--config.model_transformer_file={other}')
    assert (ended.code, ended.error) == (
        1,
        f"config.model is '{model.tiny.folder()}' with config.model_transformer_file '{other}', which differs in "
        f'weights from the model that {tmp_path / "run"} was begun with; put that model back, or start another run '
        f'with --workdir',
    )


@pytest.mark.slow
def test_several_devices_train_and_generate_what_one_does(train, tmp_path, monkeypatch):
    """Sharded and under pmap, with padded tokens and text; one family is enough, as none says where arrays lie."""
    train(MODELS['z_image'], 'one', 3)
    assert jax.device_count() == 4
    with monkeypatch.context() as on_all:
        on_all.setattr(placement, 'make_placement', placement.make_placement.func)
        train(MODELS['z_image'], 'fsdp', 3, '--config.parallel.mode=fsdp', '--config.parallel.fsdp_min_bytes=128')
        train(MODELS['z_image'], 'pmap', 3, '--config.parallel.mode=pmap')
    one, *others = (
        [line['loss'] for line in metrics.read(tmp_path / run, 'base') if 'loss' in line]
        for run in ('one', 'fsdp', 'pmap')
    )
    images = sorted(path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').rglob('*.png'))
    assert {path.parts[0] for path in images} == {'prior', 'samples'}
    for run, losses in zip(('fsdp', 'pmap'), others, strict=True):
        np.testing.assert_allclose(losses, one, rtol=1e-5)
        for path in images:
            ours, theirs = (np.asarray(Image.open(tmp_path / folder / path), int) for folder in (run, 'one'))
            assert np.abs(ours - theirs).max() <= 2, path


TEXTS = {'sd3': ('text_encoder', 'text_encoder_2', 'text_encoder_3'), 'flux1': ('text_encoder', 'text_encoder_2')}


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'rank'), [('sd3', 2), ('sd3', None), ('flux1', 2)])
def test_clips_train_and_the_t5_beside_them_does_not(name, rank, train, program, tmp_path):
    model = MODELS[name]
    flags = NO_CLASS, '--config.base.train_text_encoder=True', '--config.base.text_encoder_learning_rate=2e-2'
    train(model, 'run', 2, *flags, rank=rank)
    for component in TEXTS[name]:
        file = Path(component) / 'model.safetensors'
        after, before = (
            {tensor.removeprefix('text_model.'): value for tensor, value in files.read_tensors(folder / file).items()}
            for folder in (tmp_path / 'run' / 'model', model.tiny.folder())
        )
        moved = {tensor for tensor, value in after.items() if not np.array_equal(value, before[tensor])}
        if component == TEXTS[name][-1]:
            assert not moved
        elif rank is None:
            assert len(moved) > len(after) / 2
        else:  # attention, as in the text encoders of other families
            layers = {tensor for tensor in after if re.search(r'self_attn\.(q|k|v|out)_proj\.weight', tensor)}
            assert moved and moved <= layers
    if rank is None:
        assert unmoved(tmp_path / 'run', model) == {'pos_embed.pos_embed'}  # the table of positions is a constant
    else:
        exported = f'--output={tmp_path / "lora.safetensors"}'
        ended = program('export', f'--workdir={tmp_path / "run"}', '--format=lora_peft', exported)
        assert ended.code == 0 and 'tensors, read back and equal\n' in ended.out, ended.error


@pytest.mark.slow
@pytest.mark.parametrize('name', ['z_image', 'klein', 'flux1'])  # sd3: above, with its text encoders
def test_without_lora_the_whole_transformer_trains(name, train, tmp_path):
    """Every tensor of it, the learned padding too."""
    model = MODELS[name]
    train(model, 'full', 2, rank=None)
    assert not unmoved(tmp_path / 'full', model)


def unmoved(run, model):
    """The transformer's tensors that a run has left as they were."""
    after, before = (files.read_tensors(folder / TRANSFORMER) for folder in (run / 'model', model.tiny.folder()))
    assert after.keys() == before.keys()
    return {tensor for tensor, value in after.items() if np.array_equal(value, before[tensor])}


@pytest.mark.slow
def test_samples_are_those_of_another_model_with_the_runs_adapters(train, program, tmp_path, monkeypatch):
    """On a distilled model, which could not be trained; scores and model/ are of the model that trains."""
    model, generated, save = MODELS['z_image'], [], SampleGrid._generate
    turbo = distilled(model.tiny.folder(), tmp_path / 'turbo')
    monkeypatch.setattr(SampleGrid, '_generate', lambda *args: generated.append(save(*args)) or generated[-1])
    run, flags = tmp_path / 'run', (NO_CLASS, f'--config.samples.model={turbo}')
    train(model, 'run', 2, *flags, '--config.base.learning_rate=1e-1')
    adapters = tmp_path / 'adapters.safetensors'
    assert program('export', f'--workdir={run}', '--format=lora_peft', f'--output={adapters}').code == 0
    other = Cascade.load(turbo, size=model.tiny.SIZE)
    options = SamplingOptions(steps=2, guidance_scale=1.0, sampler='euler', batch_size=1)
    ours, before = (
        one.generate(['a sks dog'], options).base.astype(int) for one in (with_lora(other, adapters), other)
    )
    assert np.abs(ours - before).max() > 8
    np.testing.assert_allclose(generated[0][0][0], ours, atol=2)
    np.testing.assert_allclose(generated[1][0][0], before, atol=2)
    train(model, 'quantised', 1, *flags, '--config.lora.frozen_dtype=int8')
    assert np.abs(generated[3][0][0].astype(int) - before).max() < 32  # its kernels are quantised alike
    settings = run_settings.settings_of(str(run))  # those of the model that trains are not known
    assert not settings.has_samples and settings.samples == SamplesConfig()


def distilled(folder, turbo):
    """Writes a model like that of the folder, but with another transformer and the shift of a distilled one."""
    shutil.copytree(folder, turbo)
    tensors = {name: value * 0.9 for name, value in files.read_tensors(folder / TRANSFORMER).items()}
    files.write_tensors(turbo / TRANSFORMER, tensors)
    scheduler = turbo / 'scheduler' / 'scheduler_config.json'
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text('utf-8')), 'shift': 3.0}))
    return turbo
