"""Whole LoRA runs beside quantised kernels: Storybook, how it goes on, what it writes, and several devices."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import dreambooth_jax.storybook
from dreambooth_jax.models import lora
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files
from tests.programs.test_train import CONFIG, WEIGHTS
from tests.programs.test_train_hosts import end, start
from tests.support import smallest_pipelines

STORYBOOK = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.super_resolution_model = 'none'
    config.data.subject = 'dog'
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.weight = 0.0
    config.base.learning_rate = 1e-3
    config.base.train_text_encoder = True
    config.lora.rank = 2
    config.samples.prompts = ('a sks dog',)
    config.samples.num_images = 1
    config.samples.steps = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    return config
"""
SHIPPED = Path(dreambooth_jax.storybook.__file__).parent / 'pretrained'
RUNS = 'whole', 'parts'
NETWORKS = WEIGHTS[0], 'text_encoder/model.safetensors'


@pytest.fixture
def one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_a_run_of_storybook_goes_on_bit_for_bit_and_writes_the_shipped_kernels_with_its_adapters(
    kind, one_device, program, tmp_path
):
    config = tmp_path / 'config.py'
    config.write_text(STORYBOOK)

    def train(run, steps, kind=kind):
        flags = (f'--config.base.steps={steps}', f'--config.lora.frozen_dtype={kind}')
        return program('train', f'--config={config}', f'--workdir={tmp_path / run}', *flags)

    for run, steps in (('whole', 3), ('parts', 2), ('parts', 3)):
        ended = train(run, steps)
        assert ended.code == 0, ended.error
        assert (tmp_path / run / 'samples' / 'base' / f'{steps:06d}.png').is_file()
    for network in NETWORKS:
        whole, parts = (files.read_tensors(tmp_path / run / 'model' / network) for run in RUNS)
        before = files.read_tensors(SHIPPED / network)
        assert whole.keys() == parts.keys() == before.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(value, parts[name], err_msg=name)
        # Kernels without adapters are the shipped ones to the bit, not what their codes give.
        moved = {name for name, value in whole.items() if not np.array_equal(value, before[name])}
        adapted = lora.ATTENTION_PROJECTIONS[0] + r'\.weight'
        assert moved == {name for name in whole if re.fullmatch(adapted, name)} and len(moved) >= 8
    losses = [[line['loss'] for line in metrics.read(tmp_path / run, 'base') if 'loss' in line] for run in RUNS]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    for other in ('int8', 'nf4', None):
        if other != kind:
            ended = train('whole', 4, other)
            assert ended.code == 1
            assert ended.error.splitlines()[-1] == (
                f'config.lora.frozen_dtype is {other!r} but {tmp_path / "whole"} was begun with {kind!r}; set it back, '
                f'or start another run with --workdir'
            )
    exported = tmp_path / 'lora.safetensors'
    ended = program('export', f'--workdir={tmp_path / "whole"}', '--format=lora_peft', f'--output={exported}')
    assert ended.code == 0 and 'tensors, read back and equal\n' in ended.out, ended.error


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory):
    """(settings file, what a run of the smallest networks on one device leaves), with nf4."""
    folder = tmp_path_factory.mktemp('whole_runs')
    photos = folder / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(photos / name)
    lora = "    config.lora.rank = 2\n    config.lora.frozen_dtype = 'nf4'\n    config.lora.targets = ('.*',)\n"
    text = CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(photos))
    config = folder / 'config.py'
    config.write_text(text.replace('    return config', f'{lora}    return config'))
    end(start(config, folder / 'one', 1))
    return config, folder / 'one'


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['pmap', 'fsdp'])
def test_several_devices_train_what_one_trains(mode, on_one_device, tmp_path):
    config, alone = on_one_device
    # Codes and scales of the smallest networks are sharded too.
    settings = [f'--config.parallel.mode={mode}', '--config.parallel.fsdp_min_bytes=128']
    end(start(config, tmp_path / 'run', 4, *settings))
    images = sorted(path.relative_to(alone) for path in alone.rglob('*.png'))
    assert {path.parts[0] for path in images} == {'prior', 'samples'}
    for path in images:
        ours, theirs = (np.asarray(Image.open(run / path), int) for run in (tmp_path / 'run', alone))
        assert np.abs(ours - theirs).max() <= 2, path
    for stage in ('base', 'super_resolution'):
        ours, theirs = (
            [line['loss'] for line in metrics.read(run, stage) if 'loss' in line] for run in (tmp_path / 'run', alone)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for name in WEIGHTS:
        before = files.read_tensors(smallest_pipelines.folder('pixels') / name)
        ours, theirs = (files.read_tensors(run / 'model' / name) for run in (tmp_path / 'run', alone))
        assert ours.keys() == theirs.keys() == before.keys()
        assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) < 1e-3
        assert max(np.abs(ours[key] - before[key]).max() for key in ours) > 1e-3
