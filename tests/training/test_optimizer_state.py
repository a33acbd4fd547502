"""AdamW on compressed moments: the codes, the rounding, and that training follows float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.training import optimizer, optimizer_state
from tests.support import toy

COMPRESSED = optimizer_state.KINDS[1:]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def stored(x, kind, signed, rounds=1):
    """f32[rounds, ...]: `x` f32[...] as a moment comes back, rounded with the random bits of that many steps."""
    tx = optimizer_state.scale_by_adam(0.0, 0.0, 1e-8, kind)  # the moments are the gradient and its square

    def once(count):
        _, state = tx.update(x if signed else jnp.sqrt(x), tx.init(x)._replace(count=count))
        kept = state.mu if signed else state.nu
        return (
            optimizer_state.decompressed(kept) if isinstance(kept, optimizer_state.Codes) else kept.astype(jnp.float32)
        )

    return jax.lax.map(once, jnp.arange(rounds))


def code(signed):
    """The numbers of int8's codes for a scale of 1, ascending."""
    codes = jnp.arange(-127, 128, dtype=jnp.int8) if signed else jnp.arange(256, dtype=jnp.uint8)
    return np.asarray(optimizer_state.decompressed(optimizer_state.Codes(codes, jnp.float32(1))))


def test_codes_are_small_floats():
    signed, unsigned = code(True), code(False)
    for numbers in signed, unsigned:
        assert np.all(np.diff(numbers) > 0)
    assert signed[127] == 0 and np.array_equal(signed, -signed[::-1])
    assert unsigned[0] == 2.0**-16
    assert np.max(np.diff(unsigned) / unsigned[:-1]) == 1 / 16
    assert np.max(np.diff(signed[127:]) / (signed[127:-1] + 2.0**-8)) == 1 / 16


@pytest.mark.parametrize('kind', COMPRESSED)
@pytest.mark.parametrize('signed', [True, False])
def test_stored_numbers_are_neighbours_of_the_true_ones_and_right_on_average(kind, signed):
    rng = np.random.default_rng(0)
    lowest = -6 if signed else -4  # the least of unsigned codes is 1.6e-5
    x = (10.0 ** rng.uniform(lowest, 0, (10, 500)) * 10.0 ** np.arange(-5, 5)[:, None]).astype(np.float32)
    x = x * rng.choice([-1.0, 1.0], x.shape).astype(np.float32) if signed else x
    rounds = np.asarray(stored(jnp.asarray(x), kind, signed, 32))
    if kind == 'int8':
        scale = np.abs(x).max(axis=1, keepdims=True) / code(signed).max()
        index = np.clip(np.searchsorted(code(signed), x / scale, side='right'), 1, len(code(signed)) - 1)
        gap = (code(signed)[index] - code(signed)[index - 1]) * scale
    else:
        gap = np.spacing(np.abs(x)) * 2**16
    assert np.all(np.abs(rounds - x) <= 1.001 * gap + 1e-7 * np.abs(x))
    assert np.any(rounds[0] != rounds[1])  # other bits at another step
    # Between its neighbours the mean of 32 random numbers is within some 0.5 / sqrt(32) of the gap; of 5000 such,
    # within little.
    error = (rounds.mean(0) - x) / gap
    assert np.abs(error).max() < 0.5 and abs(error.mean()) < 0.01


def test_small_second_moments_do_not_become_zero():
    x = jnp.asarray(np.geomspace(1e-14, 1.0, 4096).astype(np.float32))
    assert stored(x, 'int8', False).min() > 0
    assert not stored(jnp.zeros(4096), 'int8', False).any()


def test_first_and_second_moment_are_rounded_by_different_bits():
    x = jnp.full(4096, 1.03)  # it and its square lie between two bfloat16 numbers
    tx = optimizer_state.scale_by_adam(0.0, 0.0, 1e-8, 'bfloat16')
    _, state = jax.jit(tx.update)(x, tx.init(x))
    up = [np.asarray(kept.astype(jnp.float32) > exact) for kept, exact in ((state.mu, x), (state.nu, x * x))]
    assert 0.02 < up[0].mean() < 0.98 and 0.02 < up[1].mean() < 0.98
    assert abs(np.corrcoef(*up)[0, 1]) < 0.1


