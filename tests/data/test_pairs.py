"""Rows of a batch: weights, padding, and which image each example sees at which step."""

import jax
import numpy as np
import pytest

from dreambooth_jax.data.pairs import deal_examples, image_index, make_batch, most_class_examples, pad_examples

KEY = jax.random.key(3)
EXAMPLES_NEEDED = 'a batch needs at least one instance example and no negative number of class examples'


def two_means(loss, instance_examples, prior_weight):
    return loss[:instance_examples].mean() + prior_weight * loss[instance_examples:].mean()


@pytest.mark.parametrize(('instance_examples', 'class_examples'), [(1, 1), (4, 4), (3, 5), (7, 2)])
@pytest.mark.parametrize('prior_weight', [0.0, 0.3, 1.0, 2.5])
def test_weighted_mean_is_instance_mean_plus_lambda_class_mean(instance_examples, class_examples, prior_weight):
    batch = make_batch(instance_examples, class_examples, 4, 100, prior_weight)
    loss = np.random.default_rng(0).random(instance_examples + class_examples)
    expected = two_means(loss, instance_examples, prior_weight)
    np.testing.assert_allclose((batch['weight'] * loss).mean(), expected, rtol=1e-6)


@pytest.mark.parametrize('prior_weight', [0.0, 1.0])
def test_without_class_examples_the_loss_is_the_plain_mean(prior_weight):
    batch = make_batch(3, 0, 4, 0, prior_weight)
    np.testing.assert_array_equal(batch['weight'], np.ones(3))
    np.testing.assert_array_equal(batch['is_instance'], np.ones(3))


def test_fields_of_a_batch():
    batch = make_batch(2, 3, 4, 10, 1.0)
    assert {name: examples.tolist() for name, examples in batch.items() if name != 'weight'} == {
        'slot': [0, 1, 2, 3, 4],
        'is_instance': [1, 1, 0, 0, 0],
        'first': [0, 0, 4, 4, 4],
        'size': [4, 4, 10, 10, 10],
        'position': [0, 1, 0, 1, 2],
        'examples': [2, 2, 3, 3, 3],
    }
    assert {str(examples.dtype) for examples in batch.values()} == {'int32', 'float32'}


@pytest.mark.parametrize('multiple', [1, 2, 4, 8, 64])
def test_padding_divides_and_leaves_the_loss_unchanged(multiple):
    batch = make_batch(3, 2, 4, 10, 0.5)
    padded = pad_examples(batch, multiple)
    count = len(padded['slot'])
    assert count % multiple == 0 and count - 5 < multiple
    loss = np.random.default_rng(0).random(5)
    loss_of_examples = loss[padded['slot']]  # a repeated example is the same example
    np.testing.assert_allclose((padded['weight'] * loss_of_examples).mean(), two_means(loss, 3, 0.5), rtol=1e-6)
    loss_of_examples[5:] = 1e6
    np.testing.assert_allclose((padded['weight'] * loss_of_examples).mean(), two_means(loss, 3, 0.5), rtol=1e-6)
    for name, examples in padded.items():
        assert examples.dtype == batch[name].dtype
        if name != 'weight':
            np.testing.assert_array_equal(examples[:5], batch[name])


def test_padding_does_not_change_its_input():
    batch = make_batch(3, 2, 4, 10, 0.5)
    before = {name: examples.copy() for name, examples in batch.items()}
    pad_examples(batch, 8)
    for name, examples in batch.items():
        np.testing.assert_array_equal(examples, before[name])


@pytest.mark.parametrize(
    ('examples', 'devices', 'parts', 'most'),
    [(4, 1, 1, 4), (4, 2, 1, 2), (4, 4, 1, 1), (4, 2, 2, 1), (4, 1, 4, 1), (1, 2, 1, 1), (1, 1, 2, 1), (3, 4, 1, 1)],
)
def test_dealt_examples_give_every_device_its_share_of_class_examples(examples, devices, parts, most):
    batch = pad_examples(make_batch(examples, examples, 4, 10, 0.5), devices * parts)
    dealt = deal_examples(batch, devices)
    assert most_class_examples(dealt, devices, parts) == most
    assert [dict(zip(dealt, example, strict=True)) for example in sorted(zip(*dealt.values(), strict=True))] == [
        dict(zip(batch, example, strict=True)) for example in sorted(zip(*batch.values(), strict=True))
    ]


