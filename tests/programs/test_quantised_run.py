"""Whole LoRA runs beside quantised kernels: how a run goes on, what it writes, and several devices."""

import functools
import re

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.models import lora
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files
from tests.support import smallest_pipelines

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.super_resolution_model = 'none'
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.prior.weight = 0.0
    config.base.batch_size = 4
    config.base.learning_rate = 1e-2
    config.base.train_text_encoder = True
    config.lora.rank = 2
    config.lora.targets = {targets!r}
    config.samples.prompts = ('a sks dog',)
    config.samples.num_images = 1
    config.samples.steps = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    return config
"""
NETWORKS = 'unet/diffusion_pytorch_model.safetensors', 'text_encoder/model.safetensors'
STEPS = 3


@pytest.fixture
def one_device(monkeypatch):
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quantised')
    photos = folder / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(photos / name)
    path = folder / 'config.py'
    model = str(smallest_pipelines.folder('pixels'))
    path.write_text(CONFIG.format(model=model, photos=str(photos), targets=lora.ATTENTION_PROJECTIONS))
    return path


@pytest.fixture
def train(program, config):
    """Trains in a folder, (run, kind, *flags, steps=STEPS); returns how it ended."""

    def run(folder, kind, *flags, steps=STEPS):
        given = (f'--config.base.steps={steps}', f'--config.lora.frozen_dtype={kind}', *flags)
        return program('train', f'--config={config}', f'--workdir={folder}', *given)

    return run


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(train, kind) -> the folder of an uninterrupted run on one device, made on first use."""
    made = {}

    def run(train, kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / 'whole'
            ended = train(made[kind], kind)
            assert ended.code == 0, ended.error
        return made[kind]

    return run


def losses(run):
    return [line['loss'] for line in metrics.read(run, 'base') if 'loss' in line]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_a_run_goes_on_bit_for_bit_and_writes_the_models_own_kernels_with_its_adapters(
    kind, one_device, train, whole, program, tmp_path
):
    runs = whole(train, kind), tmp_path / 'parts'
    for steps in (2, STEPS):
        ended = train(runs[1], kind, steps=steps)
        assert ended.code == 0, ended.error
        assert (runs[1] / 'samples' / 'base' / f'{steps:06d}.png').is_file()
    for network in NETWORKS:
        ours, parts = (files.read_tensors(run / 'model' / network) for run in runs)
        before = files.read_tensors(smallest_pipelines.folder('pixels') / network)
        assert ours.keys() == parts.keys() == before.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, parts[name], err_msg=name)
        # Kernels without adapters are the model's own to the bit, not what their codes give.
        moved = {name for name, value in ours.items() if not np.array_equal(value, before[name])}
        adapted = lora.ATTENTION_PROJECTIONS[0] + r'\.weight'
        assert moved == {name for name in ours if re.fullmatch(adapted, name)} and len(moved) >= 4
    assert losses(runs[0]) == losses(runs[1]) and len(losses(runs[0])) == STEPS
    for other in ('int8', 'nf4', None):
        if other != kind:
            ended = train(runs[0], other, steps=4)
            assert ended.code == 1
            assert ended.error.splitlines()[-1] == (
                f'config.lora.frozen_dtype is {other!r} but {runs[0]} was begun with {kind!r}; set it back, '
                f'or start another run with --workdir'
            )
    exported = tmp_path / 'lora.safetensors'
    ended = program('export', f'--workdir={runs[0]}', '--format=lora_peft', f'--output={exported}')
    assert ended.code == 0 and 'tensors, read back and equal\n' in ended.out, ended.error


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['pmap', 'fsdp'])
def test_several_devices_train_what_one_trains(mode, train, whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
        patched.setattr(placement, 'make_placement', one)
        alone = whole(train, 'nf4')
    assert jax.device_count() == 4
    # Codes and scales of the smallest networks are sharded too.
    sharded = f'--config.parallel.mode={mode}', '--config.parallel.fsdp_min_bytes=128'
    run = tmp_path / 'run'
    ended = train(run, 'nf4', *sharded)
    assert ended.code == 0, ended.error
    images = sorted(path.relative_to(alone) for path in alone.rglob('*.png'))
    assert {path.parts[0] for path in images} == {'samples'}
    for path in images:
        ours, theirs = (np.asarray(Image.open(folder / path), int) for folder in (run, alone))
        assert np.abs(ours - theirs).max() <= 2, path
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    for name in NETWORKS:
        before = files.read_tensors(smallest_pipelines.folder('pixels') / name)
        ours, theirs = (files.read_tensors(folder / 'model' / name) for folder in (run, alone))
        assert ours.keys() == theirs.keys() == before.keys()
        assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) < 1e-3
        assert max(np.abs(ours[key] - before[key]).max() for key in ours) > 1e-3