def test_compressed_arrays_keep_their_shape_and_small_ones_stay_float32():
    shapes = {'kernel': (3, 3, 11, 43), 'bias': (4095,), 'scale': (), 'table': (4096,)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state = optimizer_state.scale_by_adam(0.9, 0.999, 1e-8, 'int8').init(params)
    assert state.mu['kernel'].codes.shape == (3, 3, 11, 43) and state.mu['kernel'].scales.shape == (3, 3, 11)
    assert state.mu['kernel'].codes.dtype == jnp.int8 and state.nu['kernel'].codes.dtype == jnp.uint8
    assert state.nu['table'].scales.shape == ()
    for small in ('bias', 'scale'):
        assert state.mu[small].dtype == state.nu[small].dtype == jnp.float32
    half = optimizer_state.scale_by_adam(0.9, 0.999, 1e-8, 'bfloat16').init(params)
    assert {x.dtype for x in jax.tree.leaves((half.mu, half.nu))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('kind', COMPRESSED)
def test_first_step_equals_that_of_float32(kind):
    rng = np.random.default_rng(0)
    shapes = {'kernel': (70, 60), 'bias': (60,), 'scale': ()}

    def normal():
        return {'unet': {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}}

    params, gradients = normal(), normal()
    steps = []
    for moments_kind in ('float32', kind):
        tx = optimizer.make_optimizer(0.02, OptimizerConfig(state_dtype=moments_kind, weight_decay=0.1))
        steps.append(jax.jit(tx.update)(gradients, tx.init(params), params)[0])
    toy.assert_same(steps[1], steps[0], rtol=1e-5, atol=1e-8)


STEPS, WIDTH = 1000, 64


@functools.cache
def trained(kind):
    """(weights, their start, loss at the end) of a regression whose gradients span decades and shrink as it learns."""
    rng = np.random.default_rng(0)
    shapes = {'in': (WIDTH, 96), 'out': (96, WIDTH)}

    def normal():
        return {name: np.float32(0.1 * rng.normal(size=shape)) for name, shape in shapes.items()}

    true, start = normal(), normal()
    start['bias'] = np.zeros(WIDTH, np.float32)
    sizes = np.float32(10.0 ** np.linspace(-2, 0, WIDTH))
    if kind == 'rounded bfloat16':
        tx = optax.chain(rounded(optax.scale_by_adam()), optax.add_decayed_weights(0.01), optax.scale(-3e-3))
    else:
        tx = optimizer.make_optimizer(3e-3, OptimizerConfig(state_dtype=kind, grad_clip_norm=None))

    def loss(params, key):
        x = jax.random.normal(key, (32, WIDTH)) * sizes
        error = jnp.tanh(x @ params['in']) @ params['out'] + params['bias'] - jnp.tanh(x @ true['in']) @ true['out']
        return jnp.mean(jnp.square(error))

    def step(carry, at):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, jax.random.fold_in(jax.random.key(0), at))
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS)))
    (params, _), losses = run((start, tx.init(start)))
    return jax.tree.map(np.asarray, params), start, float(losses[-50:].mean())


def rounded(tx):
    """Adam whose moments are rounded to the nearest bfloat16 between steps."""

    def cast(state, dtype):
        return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))

    def update(updates, state, params=None):
        updates, state = tx.update(updates, cast(state, jnp.float32))
        return updates, cast(state, jnp.bfloat16)

    return optax.GradientTransformation(lambda params: cast(tx.init(params), jnp.bfloat16), update)


def distance(kind):
    """How far each array ends from where float32 takes it, as a share of the way from the start."""
    (ours, start, _), (theirs, _, _) = trained(kind), trained('float32')
    norm = np.linalg.norm
    return {name: norm(ours[name] - theirs[name]) / norm(theirs[name] - start[name]) for name in ours}


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'limit'), [('bfloat16', 0.02), ('int8', 0.06)])
def test_training_follows_float32(kind, limit):
    away = distance(kind)
    assert max(away['in'], away['out']) < limit and away['bias'] < 0.15
    assert trained(kind)[2] == pytest.approx(trained('float32')[2], rel=0.01)


@pytest.mark.slow
def test_rounding_to_the_nearest_would_not_follow():
    assert distance('rounded bfloat16')['bias'] > 0.4
    assert distance('rounded bfloat16')['out'] > 4 * distance('bfloat16')['out']


def test_second_moment_forgets_a_large_gradient_which_rounding_to_the_nearest_would_keep():
    first, steps = jnp.full(4096, 1.0), 2000

    def last(tx):
        def step(state, at):
            return tx.update(jnp.where(at == 0, first, 0.0), state)[1], None

        return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[0])(tx.init(first))

    expected = 0.001 * 0.999 ** (steps - 1)
    kept = last(optimizer_state.scale_by_adam(0.9, 0.999, 1e-8, 'bfloat16')).nu.astype(jnp.float32)
    assert float(kept.mean()) == pytest.approx(expected, rel=0.02)
    kept = optimizer_state.decompressed(last(optimizer_state.scale_by_adam(0.9, 0.999, 1e-8, 'int8')).nu)
    assert float(kept.mean()) == pytest.approx(expected, rel=0.02)
    assert float(last(rounded(optax.scale_by_adam())).nu.astype(jnp.float32).mean()) > 0.0009


def test_unknown_moments_are_refused():
    with pytest.raises(ValueError, match=r"state_dtype is 'int4' but must be one of \('bfloat16', 'int8'\)"):
        optimizer_state.scale_by_adam(0.9, 0.999, 1e-8, 'int4')
