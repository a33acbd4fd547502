"""Every option of training in every stage, by `train` itself: in each run about half of the options are on.

What an option does to the first step is known, so a run is compared with the plain one although the two differ in
several options. Each pair of options, and each option and kind of pipeline, is met both off, both on and one on in
some run: a covering array of six runs, where each column but no two alike is on in three of the last five.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.generation.sample_grid import SampleGrid
from dreambooth_jax.models import lora
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement, step, train_run
from tests.support import smallest_pipelines, toy

# Option -> its settings, and the runs in which it is on.
OPTIONS = {
    'accumulation': (
        ('base.gradient_accumulation_steps=2', 'super_resolution.gradient_accumulation_steps=2'),
        (1, 2, 3),
    ),
    'text_encoder': (('base.train_text_encoder=True',), (1, 2, 4)),
    'average': (('optimizer.ema_decay=0.5',), (1, 2, 5)),
    'min_snr': (('objective.min_snr_gamma=0.01',), (1, 3, 4)),
    'masks': ((), (1, 3, 5)),
    'distillation': (('prior.kind=distillation',), (1, 4, 5)),
    'phrases': (("prior.phrases=('in the snow',)",), (2, 3, 5)),
    'moments': (('optimizer.state_dtype=bfloat16',), (2, 3, 4)),
    'lora': (('lora.rank=2',), (2, 3, 5)),
    'remat': (('parallel.remat=True',), (2, 4, 5)),
}
LATENTS = (3, 4, 5)  # the runs of those; the others are of pixels
RUNS = {
    run: ('latents' if run in LATENTS else 'pixels', tuple(name for name, (_, runs) in OPTIONS.items() if run in runs))
    for run in range(6)
}
pytestmark = pytest.mark.slow  # five minutes

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.num_images = config.prior.steps = config.prior.batch_size = 1
    config.prior.sampler = 'ddim'
    config.prior.guidance_scale = 1.0
    config.base.steps = config.super_resolution.steps = 2
    config.base.learning_rate = config.super_resolution.learning_rate = 1e-3
    config.super_resolution.with_prior = True
    config.super_resolution.noise_level = (0, 9)
    config.super_resolution.crops = 1
    config.export = False
    return config
"""


class Trained(NamedTuple):
    """What was seen of one run: its folder; stage -> numbers by step, frozen data, last state; parts; remats."""

    folder: Any
    lines: dict
    frozen: dict
    state: dict
    parts: set
    remats: list


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """(program, kind, options, more settings, folder) -> Trained, on one device and without samples."""
    folder = tmp_path_factory.mktemp('options')
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    mask = np.repeat(np.uint8([0, 255]), 20)[:, None].repeat(40, axis=1)
    for masks in (False, True):
        (folder / f'photos_{masks}').mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f'photos_{masks}' / f'{i}.png')
            if masks:
                Image.fromarray(mask).save(folder / f'photos_{masks}' / f'{i}.mask.png')
    fit_stage, mean, checkpoint, make_placement = (
        train_run.fit,
        step.mean_of_micro_batches,
        jax.checkpoint,
        placement.make_placement,
    )

    def run(program, kind, options, more=(), into=None):
        photos = folder / f'photos_{"masks" in options}'
        config = folder / f'{kind}_{photos.name}.py'
        config.write_text(CONFIG.format(model=str(smallest_pipelines.folder(kind)), photos=str(photos)))
        into = into or tmp_path_factory.mktemp('run') / 'run'
        settings = [setting for name in options for setting in OPTIONS[name][0]]
        settings += [] if 'distillation' in options else [f'prior.dir={folder / kind}']
        seen = Trained(into, {}, {}, {}, set(), [])

        def spied_fit(run, workdir):
            def frozen_at(placed, step):
                seen.frozen[run.name] = run.frozen_at(placed, step)
                return seen.frozen[run.name]

            state, finished = fit_stage(dataclasses.replace(run, frozen_at=frozen_at), workdir)
            seen.state[run.name] = toy.arrays(state)
            return state, finished

        def spied_mean(function, rows, count, **given):
            seen.parts.add(count)
            return mean(function, rows, count, **given)

        def spied_checkpoint(*arguments, **given):
            seen.remats.append(arguments)
            return checkpoint(*arguments, **given)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(train_run, 'fit', spied_fit)
            patched.setattr(step, 'mean_of_micro_batches', spied_mean)
            patched.setattr(jax, 'checkpoint', spied_checkpoint)
            one = functools.partial(make_placement, devices=jax.devices()[:1])  # as in tests/programs/test_train.py
            patched.setattr(placement, 'make_placement', one)
            patched.setattr(SampleGrid, 'save', lambda *arguments: None)
            settings = [f'--config.{setting}' for setting in (*settings, *more)]
            ended = program('train', f'--config={config}', f'--workdir={into}', *settings)
        assert ended.code == 0, ended.error
        seen.lines.update({stage: metrics.read(into, stage) for stage in seen.state})
        return seen

    return run


