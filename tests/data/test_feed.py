"""What the steps of several buckets see: every image equally often, and the prior at its weight in each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.data import pairs
from dreambooth_jax.data.feed import Feed

KEY = jax.random.key(3)


def shown(feed, steps, batch):
    """(bucket, places i32[examples]) of every step."""
    frozen = [{'prompt_of': jnp.zeros(count + feed.num_class, jnp.int32), **feed.arrays} for count in feed.counts]
    pick = jax.jit(feed.pick)
    found = []
    for step in range(steps):
        bucket = feed.bucket(step)
        found.append((bucket, np.asarray(pick(KEY, jnp.int32(step), batch, frozen[bucket])['image'])))
    return found


@pytest.mark.parametrize('examples', [1, 2])
def test_every_epoch_shows_every_image_of_every_bucket(examples):
    counts, num_class = (3, 1, 4), 5
    feed = Feed(0, 80, counts, num_class)
    batch = feed.batch(examples, examples, 1.0, 1)
    steps = shown(feed, 80, batch)
    for epoch in range(10):
        seen = [
            (bucket, index) for bucket, indices in steps[8 * epoch : 8 * (epoch + 1)] for index in indices[:examples]
        ]
        expected = [(bucket, index) for bucket, count in enumerate(counts) for index in range(count)]
        assert sorted(seen) == sorted(expected * examples)
    # Class images lie behind the bucket's own and are gone through across all buckets.
    classes = [index - counts[bucket] for bucket, indices in steps for index in indices[examples:]]
    for epoch in range(len(classes) // num_class):
        assert sorted(classes[num_class * epoch : num_class * (epoch + 1)]) == list(range(num_class))


def test_one_bucket_is_fed_as_without_buckets():
    feed = Feed(5, 30, (4,), 7)
    batch = feed.batch(2, 3, 0.5, 1)
    for name, examples in pairs.make_batch(2, 3, 4, 7, 0.5).items():
        np.testing.assert_array_equal(batch[name], examples)
    plain = jax.jit(lambda step: pairs.image_index(KEY, step, batch, 11))
    for step, (bucket, indices) in enumerate(shown(feed, 30, batch)):
        assert bucket == 0
        np.testing.assert_array_equal(indices, plain(jnp.int32(step)))
    assert feed.steps_per_dispatch(10) == 10 and feed.steps_per_dispatch(None) is None
    assert Feed(5, 30, (3, 1), 7).steps_per_dispatch(10) == 1


def test_the_priors_weight_does_not_depend_on_the_buckets():
    one, several = Feed(0, 1, (6,), 5), Feed(0, 1, (1, 5), 5)
    for name in ('weight', 'is_instance', 'slot', 'examples'):
        np.testing.assert_array_equal(one.batch(2, 2, 0.3, 8)[name], several.batch(2, 2, 0.3, 8)[name])
    assert len(Feed(0, 1, (6,), 0).batch(2, 2, 0.3, 1)['slot']) == 2  # no class images, no class examples


def test_steps_already_taken_do_not_depend_on_how_many_follow():
    short, long = Feed(0, 10, (3, 2), 0), Feed(0, 25, (3, 2), 0)
    np.testing.assert_array_equal(long.arrays['turns'][:10], short.arrays['turns'])
    assert [long.bucket(step) for step in range(10)] == [short.bucket(step) for step in range(10)]


@pytest.mark.parametrize(('examples', 'devices'), [(1, 1), (2, 1), (2, 4)])
def test_class_examples_that_show_the_subject_go_through_every_buckets_images_in_an_order_of_their_own(
    examples, devices
):
    counts = (3, 1, 4)
    feed = Feed(0, 80, counts, 0, taught='all')
    batch = feed.batch(examples, examples, 1.0, devices)
    steps = shown(feed, 80, batch)
    member = {group: np.flatnonzero(batch['is_instance'] == group)[:examples] for group in (0, 1)}
    for epoch in range(10):
        expected = [(bucket, index) for bucket, count in enumerate(counts) for index in range(count)]
        for indices in member.values():
            seen = [(bucket, index) for bucket, shown in steps[8 * epoch : 8 * (epoch + 1)] for index in shown[indices]]
            assert sorted(seen) == sorted(expected * examples)
    assert any((indices[member[0]] != indices[member[1]]).any() for _, indices in steps)


@pytest.mark.parametrize('examples', [1, 4])
def test_class_examples_that_show_the_subject_have_a_turn_each_in_every_bucket(examples):
    feed = Feed(0, 30, (3, 1), 0, taught='all')
    batch = feed.batch(examples, examples, 1.0, 1)
    pick, found = jax.jit(feed.pick), {0: [], 1: []}
    for step in range(30):
        bucket = feed.bucket(step)
        made = pick(KEY, jnp.int32(step), batch, {'prompt_of': jnp.zeros(feed.counts[bucket]), **feed.arrays})
        found[bucket] += made['turn'][batch['is_instance'] == 0].tolist()
    assert all(turns == list(range(len(turns))) for turns in found.values())
    plain = Feed(0, 30, (3,), 2)
    frozen = {'prompt_of': jnp.zeros(5), **plain.arrays}
    assert 'turn' not in plain.pick(KEY, 0, plain.batch(1, 1, 1.0, 1), frozen)


@pytest.mark.parametrize(('examples', 'devices'), [(1, 1), (4, 1), (3, 2)])
def test_every_other_class_example_may_be_taught(examples, devices):
    feed = Feed(0, 60, (3,), 5, taught='half')
    batch = feed.batch(examples, examples, 1.0, devices)
    pick, frozen = jax.jit(feed.pick), {'prompt_of': jnp.zeros(8), **feed.arrays}
    taught, others, turns = [], [], []
    for step in range(60):
        made = jax.tree.map(np.asarray, pick(KEY, jnp.int32(step), batch, frozen))
        order = np.argsort(made['slot'], stable=True)
        for at in order[(batch['is_instance'][order] == 0) & (batch['weight'][order] > 0)]:
            (taught if made['taught'][at] else others).append(int(made['image'][at]))
            turns += [int(made['turn'][at])] if made['taught'][at] else []
        assert not made['taught'][batch['is_instance'] > 0].any()
    assert abs(len(taught) - len(others)) <= 1 and turns == list(range(len(turns)))
    # Each group is seen epoch by epoch: the subject's images, and the class images that lie behind them.
    assert all(sorted(taught[at : at + 3]) == [0, 1, 2] for at in range(0, len(taught) - 2, 3))
    assert all(sorted(others[at : at + 5]) == [3, 4, 5, 6, 7] for at in range(0, len(others) - 4, 5))


def test_without_class_examples_there_is_nothing_to_show_again():
    assert len(Feed(0, 1, (6,), 0, taught='all').batch(2, 0, 1.0, 1)['slot']) == 2
