"""Schedules equal diffusers' schedulers; configurations are read with each class's own defaults."""

import inspect
import json

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import schedules

STABLE_DIFFUSION_2_1 = {
    '_class_name': 'DDIMScheduler', 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085,
    'clip_sample': False, 'num_train_timesteps': 1000, 'prediction_type': 'v_prediction', 'set_alpha_to_one': False,
    'skip_prk_steps': True, 'steps_offset': 1, 'trained_betas': None,
}  # fmt: skip
DEEPFLOYD_IF = {
    '_class_name': 'DDPMScheduler', 'beta_end': 0.02, 'beta_schedule': 'squaredcos_cap_v2', 'beta_start': 0.0001,
    'clip_sample': True, 'clip_sample_range': 1.0, 'dynamic_thresholding_ratio': 0.95, 'lambda_min_clipped': -5.1,
    'num_train_timesteps': 1000, 'prediction_type': 'epsilon', 'sample_max_value': 1.5, 'thresholding': True,
    'trained_betas': None, 'variance_type': 'learned_range',
}  # fmt: skip


@pytest.mark.parametrize('steps', [10, 1000])
@pytest.mark.parametrize('beta_schedule', schedules.BETA_SCHEDULES)
def test_betas_and_their_product_equal_diffusers(beta_schedule, steps):
    ours = schedules.make_schedule(beta_schedule, num_train_timesteps=steps)
    theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule, num_train_timesteps=steps)
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-6)
    assert ours.betas.dtype == ours.alphas_cumprod.dtype == np.float32
    assert ours.num_train_timesteps == steps


@pytest.mark.parametrize('beta_schedule', schedules.BETA_SCHEDULES)
def test_zero_terminal_snr_equals_diffusers_and_ends_at_zero(beta_schedule):
    ours = schedules.make_schedule(beta_schedule, rescale_betas_zero_snr=True)
    theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule, rescale_betas_zero_snr=True)
    # The shift subtracts nearly equal numbers near the end: one float32 digit of the input is 1e-5 of the result there.
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2e-4)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=5e-5, atol=1e-9)
    assert ours.alphas_cumprod[-1] == 0
    plain = schedules.make_schedule(beta_schedule)
    np.testing.assert_allclose(ours.alphas_cumprod[0], plain.alphas_cumprod[0], rtol=1e-6)


def test_rescaling_trained_betas_equals_the_option():
    plain = schedules.make_schedule('scaled_linear')
    rescaled = schedules.make_schedule(trained_betas=schedules.rescale_zero_terminal_snr(plain.betas))
    option = schedules.make_schedule('scaled_linear', rescale_betas_zero_snr=True)
    np.testing.assert_array_equal(rescaled.alphas_cumprod, option.alphas_cumprod)


@pytest.mark.parametrize('class_name', sorted(schedules.CLASS_DEFAULTS))
def test_missing_keys_take_the_defaults_of_the_class(class_name):
    signature = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()}
    schedule = schedules.from_config({'_class_name': class_name})
    for field in ('prediction_type', 'thresholding', 'dynamic_thresholding_ratio', 'sample_max_value', 'steps_offset',
                  'clip_sample', 'clip_sample_range', 'timestep_spacing', 'set_alpha_to_one', 'lambda_min_clipped',
                  'rescale_betas_zero_snr'):  # fmt: skip
        if field in defaults:
            assert getattr(schedule, field) == defaults[field], field
    if 'clip_sample' not in defaults:
        assert not schedule.clip_sample
    reference = getattr(diffusers, class_name)()
    np.testing.assert_allclose(schedule.betas, reference.betas.numpy(), rtol=1e-6)


def test_published_configurations_are_read():
    latent = schedules.from_config(STABLE_DIFFUSION_2_1)
    assert (latent.prediction_type, latent.clip_sample, latent.steps_offset) == ('v_prediction', False, 1)
    assert not latent.learns_variance and not latent.set_alpha_to_one
    pixel = schedules.from_config(json.loads(json.dumps(DEEPFLOYD_IF)))
    assert pixel.learns_variance and pixel.thresholding
    assert (pixel.dynamic_thresholding_ratio, pixel.sample_max_value, pixel.lambda_min_clipped) == (0.95, 1.5, -5.1)
    assert schedules.from_config({'lambda_min_clipped': '-inf'}).lambda_min_clipped == -np.inf


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('prediction_type', 'flow_prediction', 'epsilon, v_prediction, sample'),
        ('beta_schedule', 'sigmoid', 'linear, scaled_linear, squaredcos_cap_v2'),
        ('variance_type', 'guessed', 'learned_range'),
        ('timestep_spacing', 'wide', 'linspace, leading, trailing'),
        ('_class_name', 'FlowMatchEulerDiscreteScheduler', 'DDPMScheduler, DDIMScheduler'),
    ],
)
def test_unknown_value_is_named_with_the_allowed_ones(key, value, allowed):
    with pytest.raises(ValueError, match=f"{key} is '{value}'; allowed: .*{allowed}"):
        schedules.from_config({key: value})


def test_alpha_sigma_and_snr_agree():
    schedule = schedules.make_schedule('squaredcos_cap_v2')
    t = jnp.array([[0, 1], [500, 999]])
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    assert alpha.shape == sigma.shape == (2, 2) and alpha.dtype == jnp.float32
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedules.snr(schedule, t), (alpha / sigma) ** 2, rtol=1e-3)


def test_posterior_joins_two_steps_of_the_forward_process():
    # q(x_s | x_t, x0) q(x_t | x0) must give back q(x_s | x0): mean and variance of x_s, for neighbours and for jumps.
    schedule = schedules.make_schedule('linear')
    t, s = jnp.array([5, 500, 999, 3]), jnp.array([4, 100, 0, -1])
    posterior = schedules.posterior(schedule, t, s)
    alpha_t, sigma_t = schedules.alpha_sigma(schedule, t)
    alpha_s = np.where(s < 0, 1.0, np.sqrt(schedule.alphas_cumprod[np.maximum(s, 0)]))
    np.testing.assert_allclose(posterior.x0_coefficient + posterior.x_t_coefficient * alpha_t, alpha_s, rtol=1e-3)
    variance = posterior.variance + (posterior.x_t_coefficient * sigma_t) ** 2
    np.testing.assert_allclose(variance, 1 - alpha_s**2, rtol=1e-3, atol=1e-7)
    assert posterior.variance[-1] == 0 and np.all(posterior.beta > 0)