def test_undealt_examples_may_leave_all_class_examples_to_one_device():
    batch = make_batch(4, 4, 4, 10, 0.5)
    assert most_class_examples(batch, 2) == 4 and most_class_examples(deal_examples(batch, 2), 2) == 2


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ((0, 2, 4, 4, 1.0), f'{EXAMPLES_NEEDED}, got 0 and 2'),
        ((2, -1, 4, 4, 1.0), f'{EXAMPLES_NEEDED}, got 2 and -1'),
        ((2, 2, 0, 4, 1.0), 'the batch has 2 instance examples but there are 0 instance images'),
        ((2, 3, 4, 0, 1.0), 'the batch has 3 class examples but there are 0 class images'),
        ((2, 2, 4, 4, -1.0), 'prior_weight must be >= 0, got -1.0'),
        ((2, 2, 4, 4, float('nan')), 'prior_weight must be >= 0, got nan'),
    ],
)
def test_impossible_batches_are_refused(arguments, sentence):
    with pytest.raises(ValueError) as error:
        make_batch(*arguments)
    assert str(error.value) == sentence


def images_of_steps(batch, steps, max_size=16, key=KEY, shuffle=True):
    pick = jax.jit(lambda step: image_index(key, step, batch, max_size, shuffle=shuffle))
    return np.stack([pick(step) for step in range(steps)])


@pytest.mark.parametrize(('instance_examples', 'class_examples'), [(1, 1), (4, 3), (2, 7), (6, 16)])
def test_every_image_is_seen_once_an_epoch(instance_examples, class_examples):
    batch = make_batch(instance_examples, class_examples, 4, 9, 1.0)
    seen = images_of_steps(batch, 36)
    for examples, first, size in ((slice(0, instance_examples), 0, 4), (slice(instance_examples, None), 4, 9)):
        stream = seen[:, examples].reshape(-1)
        epochs = stream[: len(stream) // size * size].reshape(-1, size)
        assert len(epochs) >= 4
        for epoch in epochs:
            assert sorted(epoch) == list(range(first, first + size))


def test_epochs_groups_and_keys_have_different_orders():
    batch = make_batch(1, 1, 16, 16, 1.0)
    seen = images_of_steps(batch, 64)
    other = images_of_steps(batch, 64, key=jax.random.key(4))
    orders = [tuple(epoch) for stream in (seen[:, 0], seen[:, 1] - 16, other[:, 0]) for epoch in stream.reshape(4, 16)]
    assert len(set(orders)) == 12


def test_every_order_is_about_equally_likely():
    batch = make_batch(3, 0, 3, 0, 1.0)
    steps = 1200
    picks = jax.jit(jax.vmap(lambda step: image_index(KEY, step, batch, 3)))(np.arange(steps))
    _, counts = np.unique(np.asarray(picks), axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 150 and counts.max() < 250


def test_in_order_without_shuffling():
    seen = images_of_steps(make_batch(3, 1, 4, 2, 1.0), 4, shuffle=False)
    assert seen.tolist() == [[0, 1, 2, 4], [3, 0, 1, 5], [2, 3, 0, 4], [1, 2, 3, 5]]


def test_an_example_does_not_depend_on_the_examples_beside_it():
    batch = make_batch(3, 5, 4, 9, 1.0)
    whole = images_of_steps(batch, 10)
    for half in (slice(0, 4), slice(4, 8)):
        part = {name: examples[half] for name, examples in batch.items()}
        np.testing.assert_array_equal(images_of_steps(part, 10), whole[:, half])
    padded = pad_examples(batch, 5)
    np.testing.assert_array_equal(images_of_steps(padded, 10)[:, :8], whole)


def test_a_step_does_not_depend_on_the_steps_before():
    batch = make_batch(3, 5, 4, 9, 1.0)
    np.testing.assert_array_equal(image_index(KEY, 7, batch, 16), images_of_steps(batch, 8)[7])


def test_the_order_does_not_depend_on_the_room_left_for_larger_groups():
    batch = make_batch(3, 5, 4, 9, 1.0)
    np.testing.assert_array_equal(images_of_steps(batch, 10, max_size=9), images_of_steps(batch, 10, max_size=1000))


def test_large_steps_stay_in_range():
    batch = make_batch(8, 8, 4, 1000, 1.0)
    picked = np.asarray(image_index(KEY, 10_000_000, batch, 1000))
    assert (picked[:8] < 4).all() and (picked[8:] >= 4).all() and (picked >= 0).all() and (picked < 1004).all()
