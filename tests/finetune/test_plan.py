"""The plan counts what the run will generate and compute: class images of the stages that train on them, steps."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import STORYBOOK_FLOW, DreamBoothConfig, resolve
from dreambooth_jax.config.price import Price
from dreambooth_jax.data.table import Examples
from dreambooth_jax.families import unet
from dreambooth_jax.finetune import examples, plan, stage
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.models import scanned
from dreambooth_jax.training.placement import make_placement
from tests.support import planned_runs, tiny_klein, tiny_pipelines


@pytest.fixture
def line_of(monkeypatch):
    """(beginning, settings) -> the rest of the plan's line of that beginning; a pass costs 1 s, or 10 s.

    The attribute `made` is the whole plan.
    """
    monkeypatch.setattr(plan, 'forward_flops', lambda cascade, stage: {'base': 1.0, 'super_resolution': 10.0}[stage])
    monkeypatch.setattr(plan, 'device_speed', lambda: 1 / plan.EFFICIENCY)
    cascade = Cascade(tiny_pipelines.base(), tiny_pipelines.super_resolution())

    def line(beginning, price=None, **settings):
        data = {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
        prior = {'num_images': 3, 'steps': 2, **settings.pop('prior', {})}
        data |= settings.pop('data', {})
        config = resolve(DreamBoothConfig, {'data': data, 'prior': prior, **settings})
        evaluated = planned_runs.evaluated(config) if config.evaluation.every else None
        made = plan.describe(config, cascade, examples.read_instance(config, cascade), evaluated=evaluated, price=price)
        line.made = made
        found = re.search(f'  {beginning}:? (.*)', made.text)
        return found and found[1]

    return line


@pytest.fixture
def class_images(line_of):
    return functools.partial(line_of, 'class images')


def test_every_block_of_a_loop_counts(monkeypatch):
    """The shipped flow model computes 8 of its 10 blocks in one loop, which the compiler counts as one block."""
    cascade = Cascade.load(STORYBOOK_FLOW)
    counted = plan.forward_flops(cascade, BASE)
    run = scanned.run
    monkeypatch.setattr(scanned, 'run', lambda *args, scan, **options: run(*args, scan=False, **options))
    assert plan.forward_flops(cascade, BASE) == counted
    # About 64 tokens, for each of which most of 6.3 million parameters are multiplied and added.
    assert 0.7e9 < counted < 0.9e9


def test_class_images_are_planned_for_the_stages_that_train_on_them(class_images, monkeypatch):
    assert class_images() == '3, 12 network passes, 12 s'
    assert class_images(prior={'guidance_scale': 1.0}) == '3, 6 network passes, 6 s'
    assert class_images(prior={'guidance_scale': 1.0, 'sampler': 'heun'}) == '3, 9 network passes, 9 s'
    with monkeypatch.context() as patched:  # a model that is told its guidance runs once a step
        patched.setattr(unet.UNetFamily, 'embeds_guidance', lambda self, pipeline: True)
        assert class_images() == '3, 6 network passes, 6 s'
    assert class_images(prior={'weight': 0.0}) is class_images(prior={'kind': 'distillation'}) is None
    second = {'steps': 1, 'sample_steps': 1, 'sample_guidance_scale': 1.0}
    assert class_images(base={'steps': 0}, super_resolution=second) is None
    assert class_images(base={'steps': 0}, super_resolution={**second, 'with_prior': True}) == (
        '3, 15 network passes, 42 s'
    )


def test_scores_during_training_are_planned(line_of):
    score = functools.partial(line_of, 'evaluation', base={'steps': 5})
    assert score() is None
    settings = {'every': 2, 'num_prompts': 2, 'num_images': 3, 'class_images': 4, 'steps': 5}
    images = 'x 10 images, and as many of the model before'
    assert score(evaluation=settings) == f'3 {images}, 400 network passes, 7 min'
    few = {**settings, 'steps': None, 'patience': 1}
    assert score(evaluation=few, samples={'steps': 2, 'guidance_scale': 1.0}) == (
        f'at most 3 {images}, 80 network passes, 80 s'
    )
    assert line_of('evaluation', base={'steps': 0}, super_resolution={'steps': 1}, evaluation=settings) is None


def test_the_price_is_that_of_the_whole_time_and_only_told_where_an_hour_has_one(line_of, monkeypatch):
    # 50 steps x 3 passes of 4 examples, 2 of them idle, with no class images.
    total = functools.partial(line_of, 'in all', base={'steps': 50}, prior={'weight': 0.0})
    assert total() == line_of.made.time == 'about 10 min, without compilation and samples'
    assert (line_of.made.seconds, line_of.made.cost, line_of.made.price) == (600, None, None)
    price = Price.parsed('--price_per_hour', '1.20 USD')
    assert total(price=price) == 'about 10 min, without compilation and samples, about 0.20 USD at 1.20 USD an hour'
    assert line_of.made.cost == pytest.approx(0.2) and line_of.made.price == 'about 0.20 USD at 1.20 USD an hour'
    monkeypatch.setattr(plan, 'device_speed', lambda: 4 / plan.EFFICIENCY)
    assert total(price=price).endswith(', about 0.05 USD at 1.20 USD an hour')


def test_photos_of_ones_own_are_counted_and_none_is_planned(class_images, tmp_path):
    for number in range(5):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{number}.png')
    assert class_images(prior={'dir': str(tmp_path)}) == f'5 photos of your own in {tmp_path}, all used, none generated'


def test_more_photos_than_recipes_are_made_for_are_told_with_a_number_of_steps(line_of, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f'{number}.png')
        data = {'subject': None, 'instance_dir': str(tmp_path), 'crops': 2}
        proposed = line_of('  steps', data=data, base={'steps': 10, 'batch_size': 1})
        assert (proposed is not None) == (number == 5)
        assert line_of.made.proposed_steps == (20 if number == 5 else None)
        assert f'show each of {number + 1} photos' in line_of.made.about_steps
    assert proposed.endswith(
        'Proposed: --config.base.steps=20, which shows each 3.3 times, as 10 would show each of 5; a rule, which was '
        'not measured for more than 5'
    )
    assert line_of('  steps') is None  # six images of a built-in subject, with which its recipe was chosen
    assert line_of.made.about_steps is line_of.made.proposed_steps is None


def test_the_time_of_a_stage_is_that_of_what_is_computed(line_of):
    """Two examples are padded to four, one for each device; the teacher has the class examples among them."""
    assert jax.device_count() == 4
    for settings, count, passes in (
        ({}, 2, 3 * 4),
        ({'prior': {'weight': 0.0}}, 1, 3 * 4),
        ({'prior': {'kind': 'distillation'}}, 2, 3 * 4 + 2),
        ({'prior': {'phrases': ('in the snow',)}}, 2, 3 * 4 + 2),
        ({'base': {'batch_size': 3}}, 6, 3 * 8),
    ):
        line = line_of('base', **{**settings, 'base': {'steps': 4, **settings.get('base', {})}})
        assert line.startswith(f'4 steps of {count} examples, ') and line.endswith(f', {4 * passes} s'), line


def test_weights_that_do_not_train_need_no_gradient(line_of):
    """The text encoder's words alone train, then adapters of rank 1, which are few even beside this tiny network."""
    words = {'token': 'xyz', 'initializer': 'dog', 'learning_rate': 1e-3}
    alone = {'base': {'steps': 25, 'train_denoiser': False}, 'prior': {'weight': 0.0}}
    line_of('base', **alone, textual_inversion=words, data={'instance_prompt': 'a xyz dog'})
    assert line_of.made.seconds == 25 * 2 * 4
    line_of('base', base={'steps': 25}, lora={'rank': 1, 'targets': ('.*to_q',)})
    assert 25 * 2 * 4 < line_of.made.seconds < 25 * 2.2 * 4