@pytest.fixture(scope='module')
def trained(train):
    """(program, run) -> Trained, each made on first use; the runs 'pixels' and 'latents' are without options."""
    made = {}

    def find(program, run):
        kind, options = RUNS.get(run, (run, ()))
        name = kind if not options else run
        if name not in made:
            made[name] = train(program, kind, options)
        return made[name]

    return find


@pytest.mark.parametrize('run', RUNS)
def test_options_do_what_they_say_in_every_stage(program, trained, run):
    kind, options = RUNS[run]
    plain, ours = trained(program, kind), trained(program, run)
    assert not (ours.folder / 'prior').exists()
    assert ours.parts == {2 if 'accumulation' in options else 1} and bool(ours.remats) == ('remat' in options)
    for stage in ('base', 'super_resolution'):
        (first, second), (before, _) = ours.lines[stage], plain.lines[stage]
        frozen, state = ours.frozen[stage], ours.state[stage]
        # The second stage on pixels reads prompts with the base's text encoder, which may have trained by then.
        moved = kind == 'pixels' and stage == 'super_resolution' and 'text_encoder' in options
        close = functools.partial(pytest.approx, rel=0.02 if moved else 1e-4)
        same = first['instance_denoising'] == close(before['instance_denoising'])
        assert same == ('min_snr' not in options and 'masks' not in options)
        assert second['loss'] != close(first['loss'])
        if 'distillation' in options:  # of the model as it was before any stage, its text encoder too
            assert (first['prior_loss'] < 1e-10) != moved and second['prior_loss'] < 1
            assert moved or second['prior_loss'] > 100 * first['prior_loss']
            assert (frozen['teacher'] is frozen['weights'].get('unet')) == ('lora' in options)
        elif 'phrases' in options:  # the class image first, and then a photo that is held to the teacher
            assert second['prior_loss'] < first['prior_loss'] / 10
            assert (frozen['teacher'] is frozen['weights'].get('unet')) == ('lora' in options)
        else:
            assert 'teacher' not in frozen
        if 'distillation' not in options:
            assert (first['prior_denoising'] == close(before['prior_denoising'])) == ('min_snr' not in options)
        texts = {'text_encoder'} if stage == 'base' and 'text_encoder' in options else set()
        assert state.params.keys() == {'unet'} | texts
        for params in state.params.values():
            assert {lora.is_adapter(name) for name in params} == {'lora' in options}
        assert (state.ema is not None) == ('average' in options)
        if state.ema is not None:
            pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True)
            assert not all(np.array_equal(average, weight) for average, weight in pairs)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)}
        assert (jnp.dtype(jnp.bfloat16) in kinds) == ('moments' in options)


def test_a_resumed_run_is_held_to_the_model_as_it_was_at_first(program, train, trained, tmp_path):
    kind, options = RUNS[1]
    whole = trained(program, 1)
    for steps in (1, 2):
        more = (f'base.steps={steps}', 'super_resolution_model=none', 'super_resolution.gradient_accumulation_steps=1')
        parts = train(program, kind, options, more, tmp_path / 'run')
    toy.assert_same(parts.state['base'], whole.state['base'])
    assert [line['prior_loss'] for line in parts.lines['base']] == [line['prior_loss'] for line in whole.lines['base']]
