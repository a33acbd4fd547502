"""One stage of a run: what is checked before it, and in which dtype what runs once runs."""

import dataclasses
import re
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import (
    ConfigError,
    DataConfig,
    DreamBoothConfig,
    ObjectiveConfig,
    PriorConfig,
    RunSamplesConfig,
)
from dreambooth_jax.data.table import Examples, make_table
from dreambooth_jax.families.image_space import encode_images
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune import examples, plan, stage
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training.callbacks import Callback
from dreambooth_jax.training.placement import Pmap
from tests.support import planned_runs, smallest_pipelines

FROZEN_TEXT = types.SimpleNamespace(trains_text=False)
PROMPTS = ['a sks dog', 'a dog in the snow']


def cascade(kind, dtype=jnp.float32, **scheduler):
    """The smallest one of a kind, its base stage's scheduler changed."""
    folder = smallest_pipelines.folder(kind)
    base = read_pipeline(folder, dtype=dtype)
    second = read_pipeline(base.super_resolution_folder, dtype=dtype)
    return Cascade(dataclasses.replace(base, scheduler={**base.scheduler, **scheduler}), second)


def test_targets_and_frozen_text_are_float32_whatever_the_steps_compute_in():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    table = make_table(Examples(images, PROMPTS))
    half, full = (
        stage.stage_data(DreamBoothConfig(), BASE, model, model, table, FROZEN_TEXT)
        for model in (cascade('latents', jnp.bfloat16), cascade('latents'))
    )
    for ours, exact in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-7)
    # The comparison would see bfloat16: the networks as they were read do compute in it.
    vae = cascade('latents', jnp.bfloat16).base.components['vae']
    coarse = encode_images(vae.apply, vae.params, table.images)
    assert np.abs(coarse - full['moments']).max() > 1e-4


@pytest.mark.parametrize('kind', ['latents', 'pixels'])
def test_the_plan_neither_places_nor_runs_a_text_encoder(kind, monkeypatch):
    model = cascade(kind)
    for name in (BASE, SUPER_RESOLUTION):
        text = jax.tree.map(lambda x: (x.shape, x.dtype), model.encode([''], name))
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.conditioning_shapes(name))
        assert text == shapes
    model = cascade(kind)
    monkeypatch.setattr(Cascade, 'encode', None)
    assert plan.forward_flops(model, BASE) > 0 and plan.forward_flops(model, SUPER_RESOLUTION) > 0
    assert not model._on_device


def check(model, **settings):
    stage.check_schedules(DreamBoothConfig(**settings), model)


def test_a_sampler_that_generates_no_class_images_may_be_any(tmp_path):
    model = cascade('latents', solver_order=3)
    photos = tmp_path / 'dogs'
    photos.mkdir()
    Image.new('RGB', (64, 64), 'brown').save(photos / 'one.png')
    subject = DataConfig(subject='dog', instance_prompt='a sks dog', class_prompt='a dog')
    settings = dict(samples=RunSamplesConfig(sampler='ddim'), data=subject)
    check(model, prior=PriorConfig(sampler='dpmsolver++', dir=str(photos)), **settings)
    check(model, prior=PriorConfig(sampler='dpmsolver++', kind='distillation'), **settings)
    check(model, prior=PriorConfig(sampler='dpmsolver++', weight=0.0), **settings)
    with pytest.raises(ConfigError, match='solver_order is 3, with which sampler dpmsolver'):
        check(model, prior=PriorConfig(sampler='dpmsolver++'), **settings)


def test_samplers_are_tried_before_anything_is_generated():
    model = cascade('latents', solver_order=3)
    sentence = (
        f"{model.base.name}: the scheduler file's solver_order is 3, with which sampler dpmsolver++ cannot sample"
    )
    for settings in ({}, dict(samples=RunSamplesConfig(sampler='ddim'), prior=PriorConfig(sampler='dpmsolver++'))):
        with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}'):
            check(model, **settings)
    check(model, samples=RunSamplesConfig(sampler='ddim'))
    unused = PriorConfig(sampler='dpmsolver++', weight=0.0)
    check(model, samples=RunSamplesConfig(sampler='ddim'), prior=unused)
    with pytest.raises(ConfigError, match=r'^steps is 1001; 1 to 1000 denoise steps are possible\.$'):
        check(model, samples=RunSamplesConfig(sampler='ddim', steps=1001))


def test_a_variance_saved_as_fixed_trains_as_the_range_that_it_is():
    """diffusers' train_dreambooth.py saves DeepFloyd IF so."""
    model = cascade('pixels', variance_type='fixed_small')
    check(model)
    trainable = types.SimpleNamespace(denoiser='unet', apply={'unet': model.base.denoiser.apply}, trains_text=False)
    made = stage.make_stage(DreamBoothConfig(), BASE, model, trainable)
    assert made.process.variance_type == 'learned_range'
    assert made.process.sampling('ddpm').variance_type == 'fixed_small'


def test_a_variance_of_another_scale_is_only_left_as_it_is():
    model = cascade('pixels', variance_type='learned')
    with pytest.raises(ConfigError, match="has variance_type 'learned', .* set train_variance to False, which"):
        check(model)
    check(model, objective=ObjectiveConfig(train_variance=False))


@pytest.mark.slow
@pytest.mark.parametrize(('frozen_dtype', 'dora'), [(None, True), ('int8', False)], ids=['dora', 'int8'])
def test_adapters_generate_beside_the_kernels_of_the_training_what_they_do_merged(frozen_dtype, dora, tmp_path):
    """No array of the denoiser is placed for a sample, and the model before the run generates as ever."""
    lora = {'rank': 2, 'alpha': 3.0, 'targets': ('.*',), 'dora': dora, 'frozen_dtype': frozen_dtype}
    config = planned_runs.settings(
        base={'steps': 3, 'learning_rate': 1.0},
        lora=lora,
        prior={'weight': 0.0},
        evaluation={'every': 0},
        samples={'steps': 6, 'guidance_scale': 4.0},
    )
    whole, placement = planned_runs.cascade('pixels', frozen_dtype), Pmap(jax.devices()[:1])
    model = Cascade(whole.base).on(placement)
    tables = examples.stage_tables(config, model, BASE, planned_runs.photos(whole, config)[BASE], [])
    options, seen = SamplingOptions.of_samples(config.samples), {}

    def images(cascade):
        return cascade.generate(PROMPTS, options).base.astype(int)

    def callbacks(cascade_of, before):
        def see(step, state):
            ours = cascade_of(state)
            seen['ours'], seen['before'] = images(ours), images(before)
            held = {id(value) for name, value in ours.base.denoiser.params.items() if 'lora' not in name}
            assert held == {id(value) for name, value in before.base.denoiser.params.items() if 'lora' not in name}
            assert all(isinstance(value, jax.Array) for value in ours.base.denoiser.params.values())
            assert ours._on_device.keys() <= {(BASE, 'unet')} >= before._on_device.keys()  # no text encoder

        return [Seen(every=3, see=see)]

    trained, finished = stage.finetune(config, tmp_path, BASE, model, model, tables, callbacks, placement)
    assert finished and np.abs(seen['ours'] - seen['before']).max() > 2
    if frozen_dtype is None:
        assert not any('lora' in name for name in trained.base.denoiser.params)
    assert np.abs(seen['ours'] - images(trained)).max() <= 1
    assert np.abs(seen['before'] - images(model)).max() <= (1 if dora else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen(Callback):
    """Shows the state to a function."""

    see: Callable
    every: int = 0

    def __call__(self, step, state):
        self.see(step, state)

    def missed(self, step):
        return False
