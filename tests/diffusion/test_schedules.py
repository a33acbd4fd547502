"""Schedules equal diffusers' schedulers."""

import json

import diffusers
import numpy as np
import pytest

from dreambooth_jax.diffusion import schedules
from tests.support.published_schedulers import PUBLISHED


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
    # Betas are 1 minus quotients near 1, whose last digit is 6e-8; on some processors torch's square root is off by it.
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=5e-5, atol=1e-9)
    assert ours.alphas_cumprod[-1] == 0
    plain = schedules.make_schedule(beta_schedule)
    np.testing.assert_allclose(ours.alphas_cumprod[0], plain.alphas_cumprod[0], rtol=1e-6)


def test_rescaling_trained_betas_equals_the_option():
    plain = schedules.make_schedule('scaled_linear')
    rescaled = schedules.make_schedule(trained_betas=schedules.rescale_zero_terminal_snr(plain.betas))
    option = schedules.make_schedule('scaled_linear', rescale_betas_zero_snr=True)
    np.testing.assert_array_equal(rescaled.alphas_cumprod, option.alphas_cumprod)


def test_published_configurations_are_read():
    latent = schedules.from_config(PUBLISHED['stable-diffusion-2-1'])
    assert latent.prediction_type == 'v_prediction' and not latent.learns_variance
    ddim = latent.sampling('ddim')
    assert (ddim.clip_sample, ddim.steps_offset, ddim.set_alpha_to_one) == (False, 1, False)
    pixel = schedules.from_config(json.loads(json.dumps(PUBLISHED['deepfloyd-if-i'])))
    assert pixel.learns_variance
    solver = pixel.sampling('dpmsolver++')
    assert (solver.thresholding, solver.dynamic_thresholding_ratio, solver.sample_max_value) == (True, 0.95, 1.5)
    assert solver.lambda_min_clipped == -5.1 and not solver.clip_sample
    unlimited = schedules.from_config({'lambda_min_clipped': '-inf'})
    assert unlimited.sampling('dpmsolver++').lambda_min_clipped == -np.inf


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('prediction_type', 'flow_prediction', 'epsilon, v_prediction, sample'),
        ('beta_schedule', 'sigmoid', 'linear, scaled_linear, squaredcos_cap_v2'),
        ('variance_type', 'guessed', 'learned_range'),
        ('timestep_spacing', 'wide', 'linspace, leading, trailing'),
        ('_class_name', 'FlowMatchEulerDiscreteScheduler', 'DDPMScheduler, .*DDIMScheduler, '),
    ],
)
def test_unknown_value_is_named_with_the_allowed_ones(key, value, allowed):
    with pytest.raises(ValueError, match=f"{key} is '{value}'; allowed: .*{allowed}"):
        schedules.from_config({key: value})
