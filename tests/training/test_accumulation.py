"""Micro-batches: the same step as without, on any placement, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreambooth_jax.data import pairs
from dreambooth_jax.training import step
from dreambooth_jax.training.order import mean_of_micro_batches
from dreambooth_jax.training.state import init_state
from tests.support import toy

UNROLLED, SCANNED = {'gradient_accumulation_steps': 2, 'unroll': True}, {'gradient_accumulation_steps': 3}


@pytest.mark.parametrize(
    ('placement', 'options'), [('one', UNROLLED), ('pmap', UNROLLED), ('pmap', SCANNED), ('fsdp', SCANNED)], ids=str
)
def test_step_in_micro_batches_equals_the_step_in_one(placement, options):
    examples = toy.batch(instance_examples=3, class_examples=3, prior_weight=0.7)
    whole, parts = toy.Run('one', 'sgd', examples), toy.Run(placement, 'sgd', examples, **options)
    assert np.prod(parts.batch['slot'].shape) % (parts.placement.devices * options['gradient_accumulation_steps']) == 0
    ours, theirs = parts.steps(3), whole.steps(3)
    assert ours.keys() == theirs.keys() and 'prior_variance' in ours
    toy.assert_same(ours, theirs, rtol=1e-5)
    toy.assert_same(parts.state.params, whole.state.params, atol=1e-6)
    toy.assert_same(parts.state.ema, whole.state.ema, atol=1e-6)


@pytest.mark.parametrize('prior_weight', [0.7, 3.0])
def test_loss_of_unequal_groups_is_still_the_two_means(prior_weight):
    examples = toy.batch(instance_examples=5, class_examples=2, prior_weight=prior_weight)  # 7 examples, padded to 8
    run = toy.Run(examples=examples, gradient_accumulation_steps=2, unroll=True)
    losses = np.asarray(toy.example_losses(toy.params(), toy.frozen(), examples, run.key, 0), np.float64)
    numbers = run.steps(1)
    assert numbers['loss'][0] == pytest.approx(losses[:5].mean() + prior_weight * losses[5:].mean(), rel=1e-6)
    assert numbers['instance_loss'][0] == pytest.approx(losses[:5].mean(), rel=1e-6)
    assert numbers['prior_loss'][0] == pytest.approx(losses[5:].mean(), rel=1e-6)


def test_several_steps_in_one_dispatch_accumulate_too():
    whole, parts = toy.Run(kind='sgd'), toy.Run(kind='sgd', gradient_accumulation_steps=2)
    toy.assert_same(parts.steps(4, count=4), whole.steps(4), rtol=1e-5)
    toy.assert_same(parts.state.params, whole.state.params, atol=1e-6)


def test_each_micro_batch_has_its_share_of_both_groups_and_of_every_device():
    examples = {'is_instance': jnp.array([1.0] * 4 + [0.0] * 4), 'device': jnp.repeat(jnp.arange(4), 2)}
    seen = []

    def function(part):
        seen.append(part)
        return jnp.mean(part['is_instance'])

    assert float(mean_of_micro_batches(function, examples, 2, unroll=True)) == 0.5
    for part in seen[1:]:  # the first call asks for shapes
        assert part['is_instance'].tolist() == [1, 1, 0, 0] and part['device'].tolist() == [0, 1, 2, 3]


def test_examples_that_do_not_divide_are_refused():
    made = step.make_train_step(toy.loss, optax.sgd(0.1), pick=toy.pick, gradient_accumulation_steps=4)
    state = init_state(toy.params(), optax.sgd(0.1), ema=False)
    with pytest.raises(ValueError, match='6 examples cannot be cut into 4 equal micro-batches; pad the batch'):
        made(state, toy.frozen(), jax.random.key(0), toy.batch())


@functools.cache
def temporary_bytes(placement, gradient_accumulation_steps, unroll):
    """Of the compiled step of a network whose activations outweigh its weights by far."""
    where, width = toy.placed(placement), 32

    def loss(params, frozen, batch, keys):
        x = jax.vmap(lambda key: jax.random.normal(key, (16, 16, width)))(keys)
        for kernel in params['unet'].values():
            x = jnp.tanh(x @ kernel)
        return jnp.mean(jnp.square(x), axis=(1, 2, 3)), {}

    params = {'unet': {str(layer): np.eye(width, dtype=np.float32) for layer in range(3)}}
    tx = optax.sgd(0.1)
    state = init_state(params, tx, ema=False)
    made = functools.partial(
        step.make_train_step, loss, tx, gradient_accumulation_steps=gradient_accumulation_steps, unroll=unroll
    )
    batch = pairs.make_batch(8, 8, 4, 4, 1.0)
    lowered = where.lower(lambda axis: made(axis_name=axis), state, {}, jax.random.key(0), batch)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(('placement', 'unroll'), [('one', False), ('one', True), ('pmap', False), ('fsdp', False)])
def test_memory_falls_with_the_number_of_micro_batches(placement, unroll):
    whole, quarter = temporary_bytes(placement, 1, False), temporary_bytes(placement, 4, unroll)
    assert quarter < 0.35 * whole
