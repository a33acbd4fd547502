"""Runs of the rectified flows from the command line: the plan, class images, an interrupted and a whole training."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files, lora_files
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
    'z_image': Model(tiny_z_image, 'shift 6 in training, 6 in generating (for every size)', 16),
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
@pytest.mark.parametrize('name', MODELS)
def test_a_run_trains_the_usual_layers_goes_on_and_writes_them_in_every_format(name, train, program, tmp_path):
    model = MODELS[name]
    assert f'noise: rectified flow, {model.noise}' in train(model, 'whole', 4, '--dry_run')
    train(model, 'whole', 4)
    whole, before = (
        files.read_tensors(folder / TRANSFORMER) for folder in (tmp_path / 'whole' / 'model', model.tiny.folder())
    )
    moved = {name for name, value in whole.items() if not np.array_equal(value, before[name])}
    assert len(moved) == model.layers  # the usual LoRA targets of its blocks
    if name == 'klein':  # no family has a part in how a run goes on, so one is enough
        train(model, 'parts', 2)
        train(model, 'parts', 4)
        parts = files.read_tensors(tmp_path / 'parts' / 'model' / TRANSFORMER)
        for tensor, value in whole.items():
            np.testing.assert_array_equal(value, parts[tensor], err_msg=tensor)
    sampled = program(
        'sample',
        f'--model={tmp_path / "whole"}',
        '--prompt=a sks dog',
        f'--output={tmp_path / "out"}',
        '--num_images=1',
    )
    assert sampled.code == 0 and (tmp_path / 'out' / 'grid.png').is_file(), sampled.error
    for format in lora_files.FORMATS:
        file = tmp_path / f'{format}.safetensors'
        exported = program('export', f'--workdir={tmp_path / "whole"}', f'--format={format}', f'--output={file}')
        assert exported.code == 0 and 'tensors, read back and equal\n' in exported.out, exported.error
        merged = with_lora(Cascade.load(model.tiny.folder(), size=model.tiny.SIZE), file).base.denoiser.params
        for tensor, value in read_pipeline(tmp_path / 'whole').denoiser.params.items():
            np.testing.assert_allclose(merged[tensor], value, atol=1e-6, err_msg=tensor)


FIXED = {'z_image': set(), 'sd3': {'pos_embed.pos_embed'}}  # the table of positions is a constant


@pytest.mark.slow
@pytest.mark.parametrize('name', FIXED)
def test_without_lora_the_whole_transformer_trains(name, train, tmp_path):
    """Every tensor of it but constants, the learned padding too."""
    model = MODELS[name]
    train(model, 'full', 2, rank=None)
    after, before = (
        files.read_tensors(folder / TRANSFORMER) for folder in (tmp_path / 'full' / 'model', model.tiny.folder())
    )
    assert after.keys() == before.keys()
    assert {tensor for tensor, value in after.items() if np.array_equal(value, before[tensor])} == FIXED[name]