@pytest.mark.parametrize('settings', [{}, {'lora': {'rank': 2}}, {'prior': {'kind': 'distillation'}}])
def test_the_run_that_the_plan_reads_is_on_the_host(settings):
    cascade = Cascade(tiny_pipelines.base(), tiny_pipelines.super_resolution())
    data = {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    config = resolve(DreamBoothConfig, {'data': data, **settings})
    trainable = stage.stage_trainable(config, 'base', cascade)
    feed = stage.make_feed(config, 'base', [5], 3)
    run = stage.make_run(config, 'base', cascade, cascade, trainable, feed, make_placement('pmap'))
    leaves = jax.tree.leaves((run.params, run.frozen, run.batch))
    assert {type(leaf) for leaf in leaves} == {np.ndarray} and not cascade._on_device
    assert ('teacher' in run.frozen) == ('prior' in settings)
    assert run.state_shapes.params.keys() == run.params.keys()


def test_the_plan_tells_the_noise_process_and_how_often_each_time_is_drawn(line_of):
    assert line_of('  noise').startswith('1000 discrete times (')
    shares = lambda **objective: [  # noqa: E731
        int(share)
        for share in line_of(
            r'  times trained on, % in each tenth from clean to noise', objective=objective, base={'steps': 1}
        ).split()
    ]
    assert all(9 <= share <= 11 for share in shares()) and len(shares()) == 10
    assert shares(time_range=(0.5, 1.0))[:5] == [0] * 5
    assert shares(time_shift=3.0)[0] < 5 < 20 < shares(time_shift=3.0)[-1]
    assert line_of('  noise', objective={'time_shift': 3.0}).endswith(', config.objective.time_shift 3 in its place')


def test_a_dynamic_shift_is_told_for_all_sizes_of_the_photos():
    cascade = Cascade.load(tiny_klein.folder(), size=tiny_klein.SIZE)
    config = resolve(DreamBoothConfig, {'data': planned_runs.DATA, 'objective': {'dynamic_time_shift': True}})
    photos = [Examples(np.zeros((1, *size, 3), np.uint8), ['a sks dog']) for size in ((32, 32), (48, 16), (16, 48))]
    noise, times = plan.times_drawn(config, 'base', cascade, photos)
    ks = [math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)) for tokens in (48, 64)]
    assert noise.endswith(
        f', config.objective.dynamic_time_shift {ks[0]:.4g} to {ks[1]:.4g} for 48 to 64 tokens in its place'
    )
    shares = [int(share) for share in times.split(': ')[1].split()]
    assert shares[0] < 8 < 13 < shares[-1]  # k is 1.6
    (noise, _) = plan.times_drawn(config, 'base', cascade, photos[:1])
    assert noise.endswith(f', config.objective.dynamic_time_shift {ks[1]:.4g} for 64 tokens in its place')
