"""ddpm and ddim take the steps of diffusers' DDPMScheduler and DDIMScheduler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.schedulers import scheduling_ddpm

from dreambooth_jax.diffusion import samplers, schedules
from tests.support.trajectories import (
    CHANNELS,
    FRESH,
    IMAGEN,
    LATENT,
    PIXEL,
    ROWS,
    START,
    assert_close,
    assert_ten_steps_equal,
    both,
    channels_first,
    channels_last,
    network,
    trajectory_here,
    trajectory_there,
)


@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize(
    ('sampler', 'settings', 'more'),
    [
        ('ddpm', LATENT, {}),
        ('ddpm', PIXEL, {}),
        ('ddpm', PIXEL, {'variance_type': 'fixed_large', 'clip_sample_range': 0.7}),
        ('ddpm', PIXEL, {'variance_type': 'fixed_small_log'}),
        ('ddpm', IMAGEN, {'variance_type': 'learned_range'}),
        ('ddim', LATENT, {'steps_offset': 1, 'set_alpha_to_one': False}),
        ('ddim', PIXEL, {}),
        ('ddim', IMAGEN, {'timestep_spacing': 'trailing'}),
    ],
)
def test_ten_steps_equal_diffusers(monkeypatch, sampler, settings, more, prediction_type):
    assert_ten_steps_equal(monkeypatch, sampler, settings, prediction_type=prediction_type, **more)


@pytest.mark.parametrize(('settings', 'eta'), [(LATENT, 1.0), (PIXEL, 0.4)])
def test_ddim_with_fresh_noise_equals_diffusers(monkeypatch, settings, eta):
    ours, theirs = both('ddim', settings)
    expected = trajectory_there(monkeypatch, 'ddim', theirs, 10, eta=eta)
    assert_close(trajectory_here('ddim', ours, 10, eta=eta), expected)


@pytest.mark.parametrize('sampler', ['ddpm', 'ddim'])
@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
def test_single_steps_equal_diffusers_at_every_kind_of_time(monkeypatch, sampler, prediction_type):
    variance_type = {'variance_type': 'learned_range'} if sampler == 'ddpm' else {}
    ours, theirs = both(sampler, PIXEL, prediction_type=prediction_type, **variance_type)
    channels = 2 * CHANNELS if sampler == 'ddpm' else CHANNELS
    table = samplers.step_table(ours, sampler, 50)
    theirs.set_timesteps(50)
    monkeypatch.setattr(scheduling_ddpm, 'randn_tensor', lambda *_, **__: channels_first(FRESH[0]))
    step = jax.jit(functools.partial(samplers.denoise_step, process=ours, sampling=ours.sampling(sampler)))
    for index in (0, 1, 10, 25, 40, 48, 49):
        row = jax.tree.map(lambda column, index=index: column[index], table)
        answer = network(jnp.asarray(START), jnp.full(ROWS, row.t), channels)
        fresh = jnp.asarray(FRESH[0]) if sampler == 'ddpm' else None
        new, x0, _ = step(answer, START, samplers.Memory.empty(table, START), row, fresh)
        more = {'use_clipped_model_output': True} if sampler == 'ddim' else {}
        expected = theirs.step(channels_first(answer), int(row.t), channels_first(START), **more)
        np.testing.assert_allclose(new, channels_last(expected.prev_sample), atol=1e-5)
        np.testing.assert_allclose(x0, channels_last(expected.pred_original_sample), atol=1e-4)
