"""A model of diffusers' train_dreambooth.py: DeepFloyd IF with its variance head, saved as 'fixed_small'."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files
from tests.support import smallest_pipelines

SETTINGS = (
    '--config.data.instance_prompt=a sks dog',
    '--config.data.class_prompt=a dog',
    '--config.prior.weight=0.0',
    '--config.base.steps=1',
    '--config.base.learning_rate=1e-3',
    '--config.samples.steps=1',
    '--config.samples.num_images=1',
    '--config.samples.guidance_scale=1.0',
    '--config.samples.sampler=ddpm',
    '--config.super_resolution_model=none',
)


def saved(folder, **scheduler):
    """The smallest model of pixels, its scheduler file changed."""
    model = folder / 'model'
    shutil.copytree(smallest_pipelines.folder('pixels'), model)
    path = model / 'scheduler' / 'scheduler_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **scheduler}))
    return model


def config(folder, model):
    photos = folder / 'photos'
    photos.mkdir()
    Image.new('RGB', (24, 24), 'red').save(photos / '1.png')
    path = folder / 'config.py'
    path.write_text(
        'from dreambooth_jax.config import DreamBoothConfig, to_config_dict\ndef get_config():\n    return '
        'to_config_dict(DreamBoothConfig())\n'
    )
    return (
        f'--config={path}',
        f'--workdir={folder / "run"}',
        f'--config.model={model}',
        f'--config.data.instance_dir={photos}',
        *SETTINGS,
    )


@pytest.mark.slow
def test_it_is_planned_trained_and_generated_with(program, tmp_path, monkeypatch):
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)
    model = saved(tmp_path, variance_type='fixed_small')
    settings = config(tmp_path, model)
    assert program('train', *settings, '--dry_run').code == 0
    assert program('train', *settings).code == 0
    line = metrics.read(tmp_path / 'run', 'base')[0]
    assert line['instance_variance'] > 0  # the head trains
    written = json.loads((tmp_path / 'run/model/scheduler/scheduler_config.json').read_text())
    assert written['variance_type'] == 'fixed_small'  # and is generated with as before
    generated = program('sample', f'--model={tmp_path / "run"}', '--prompt=a dog', f'--output={tmp_path / "out"}')
    assert generated.code == 0 and np.asarray(Image.open(tmp_path / 'out/000_00.png')).std() > 0


def test_a_variance_without_a_head_is_one_sentence_in_every_program(program, tmp_path):
    model = saved(tmp_path)
    path = model / 'unet' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'out_channels': 3}))
    path = model / 'unet' / 'diffusion_pytorch_model.safetensors'
    tensors = files.read_tensors(path)
    cut = {name: np.array(value[:3] if name.startswith('conv_out') else value) for name, value in tensors.items()}
    files.write_tensors(path, cut)
    settings = config(tmp_path, model)
    for ended in (
        program('train', *settings, '--dry_run'),
        program('train', *settings),
        program('sample', f'--model={model}', '--prompt=a dog', f'--output={tmp_path / "out"}'),
    ):
        assert (ended.code, ended.error.splitlines()[-1]) == (
            1,
            f"the scheduler of {model} has variance_type 'learned_range', but its UNet answers with 3 channels and no "
            f"variance; write 'fixed_small' into its scheduler_config.json.",
        )
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'out').exists()
