"""A LoRA run of FLUX.2 Klein from the command line: the plan, class images, an interrupted and a whole training."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files, lora_files
from tests.support import tiny_klein

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.data.resolution = 32
    config.prior.num_images = 2
    config.prior.steps = config.samples.steps = 2
    config.prior.sampler = config.samples.sampler = 'euler'
    config.prior.guidance_scale = config.samples.guidance_scale = 1.0
    config.base.learning_rate = 1e-2
    config.lora.rank = 2
    config.samples.prompts = ('a sks dog',)
    config.samples.num_images = 1
    config.evaluation.every = 0
    return config
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(program, tmp_path):
    (tmp_path / 'photos').mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png'):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / 'photos' / name)
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(model=str(tiny_klein.folder()), photos=str(tmp_path / 'photos')))

    def train(run, steps, *more):
        ended = program(
            'train', f'--config={config}', f'--workdir={tmp_path / run}', f'--config.base.steps={steps}', *more
        )
        assert ended.code == 0, ended.error
        return ended.out

    plan = train('whole', 4, '--dry_run')
    assert 'noise: rectified flow, shift 1 in training, 7.131 in generating (for 64 tokens and 2 steps)' in plan
    train('whole', 4)
    train('parts', 2)
    train('parts', 4)
    whole, parts, before = (
        files.read_tensors(folder / 'transformer' / 'diffusion_pytorch_model.safetensors')
        for folder in (tmp_path / 'whole' / 'model', tmp_path / 'parts' / 'model', tiny_klein.folder())
    )
    moved = {name for name, value in whole.items() if not np.array_equal(value, before[name])}
    assert len(moved) == 8  # the usual LoRA targets of its three blocks
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
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
        ended = program('export', f'--workdir={tmp_path / "whole"}', f'--format={format}', f'--output={file}')
        assert ended.code == 0 and ended.out.endswith('tensors, read back and equal\n'), ended.error
        merged = with_lora(Cascade.load(tiny_klein.folder(), size=32), file).base.denoiser.params
        for name, value in read_pipeline(tmp_path / 'whole').denoiser.params.items():
            np.testing.assert_allclose(merged[name], value, atol=1e-6, err_msg=name)
