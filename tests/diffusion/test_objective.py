"""Losses per example: weights by time and prediction type, masks, and the variational bound of learned variances."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import objective, schedules

SCHEDULE = schedules.make_schedule('squaredcos_cap_v2', variance_type='learned_range')
TIMES = jnp.array([0, 1, 37, 500, 990])


@pytest.fixture(scope='module')
def examples():
    """x0, noise, a prediction and variance channels for one example per time."""
    random = np.random.default_rng(2)
    shape = (len(TIMES), 4, 4, 3)
    x0 = np.clip(random.normal(size=shape), -1, 1).astype(np.float32)  # Some values at both ends.
    eps = random.normal(size=shape).astype(np.float32)
    prediction = eps + 0.2 * random.normal(size=shape).astype(np.float32)
    variance = random.uniform(-1.2, 1.2, size=shape).astype(np.float32)
    return tuple(map(jnp.asarray, (x0, eps, prediction, variance)))


def test_plain_loss_is_the_mean_square_of_each_example(examples):
    _, eps, prediction, _ = examples
    loss = objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon')
    np.testing.assert_allclose(loss, np.square(prediction - eps).mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction', 'sample'])
def test_min_snr_weights_each_example_by_its_own_time(examples, prediction_type):
    _, eps, prediction, _ = examples
    snr = np.asarray(SCHEDULE.snr(TIMES))
    assert snr.min() < 5 < snr.max()
    plain = objective.denoising_loss(prediction, eps, snr, prediction_type=prediction_type)
    weighted = objective.denoising_loss(prediction, eps, snr, prediction_type=prediction_type, min_snr_gamma=5.0)
    capped = np.minimum(snr, 5.0)
    weight = {'epsilon': capped / snr, 'v_prediction': capped / (snr + 1), 'sample': capped}[prediction_type]
    np.testing.assert_allclose(weighted, plain * weight, rtol=1e-5)


@pytest.mark.parametrize(
    ('prediction_type', 'ends'),
    [
        ('epsilon', (1.0, 0.0)),
        ('v_prediction', (0.0, 0.0)),
        ('sample', (0.0, 5.0)),
    ],
)
def test_min_snr_is_finite_without_signal_and_without_noise(prediction_type, ends):
    snr = jnp.array([0.0, jnp.inf])
    loss = objective.denoising_loss(
        jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)), snr, prediction_type=prediction_type, min_snr_gamma=5.0
    )
    np.testing.assert_array_equal(loss, ends)


def test_mask_gives_the_mean_over_what_it_keeps(examples):
    _, eps, prediction, _ = examples
    mask = np.zeros((5, 4, 4, 1), np.float32)
    mask[:4, :2] = 1.0
    loss = objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon', mask=jnp.asarray(mask))
    np.testing.assert_allclose(loss[:4], np.square(prediction - eps)[:4, :2].mean((1, 2, 3)), rtol=1e-6)
    assert loss[4] == 0  # An empty mask leaves nothing to learn, not NaN.
    full = jnp.ones((5, 4, 4, 1))
    ones = objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon', mask=full)
    plain = objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon')
    np.testing.assert_allclose(ones, plain, rtol=1e-6)


def test_loss_is_float32_for_half_precision_predictions(examples):
    _, eps, prediction, _ = examples
    loss = objective.denoising_loss(prediction.astype(jnp.bfloat16), eps, jnp.ones(5), prediction_type='epsilon')
    assert loss.dtype == jnp.float32


def test_bad_arguments_are_named(examples):
    _, eps, prediction, _ = examples
    with pytest.raises(ValueError, match=r'\(5, 4, 4, 3\) but target \(4, 4, 4, 3\)'):
        objective.denoising_loss(prediction, eps[:4], jnp.ones(5), prediction_type='epsilon')
    with pytest.raises(ValueError, match='min_snr_gamma is 0'):
        objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon', min_snr_gamma=0)
    with pytest.raises(ValueError, match="'flow'; allowed: epsilon"):
        objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='flow')
    with pytest.raises(ValueError, match=r'snr has shape \(10,\)'):
        objective.denoising_loss(prediction, eps, jnp.ones(10), prediction_type='epsilon', min_snr_gamma=5.0)
    with pytest.raises(ValueError, match=r'mask has shape \(5, 3, 3, 1\)'):
        objective.denoising_loss(prediction, eps, jnp.ones(5), prediction_type='epsilon', mask=jnp.ones((5, 3, 3, 1)))
    fixed = schedules.make_schedule('linear')
    with pytest.raises(ValueError, match="variance_type is 'fixed_small'"):
        objective.variance_loss(eps, eps, eps, eps, TIMES, fixed)
    with pytest.raises(ValueError, match='x0 has shape'):
        objective.variance_loss(eps, eps, eps[:2], eps, TIMES, SCHEDULE)


def bound_in_numpy(variance, prediction, x0, x_t, t, prediction_type, betas):
    """The bound of one example in double, from the textbook formulas."""
    cumulative = np.cumprod(1 - betas)
    now, before = cumulative[t], cumulative[t - 1] if t else 1.0
    alpha, sigma = math.sqrt(now), math.sqrt(1 - now)
    if prediction_type == 'epsilon':
        predicted_x0 = (x_t - sigma * prediction) / alpha
    elif prediction_type == 'v_prediction':
        predicted_x0 = alpha * x_t - sigma * prediction
    else:
        predicted_x0 = prediction

    def mean(start):
        return (math.sqrt(before) * betas[t] * start + math.sqrt(1 - betas[t]) * (1 - before) * x_t) / (1 - now)

    at = max(t, 1)
    small = betas[at] * (1 - cumulative[at - 1]) / (1 - cumulative[at])
    share = (variance + 1) / 2
    deviation = np.exp(0.5 * (share * np.log(betas[t]) + (1 - share) * np.log(small)))
    if t > 0:
        true_deviation = math.sqrt(small)
        nats = np.log(deviation / true_deviation) - 0.5
        nats += (true_deviation**2 + (mean(x0) - mean(predicted_x0)) ** 2) / (2 * deviation**2)
    else:

        def cdf(z):
            return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        upper = np.where(x0 > 0.999, 1.0, cdf((x0 + 1 / 255 - mean(predicted_x0)) / deviation))
        lower = np.where(x0 < -0.999, 0.0, cdf((x0 - 1 / 255 - mean(predicted_x0)) / deviation))
        nats = -np.log(np.maximum(upper - lower, 1e-12))
    return nats.mean() / math.log(2) * len(betas) / 1000


@pytest.mark.parametrize('num_train_timesteps', [1000, 250])
@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction', 'sample'])
def test_variance_loss_equals_the_textbook_in_numpy(examples, prediction_type, num_train_timesteps):
    x0, eps, prediction, variance = examples
    schedule = schedules.make_schedule(
        'squaredcos_cap_v2',
        num_train_timesteps=num_train_timesteps,
        variance_type='learned_range',
        prediction_type=prediction_type,
    )
    times = TIMES * num_train_timesteps // 1000
    x_t = schedule.add_noise(x0, eps, times)
    if prediction_type == 'sample':
        prediction = x0 + 0.1 * eps
    ours = objective.variance_loss(variance, prediction, x0, x_t, times, schedule)
    rows64 = [np.asarray(a, np.float64) for a in (variance, prediction, x0, x_t)]
    betas = schedule.betas.astype(np.float64)
    theirs = [bound_in_numpy(*(a[i] for a in rows64), int(times[i]), prediction_type, betas) for i in range(5)]
    # x0 from epsilon cancels at small t: the float32 image x_t has only so many digits.
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-7)


def test_bound_is_zero_for_the_true_posterior():
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))
    t = jnp.array([3, 300, 900])
    x_t = SCHEDULE.add_noise(x0, eps, t)
    loss = objective.variance_loss(-jnp.ones_like(eps), eps, x0, x_t, t, SCHEDULE)
    np.testing.assert_allclose(loss, 0.0, atol=1e-4)


@pytest.mark.slow
def test_only_the_variance_learns_from_the_bound(examples):
    x0, eps, prediction, variance = examples
    x_t = SCHEDULE.add_noise(x0, eps, TIMES)

    def total(variance, prediction):
        return objective.variance_loss(variance, prediction, x0, x_t, TIMES, SCHEDULE).sum()

    of_variance, of_prediction = jax.grad(total, (0, 1))(variance, prediction)
    assert np.all(np.isfinite(of_variance)) and np.all(np.abs(of_variance).sum((1, 2, 3)) > 0)
    assert not np.any(of_prediction)


def test_every_time_has_a_finite_bound_and_gradient():
    t = jnp.arange(1000)
    x0, eps = jax.random.normal(jax.random.key(1), (2, 1000, 1, 2, 1)).clip(-1, 1)
    x_t = SCHEDULE.add_noise(x0, eps, t)

    def total(variance):
        loss = objective.variance_loss(variance, 1.5 * eps, x0, x_t, t, SCHEDULE)
        return loss.sum(), loss

    gradient, loss = jax.jit(jax.grad(total, has_aux=True))(jnp.zeros_like(x0))
    assert np.all(np.isfinite(loss)) and np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_examples_do_not_see_their_neighbours(examples):
    x0, eps, prediction, variance = examples
    x_t = SCHEDULE.add_noise(x0, eps, TIMES)
    snr = SCHEDULE.snr(TIMES)

    def hybrid(examples):
        plain = objective.denoising_loss(
            prediction[examples], eps[examples], snr[examples], prediction_type='epsilon', min_snr_gamma=5.0
        )
        return plain + objective.variance_loss(
            variance[examples], prediction[examples], x0[examples], x_t[examples], TIMES[examples], SCHEDULE
        )

    together = hybrid(jnp.arange(5))
    np.testing.assert_allclose(hybrid(jnp.array([4, 2])), together[jnp.array([4, 2])], rtol=1e-6)
