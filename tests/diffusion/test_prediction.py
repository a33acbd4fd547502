"""Every prediction type turns into every other and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import prediction

TYPES = ('epsilon', 'v_prediction', 'sample')
ALPHA = jnp.array([0.95, 0.6, 0.2])
SIGMA = jnp.sqrt(1 - ALPHA**2)


@pytest.fixture(scope='module')
def example():
    x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    x_t = ALPHA.reshape(3, 1, 1, 1) * x0 + SIGMA.reshape(3, 1, 1, 1) * noise
    return x0, noise, x_t


@pytest.mark.parametrize(('source', 'target'), itertools.product(TYPES, TYPES))
def test_conversion_of_a_target_is_the_other_target(example, source, target):
    x0, noise, x_t = example
    known = dict(x_t=x_t, alpha=ALPHA, sigma=SIGMA)
    value = prediction.target_for(source, x0, noise, ALPHA, SIGMA)
    converted = prediction.convert(value, source=source, target=target, **known)
    np.testing.assert_allclose(converted, prediction.target_for(target, x0, noise, ALPHA, SIGMA), atol=2e-5)
    back = prediction.convert(converted, source=target, target=source, **known)
    np.testing.assert_allclose(back, value, atol=2e-5)


@pytest.mark.parametrize(('source', 'target'), [pair for pair in itertools.permutations(TYPES, 2)])
def test_wrong_predictions_round_trip_too(example, source, target):
    *_, x_t = example
    value = jax.random.normal(jax.random.key(1), x_t.shape)
    known = dict(x_t=x_t, alpha=ALPHA, sigma=SIGMA)
    converted = prediction.convert(value, source=source, target=target, **known)
    np.testing.assert_allclose(prediction.convert(converted, source=target, target=source, **known), value, atol=5e-5)


def test_v_prediction_converts_at_both_ends(example):
    x0, noise, _ = example
    for alpha, sigma in ((0.0, 1.0), (1.0, 0.0)):
        x_t = alpha * x0 + sigma * noise
        v = prediction.target_for('v_prediction', x0, noise, alpha, sigma)
        known = dict(source='v_prediction', x_t=x_t, alpha=alpha, sigma=sigma)
        np.testing.assert_array_equal(prediction.convert(v, target='sample', **known), x0)
        np.testing.assert_array_equal(prediction.convert(v, target='epsilon', **known), noise)


def test_half_precision_is_converted_in_float32(example):
    *_, x_t = example
    value = x_t.astype(jnp.bfloat16)
    known = dict(x_t=value, alpha=ALPHA, sigma=SIGMA)
    assert prediction.convert(value, source='epsilon', target='sample', **known).dtype == jnp.float32


@pytest.mark.parametrize('source_target', [('flow', 'epsilon'), ('epsilon', 'flow'), ('flow', 'flow')])
def test_unknown_type_is_named(example, source_target):
    source, target = source_target
    with pytest.raises(ValueError, match="prediction_type is 'flow'; allowed: epsilon, sample, v_prediction"):
        prediction.convert(example[0], source=source, target=target, x_t=example[2], alpha=ALPHA, sigma=SIGMA)
    with pytest.raises(ValueError, match="'flow'"):
        prediction.target_for('flow', *example[:2], ALPHA, SIGMA)
