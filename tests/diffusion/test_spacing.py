"""Where the steps lie: at the times of diffusers' schedulers, or evenly in a function of sigma / alpha."""

import math

import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers, scheduler_files, schedules, spacing
from dreambooth_jax.diffusion.step_table import Sampling
from tests.support.trajectories import CLASSES, LATENT, PIXEL, assert_close, both, trajectory_here, trajectory_there


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('kind', scheduler_files.TIMESTEP_SPACINGS)
@pytest.mark.parametrize(
    ('sampler', 'limit'),
    [*((sampler, {}) for sampler in CLASSES), ('dpmsolver++', {'lambda_min_clipped': -5.1})],
)
def test_times_equal_diffusers(sampler, limit, kind, offset):
    ours, theirs = both(sampler, PIXEL, timestep_spacing=kind, steps_offset=offset, **limit)
    for num_steps in (1, 2, 3, 7, 10, 20, 25, 30, 50, 61, 100, 999):
        theirs.set_timesteps(num_steps)
        expected = theirs.timesteps.numpy()
        expected = expected[expected >= 0]  # diffusers returns -1 for 61 trailing steps: a rounding error.
        repeat = 2 if sampler == 'heun' else 1
        if len(set(expected)) < len(expected) // repeat or expected[0] >= 1000:
            with pytest.raises(ValueError, match=f'steps is {num_steps}: .* take fewer'):
                samplers.timesteps(ours, sampler, num_steps)
        else:
            np.testing.assert_array_equal(samplers.timesteps(ours, sampler, num_steps), expected)
            assert len(expected) == samplers.network_calls(sampler, num_steps) or limit


@pytest.mark.slow
@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize('kind', scheduler_files.TIMESTEP_SPACINGS)
@pytest.mark.parametrize('sigmas', [None, 'karras', 'exponential', 'beta'])
@pytest.mark.parametrize('sampler', ['euler', 'euler_ancestral', 'heun', 'unipc'])
def test_every_spacing_equals_diffusers(monkeypatch, sampler, sigmas, kind, prediction_type):
    if sampler == 'euler_ancestral' and (sigmas or prediction_type == 'sample'):
        return  # which diffusers has not
    more = {f'use_{sigmas}_sigmas': True} if sigmas else {}
    ours, theirs = both(sampler, LATENT, timestep_spacing=kind, prediction_type=prediction_type, **more)
    for num_steps in (1, 2, 7, 10):
        theirs.set_timesteps(num_steps)
        np.testing.assert_allclose(samplers.timesteps(ours, sampler, num_steps), theirs.timesteps, rtol=1e-6, atol=1e-4)
        expected = trajectory_there(monkeypatch, sampler, theirs, num_steps)
        assert_close(trajectory_here(sampler, ours, num_steps), expected)


# What sigma / alpha is evenly spaced in; 'karras' by its published formula with rho 7.
EVEN_IN = {'karras': lambda ratios: ratios ** (1 / 7), 'lu': np.log, 'exponential': np.log}


@pytest.mark.parametrize('kind', [*EVEN_IN, 'beta'])
def test_ratios_fall_from_the_highest_of_the_schedule_to_its_lowest(kind):
    ratios = spacing.noise_ratios(schedules.make_schedule(**LATENT))
    found = spacing.spread_ratios(ratios, Sampling('linspace', 0, sigma_spacing=kind), 9)
    np.testing.assert_allclose(found[[0, -1]], ratios[[-1, 0]], rtol=1e-6)
    assert np.all(np.diff(found) < 0)
    if kind in EVEN_IN:
        steps = np.diff(EVEN_IN[kind](found))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


@pytest.mark.parametrize(('kind', 'heeded'), [('karras', True), ('exponential', True), ('beta', True), ('lu', False)])
def test_ends_that_a_file_gives_replace_those_of_the_schedule_but_for_lu(kind, heeded):
    ratios = spacing.noise_ratios(schedules.make_schedule(**LATENT))
    sampling = Sampling('linspace', 0, sigma_spacing=kind, sigma_min=0.1, sigma_max=5.0)
    found = spacing.spread_ratios(ratios, sampling, 4)
    expected = [5.0, 0.1] if heeded else ratios[[-1, 0]]
    np.testing.assert_allclose(found[[0, -1]], expected, rtol=1e-6)


def test_the_time_of_a_ratio_is_interpolated_in_its_logarithm_and_stays_in_the_schedule():
    ratios = np.array([0.1, 1.0, 10.0, 100.0])
    found = spacing.times_of(np.array([1000.0, 100.0, math.sqrt(1000.0), 1.0, 0.1, 0.01]), np.log(ratios))
    np.testing.assert_allclose(found, [3, 3, 2.5, 1, 0, 0], atol=1e-9)


def test_ratios_are_finite_where_nothing_of_the_image_is_left():
    schedule = schedules.make_schedule(**LATENT, rescale_betas_zero_snr=True, prediction_type='v_prediction')
    assert schedule.alphas_cumprod[-1] == 0
    ratios = spacing.noise_ratios(schedule)
    assert np.isfinite(ratios).all() and np.all(np.diff(ratios) > 0)
    assert ratios[-1] == pytest.approx(4096, rel=1e-4)  # as diffusers takes it: an alphas_cumprod of 2^-24
    assert schedule.alphas_cumprod[-1] == 0  # left as it was


@pytest.mark.parametrize('steps', [0, 1001, -1])
def test_a_number_of_steps_that_no_schedule_has_is_one_sentence(steps):
    with pytest.raises(ValueError, match=rf'^steps is {steps}; 1 to 1000 denoise steps are possible\.$'):
        spacing.check_steps(steps, 1000)
