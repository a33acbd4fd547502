"""Steps of several image sizes: 3 + 3 equal 6, bit for bit; many devices, and the prior at its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.data.feed import Feed
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import step, train_run
from tests.support import toy

SIZES, COUNTS, STEPS = ((4, 10), (8, 6)), (2, 1), 6


def tables():
    """Images of each size: the subject's, then the same number of class images."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (count + toy.CLASSES, *size, toy.CHANNELS), np.uint8)
        for size, count in zip(SIZES, COUNTS, strict=True)
    ]


def train(workdir, steps, placement='one', per_dispatch=10, kind='adamw'):
    where, feed = toy.placed(placement), Feed(0, steps, COUNTS, toy.CLASSES)
    data = [{'images': images, 'prompt_of': np.zeros(len(images), np.int32), **feed.arrays} for images in tables()]
    run = train_run.TrainRun(
        name='toy',
        loss=toy.loss,
        params=toy.params(),
        frozen=data,
        frozen_at=lambda placed, step: placed[feed.bucket(step)],
        batch=feed.batch(3, 3, 0.7, where.devices),
        pick=feed.pick,
        tx=toy.transformation(kind),
        learning_rate=lambda step: toy.LEARNING_RATE,
        ema_decay=toy.EMA,
        placement=where,
        budget=train_run.Budget(steps=steps, per_dispatch=feed.steps_per_dispatch(per_dispatch)),
        seed=0,
    )
    state, finished = train_run.fit(run, workdir)
    assert finished
    return toy.arrays(state)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, train(folder, STEPS)


def losses(workdir):
    return [line['loss'] for line in metrics.read(workdir, 'toy')]


@pytest.mark.slow
def test_a_resumed_run_of_two_buckets_ends_as_the_uninterrupted_one(whole, tmp_path):
    feed = Feed(0, STEPS, COUNTS, toy.CLASSES)
    assert {feed.bucket(step) for step in range(3)} == {feed.bucket(step) for step in range(3, 6)} == {0, 1}
    train(tmp_path, 3)
    toy.assert_same(train(tmp_path, STEPS), whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_the_loss_of_a_step_is_that_of_its_buckets_examples(whole):
    feed, key, params = Feed(0, STEPS, COUNTS, toy.CLASSES), jax.random.key(0), toy.params()
    bucket = feed.bucket(0)
    frozen = {'images': tables()[bucket], 'prompt_of': np.zeros(COUNTS[bucket] + toy.CLASSES), **feed.arrays}
    batch = feed.batch(3, 3, 0.7, 1)
    examples = jax.jit(feed.pick)(
        jax.random.fold_in(key, step.EXAMPLES_STREAM), 0, batch, jax.tree.map(jnp.asarray, frozen)
    )
    per_example, _ = jax.jit(toy.loss)(
        params, jax.tree.map(jnp.asarray, frozen), examples, step.example_keys(key, 0, batch['slot'])
    )
    assert losses(whole[0])[0] == pytest.approx(float(per_example[:3].mean() + 0.7 * per_example[3:].mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('placement', ['pmap', pytest.param('fsdp', marks=pytest.mark.slow)])
def test_four_devices_take_the_steps_of_one(placement, whole, tmp_path):
    train(tmp_path, 3, placement=placement)
    np.testing.assert_allclose(losses(tmp_path), losses(whole[0])[:3], rtol=1e-5)
