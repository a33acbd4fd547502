"""Every kind of optimizer: Optax's own step, what it costs in memory, resume and placements."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from dreambooth_jax.config import ConfigError, OptimizerConfig
from dreambooth_jax.training import optimizer
from dreambooth_jax.training.checkpoint import Checkpoints
from tests.support import toy

LEARNING_RATE, DECAY = 0.02, 0.1
KINDS = ('adamw', 'adafactor', 'lion', 'prodigy')
DIRECT = {
    'adafactor': optax.adafactor(
        LEARNING_RATE, multiply_by_parameter_scale=False, weight_decay_rate=LEARNING_RATE * DECAY
    ),
    'lion': optax.lion(LEARNING_RATE, 0.9, 0.99, weight_decay=DECAY),
    'prodigy': optax.contrib.prodigy(LEARNING_RATE, (0.9, 0.999), eps=1e-8, weight_decay=DECAY),
}


def normal(shapes, seed):
    rng = np.random.default_rng(seed)
    return {'unet': {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}}


@pytest.mark.parametrize('kind', DIRECT)
def test_step_equals_that_of_optax(kind):
    shapes = {'kernel': (3, 3, 128, 130), 'bias': (130,)}  # large enough to be factored
    settings = OptimizerConfig(kind=kind, weight_decay=DECAY, grad_clip_norm=1.0)
    ours = optimizer.make_optimizer(LEARNING_RATE, settings)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), DIRECT[kind])
    ends = []
    for tx in (ours, theirs):
        params = normal(shapes, 0)
        state = tx.init(params)
        for seed in (1, 2):
            updates, state = jax.jit(tx.update)(normal(shapes, seed), state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    toy.assert_same(ends[0], ends[1], atol=1e-6)
    assert np.abs(ends[0]['unet']['bias'] - normal(shapes, 0)['unet']['bias']).max() > 1e-9


def test_clipping_equals_optax_and_leaves_a_small_gradient_alone_bit_for_bit():
    gradients = normal({'a': (5, 3), 'b': ()}, 0)
    for limit in (0.5, 100.0):
        ours, _ = optimizer.clip_by_global_norm(limit).update(gradients, optax.EmptyState())
        theirs, _ = optax.clip_by_global_norm(limit).update(gradients, optax.EmptyState())
        toy.assert_same(ours, theirs, rtol=0 if limit > 1 else 1e-6)


@pytest.mark.parametrize(
    ('settings', 'bytes_per_weight'),
    [
        ({'state_dtype': 'float32'}, 8),
        ({'state_dtype': 'bfloat16'}, 4),
        ({'state_dtype': 'int8'}, 2 + 2 * 4 / 640),
        ({'kind': 'lion'}, 4),
        ({'kind': 'prodigy'}, 16),
        ({'kind': 'adafactor'}, 4 / 320 + 4 / 640),
    ],
)
def test_memory_of_the_state(settings, bytes_per_weight):
    params = {'unet': {'kernel': jax.ShapeDtypeStruct((3, 3, 320, 640), jnp.float32)}}
    _, tx = optimizer.from_settings(OptimizerConfig(**settings), 1.0, 10)
    state = jax.eval_shape(tx.init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    beside = size - bytes_per_weight * 9 * 320 * 640
    assert 0 <= beside < 32  # counts and other single numbers


def test_factors_scale_every_kind():
    shapes = {'kernel': (4, 3), 'bias': (3,)}
    for kind in KINDS:
        params, gradients = normal(shapes, 0), normal(shapes, 1)
        settings = OptimizerConfig(kind=kind)
        tx = optimizer.make_optimizer(LEARNING_RATE, settings, multipliers={'unet': {'bias': 0.0}})
        updates = jax.jit(lambda g, p, tx=tx: tx.update(g, tx.init(p), p)[0])(gradients, params)
        assert not np.any(updates['unet']['bias']) and np.all(updates['unet']['kernel'])


def test_prodigy_finds_a_rate():
    _, tx = optimizer.from_settings(OptimizerConfig(kind='prodigy', weight_decay=0.0), 1.0, 400)
    params = {'unet': {'x': jnp.full(50, 3.0)}}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda x: x - 1.0, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=400))((params, tx.init(params)))
    np.testing.assert_allclose(params['unet']['x'], 1.0, atol=0.05)


@pytest.mark.parametrize('kind', KINDS)
def test_state_shares_no_array_with_the_weights_which_a_step_donates(kind):
    params = jax.tree.map(jnp.asarray, normal({'a': (5, 3)}, 0))
    state = optimizer.make_optimizer(LEARNING_RATE, OptimizerConfig(kind=kind)).init(params)
    assert all(leaf is not params['unet']['a'] for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_named_does_not_decay_and_takes_the_same_step_otherwise(kind):
    params, gradient = normal({'rows': (2, 3), 'kernel': (3, 4)}, 0), normal({'rows': (2, 3), 'kernel': (3, 4)}, 1)
    updates = {}
    for decay, undecayed in ((DECAY, ['rows']), (DECAY, []), (0.0, [])):
        settings = OptimizerConfig(kind=kind, weight_decay=decay, grad_clip_norm=None)
        tx = optimizer.make_optimizer(LEARNING_RATE, settings, undecayed=undecayed)
        updates[decay, bool(undecayed)] = tx.update(gradient, tx.init(params), params)[0]['unet']
    held, decayed, plain = (updates[key] for key in ((DECAY, True), (DECAY, False), (0.0, False)))
    assert not np.allclose(decayed['rows'], plain['rows'], atol=0)
    np.testing.assert_allclose(held['rows'], plain['rows'], rtol=1e-5)
    np.testing.assert_allclose(held['kernel'], decayed['kernel'], rtol=1e-5)


def test_unknown_kinds_and_moments_without_adamw_are_refused():
    with pytest.raises(ConfigError, match="kind must be one of 'adamw', 'adafactor', 'lion', 'prodigy', got 'sgd'"):
        OptimizerConfig(kind='sgd')
    with pytest.raises(ValueError, match="state_dtype is 'int8' but kind 'lion' keeps its state in float32"):
        optimizer.make_optimizer(LEARNING_RATE, OptimizerConfig(kind='lion', state_dtype='int8'))


@pytest.mark.parametrize('kind', toy.OTHERS)
def test_three_and_three_steps_equal_six_bit_for_bit(kind, tmp_path):
    whole, first, second = (toy.Run(kind=kind) for _ in range(3))
    start = toy.arrays(whole.state.params)
    numbers = whole.steps(6)
    first.steps(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, first.placement.to_global(first.state), wait=True)
    second.state = checkpoints.restore(second.state)
    checkpoints.close()
    toy.assert_same(toy.arrays(second.state), toy.arrays(first.state))
    later = second.steps(3)
    toy.assert_same(toy.arrays(second.state), toy.arrays(whole.state))
    toy.assert_same(later, {name: value[3:] for name, value in numbers.items()})
    for name, value in start['unet'].items():  # it was training
        assert np.any(np.asarray(whole.state.params['unet'][name]) != value)


def test_compressed_moments_are_what_is_saved():
    kept = toy.Run(kind='int8').state.opt_state[1][0]
    assert kept.mu['unet']['conv_out.kernel'].codes.dtype == jnp.int8
    assert kept.nu['unet']['conv_in.kernel'].dtype == jnp.float32
    assert toy.Run(kind='bfloat16').state.opt_state[1][0].nu['unet']['conv_in.kernel'].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize('placement', ['pmap', 'fsdp'])
def test_int8_moments_on_four_devices_take_the_steps_of_one(placement):
    one, many = toy.Run('one', 'int8'), toy.Run(placement, 'int8')
    codes = many.state.opt_state[1][0].nu['unet']['conv_out.kernel'].codes
    assert codes.sharding.is_fully_replicated == (placement == 'pmap')
    ours, theirs = many.steps(4), one.steps(4)
    np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-4)
    # A number that rounding leaves between two codes may fall to either side: 1e-4 is a hundredth of a step.
    toy.assert_same(many.state.params, one.state.params, atol=1e-4)
