"""dpmsolver++ takes the steps of diffusers' DPMSolverMultistepScheduler, of which a file may ask for other ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers, schedules
from tests.support.published_schedulers import SD_1_5
from tests.support.trajectories import (
    CLASSES,
    FRESH,
    IMAGEN,
    LATENT,
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

BETAS = dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
OPTIONS = {
    'karras': dict(use_karras_sigmas=True),
    'karras within ends': dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0),
    'karras over lu': dict(use_karras_sigmas=True, use_lu_lambdas=True),
    'karras cosine': dict(use_karras_sigmas=True, beta_schedule='squaredcos_cap_v2'),
    'exponential': dict(use_exponential_sigmas=True),
    'beta': dict(use_beta_sigmas=True),
    'lu': dict(use_lu_lambdas=True),
    'order 1': dict(solver_order=1),
    'heun': dict(solver_type='heun'),
    'another class solver': dict(solver_type='bh2'),
    'ends at the noise of time 0': dict(final_sigmas_type='sigma_min'),
    'that at the last order': dict(final_sigmas_type='sigma_min', lower_order_final=False),
    'that by euler': dict(final_sigmas_type='sigma_min', lower_order_final=False, euler_at_final=True),
    'that with heun and karras': dict(
        final_sigmas_type='sigma_min',
        lower_order_final=False,
        solver_type='heun',
        use_karras_sigmas=True,
        sigma_min=0.05,
    ),
    'stochastic': dict(algorithm_type='sde-dpmsolver++'),
    'stochastic heun': dict(algorithm_type='sde-dpmsolver++', solver_type='heun'),
    'deis': dict(algorithm_type='deis', final_sigmas_type='sigma_min'),
    'zero terminal SNR': dict(rescale_betas_zero_snr=True, use_karras_sigmas=True, prediction_type='v_prediction'),
}


@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize(('settings', 'more'), [(LATENT, {}), (IMAGEN, {'lambda_min_clipped': -5.1})])
def test_ten_steps_equal_diffusers(monkeypatch, settings, more, prediction_type):
    assert_ten_steps_equal(monkeypatch, 'dpmsolver++', settings, prediction_type=prediction_type, **more)


@pytest.mark.parametrize('num_steps', [1, 2, 20])
def test_dpm_solver_equals_diffusers_for_few_and_many_steps(monkeypatch, num_steps):
    ours, theirs = both('dpmsolver++', LATENT)
    expected = trajectory_there(monkeypatch, 'dpmsolver++', theirs, num_steps)
    keys = jax.random.split(jax.random.key(0), ROWS)
    x = samplers.sample(network, START, keys, schedule=ours, sampler='dpmsolver++', num_steps=num_steps)
    assert_close(np.asarray(x), expected)


def test_a_step_of_dpm_solver_equals_diffusers_at_every_kind_of_time():
    ours, theirs = both('dpmsolver++', LATENT)
    table = samplers.step_table(ours, 'dpmsolver++', 20)
    step = jax.jit(functools.partial(samplers.denoise_step, process=ours, sampling=ours.sampling('dpmsolver++')))
    for index in (1, 5, 12, 18, 19):
        theirs.set_timesteps(20)
        theirs.set_begin_index(index)
        theirs.lower_order_nums = 2
        theirs.model_outputs = [None, channels_first(FRESH[1])]
        row = jax.tree.map(lambda column, index=index: column[index], table)
        new, *_ = step(jnp.asarray(FRESH[0]), START, samplers.Memory((FRESH[1],)), row, None)
        expected = theirs.step(channels_first(FRESH[0]), int(row.t), channels_first(START)).prev_sample
        assert_close(np.asarray(new), channels_last(expected), 1e-5)


@pytest.mark.parametrize('option', OPTIONS)
def test_what_a_file_asks_of_the_solver_is_done_as_in_diffusers(monkeypatch, option):
    config = {'_class_name': 'UniPCMultistepScheduler', **BETAS, **OPTIONS[option]}
    ours, theirs = schedules.from_config(config), CLASSES['dpmsolver++'].from_config(config)
    for steps in (2, 10, 14, 15, 30):
        theirs.set_timesteps(steps)
        np.testing.assert_array_equal(samplers.timesteps(ours, 'dpmsolver++', steps), theirs.timesteps.numpy())
    found = trajectory_here('dpmsolver++', ours, 10)
    assert_close(found, trajectory_there(monkeypatch, 'dpmsolver++', theirs, 10))
    if option != 'another class solver':
        plain = schedules.from_config({**SD_1_5, **BETAS})
        assert np.abs(found - trajectory_here('dpmsolver++', plain, 10)).max() > 1e-3


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(solver_order=3), "the scheduler file's solver_order is 3, .* allowed: 1, 2; take the sampler ddim or"),
        (dict(algorithm_type='dpmsolver'), "algorithm_type is 'dpmsolver', .* allowed: dpmsolver.., deis, sde-dpm"),
        (dict(algorithm_type='data_prediction'), "algorithm_type is 'data_prediction', "),
        (dict(solver_type='rk4'), "solver_type is 'rk4', .* allowed: midpoint, heun"),
        (dict(final_sigmas_type='half'), "final_sigmas_type is 'half', .* allowed: zero, sigma_min"),
        (dict(use_karras_sigmas=True, use_beta_sigmas=True), 'use_karras_sigmas and use_beta_sigmas, but only one'),
    ],
)
def test_what_the_solver_cannot_do_is_one_sentence_for_it_alone(options, sentence):
    schedule = schedules.from_config({**SD_1_5, **options})  # which trains
    assert len(samplers.timesteps(schedule, 'ddim', 5)) == 5
    with pytest.raises(ValueError, match=sentence):
        samplers.step_table(schedule, 'dpmsolver++', 5)
