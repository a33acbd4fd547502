"""The discrete variance-preserving process: its times, what it does to images, and that it does what it always did."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.diffusion import noise, prediction, schedules
from dreambooth_jax.diffusion.posterior import posterior
from dreambooth_jax.diffusion.times import TimeDistribution

KEYS = jax.random.split(jax.random.key(0), 400)


def test_times_are_float32_and_drawn_as_whole_numbers_always_were():
    """The same uniform numbers for the same keys, bit for bit, as before times were float32."""
    schedule = schedules.make_schedule()
    t = schedule.sample_times(KEYS)
    assert t.dtype == jnp.float32 and t.shape == (400,)
    np.testing.assert_array_equal(t, noise.sample_timesteps(KEYS, 0, 1000))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000, jnp.int32))(KEYS)
    np.testing.assert_array_equal(t, drawn)
    np.testing.assert_array_equal(schedule.sample_times(KEYS[7:9]), t[7:9])
    np.testing.assert_array_equal(schedule.network_time(t), t)


@pytest.mark.parametrize('kind', ['uniform', 'logit_normal', 'mode'])
@pytest.mark.parametrize(('ends', 'first', 'last'), [((0.0, 1.0), 0, 9), ((0.2, 0.5), 2, 4), ((0.95, 1.0), 9, 9)])
def test_times_stay_in_their_range_and_reach_its_ends(kind, ends, first, last):
    schedule = schedules.make_schedule(num_train_timesteps=10)
    t = np.asarray(schedule.sample_times(KEYS, TimeDistribution(kind=kind, range=ends)))
    assert (t == np.floor(t)).all() and (t.min(), t.max()) == (first, last)


def test_a_share_is_the_time_of_diffusers_scripts():
    schedule = schedules.make_schedule()
    distribution = TimeDistribution(kind='logit_normal', mean=0.5)
    share = np.asarray(distribution.sample(KEYS))
    np.testing.assert_array_equal(schedule.sample_times(KEYS, distribution), np.floor(share * 1000))


@pytest.mark.parametrize('kind', prediction._TARGETS)
def test_target_x0_and_noise_fit_together(kind):
    schedule = schedules.make_schedule('squaredcos_cap_v2', prediction_type=kind)
    x0, fresh = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    t = jnp.array([1.0, 371.0, 900.0])
    x_t, target = schedule.add_noise(x0, fresh, t), schedule.target(x0, fresh, t)
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(schedule.to_x0(target, x_t, alpha, sigma), x0, atol=2e-5)
    np.testing.assert_allclose(schedule.to_noise(target, x_t, alpha, sigma), fresh, atol=2e-4)


@pytest.mark.parametrize('beta_schedule', schedules.BETA_SCHEDULES)
def test_add_noise_equals_diffusers(beta_schedule):
    x0, fresh = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    t = np.array([0, 371, 999])
    ours = schedules.make_schedule(beta_schedule).add_noise(x0, fresh, jnp.asarray(t, jnp.float32))
    reference = diffusers.DDPMScheduler(beta_schedule=beta_schedule)
    theirs = reference.add_noise(torch.tensor(x0), torch.tensor(fresh), torch.tensor(t))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_alpha_sigma_and_snr_agree():
    schedule = schedules.make_schedule('squaredcos_cap_v2')
    t = jnp.array([[0, 1], [500, 999]])
    alpha, sigma = schedule.alpha_sigma(t)
    assert alpha.shape == sigma.shape == (2, 2) and alpha.dtype == jnp.float32
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule.snr(t), (alpha / sigma) ** 2, rtol=1e-3)


def test_posterior_joins_two_steps_of_the_forward_process():
    # q(x_s | x_t, x0) q(x_t | x0) must give back q(x_s | x0): mean and variance of x_s, for neighbours and for jumps.
    schedule = schedules.make_schedule('linear')
    t, s = jnp.array([5, 500, 999, 3]), jnp.array([4, 100, 0, -1])
    found = posterior(schedule, t, s)
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s = np.where(s < 0, 1.0, np.sqrt(schedule.alphas_cumprod[np.maximum(s, 0)]))
    np.testing.assert_allclose(found.x0_coefficient + found.x_t_coefficient * alpha_t, alpha_s, rtol=1e-3)
    variance = found.variance + (found.x_t_coefficient * sigma_t) ** 2
    np.testing.assert_allclose(variance, 1 - alpha_s**2, rtol=1e-3, atol=1e-7)
    assert found.variance[-1] == 0 and np.all(found.beta > 0)
