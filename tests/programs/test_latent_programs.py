"""sample and the plan of train on folders of Stable Diffusion, with the upscaler behind them."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError, DreamBoothConfig, SuperResolutionConfig
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_schedules
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models.functional import parameter_count
from tests.support import tiny_latent_pipelines as tiny
from tests.support.generating import generate

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.base.steps = 4
    config.base.batch_size = 2
    config.super_resolution.steps = 3
    config.super_resolution.batch_size = 1
    config.super_resolution.noise_level = (0, 9)
    return config
"""
UPSCALER = f'--config.super_resolution_model={tiny.folder("upscaler")}'


@pytest.fixture
def config(tmp_path):
    path, photos = tmp_path / 'config.py', tmp_path / 'photos'
    photos.mkdir()
    Image.new('RGB', (256, 256), 'red').save(photos / '1.png')
    path.write_text(CONFIG.format(photos=str(photos)))
    return path


def model(family):
    return f'--config.model={tiny.folder(family)}', '--config.super_resolution_model=none'


@pytest.mark.slow
@pytest.mark.parametrize('family', ['sd1', 'sdxl'])
def test_sample_generates_with_a_folder_of_stable_diffusion(family, program, tmp_path, monkeypatch):
    shared, load = tiny.cascade(family), Cascade.load.__func__

    def load_compiled(cls, name, **options):
        loaded = load(cls, name, **options)
        programs = {key: made for key, made in shared.programs.items() if key[0] != 'conditioning'}
        return dataclasses.replace(loaded, programs=programs)

    options = dict(num_images=2, steps=10, guidance_scale=7.5, sampler='ddim', seed=4, batch_size=4)
    images = generate(shared, ['a dog', 'a cat'], **options).final
    monkeypatch.setattr(Cascade, 'load', classmethod(load_compiled))
    ended = program(
        'sample',
        f'--model={tiny.folder(family)}',
        '--prompt=a dog',
        '--prompt=a cat',
        f'--output={tmp_path}',
        *(f'--{name}={value}' for name, value in options.items()),
    )
    assert ended[:2] == (0, f'4 images of 32 x 32 pixels and grid.png in {tmp_path}\n')
    names = ['000_00.png', '000_01.png', '001_00.png', '001_01.png']
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, 'grid.png']
    generated = [np.asarray(Image.open(tmp_path / name)) for name in names]
    np.testing.assert_allclose(generated, images, atol=1)


def plan_of(ended):
    """The plan of a dry run; every line about work tells its seconds."""
    assert ended.code == 0
    plan = ended.out.partition('plan for')[2]
    work = [line for line in plan.splitlines() if re.match('  (class images|base|super_resolution|in all)', line)]
    work = [line for line in work if not re.search(' have no weight| images are computed only', line)]
    assert len(work) >= 3
    assert all(re.search(r' [1-9]\d* s(?:,|$)', line) for line in work)
    return plan


@pytest.mark.slow
def test_dry_run_tells_the_plan_of_both_stages_and_writes_nothing(program, config, tmp_path):
    run = tmp_path / 'run'
    plan = plan_of(program('train', f'--config={config}', f'--workdir={run}', *model('sd1'), UPSCALER, '--dry_run'))
    assert not run.exists()
    millions = parameter_count(tiny.cascade('sd1').base.denoiser.params) / 1e6
    assert f'base: 4 steps of 4 examples, {millions:.1f}M parameters trained, ' in plan
    assert 'super_resolution: 3 steps of 1 examples, ' in plan


@pytest.mark.slow
def test_dry_run_counts_both_text_encoders_of_xl(program, config, tmp_path):
    plan = plan_of(
        program(
            'train',
            f'--config={config}',
            f'--workdir={tmp_path / "run"}',
            *model('sdxl'),
            '--dry_run',
            '--config.base.train_text_encoder=True',
        )
    )
    base = tiny.cascade('sdxl').base
    count = sum(parameter_count(network.params) for network in (base.denoiser, *base.text_encoders.values()))
    assert f'base: 4 steps of 4 examples, {count / 1e6:.1f}M parameters trained, ' in plan
    assert 'super_resolution' not in plan


def test_noise_that_the_upscaler_does_not_know_is_refused_before_anything_is_done(program, config, tmp_path):
    ended = program(
        'train',
        f'--config={config}',
        f'--workdir={tmp_path / "run"}',
        *model('sd1'),
        UPSCALER,
        '--config.super_resolution.noise_level=(0, 20)',
    )
    assert (ended.code, ended.error.splitlines()[-1]) == (
        1,
        f'config.super_resolution.noise_level is (0, 20) but {tiny.folder("upscaler")} knows the levels 0 to 9; lower '
        f'it',
    )
    assert not (tmp_path / 'run').exists()


def test_samples_at_an_unknown_noise_level_are_refused_where_the_upscaler_trains():
    cascade = Cascade(tiny.cascade('sd1').base, read_pipeline(tiny.folder('upscaler')))

    def check(**settings):
        check_schedules(DreamBoothConfig(super_resolution=SuperResolutionConfig(**settings)), cascade)

    check(steps=1, noise_level=(0, 9), sample_noise_level=9)
    check(steps=0, sample_noise_level=20)
    with pytest.raises(ConfigError, match=r'^config\.super_resolution\.sample_noise_level is 20 but '):
        check(steps=1, noise_level=(0, 9), sample_noise_level=20)
