"""euler, euler_ancestral and heun take the steps of diffusers' schedulers of these names, heun those of float64."""

import numpy as np
import pytest

from dreambooth_jax.diffusion import schedules
from tests.support.trajectories import (
    CHANNELS,
    CLASSES,
    LATENT,
    MIX,
    PIXEL,
    START,
    assert_close,
    assert_ten_steps_equal,
    both,
    trajectory_here,
    trajectory_there,
)


@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize(
    ('sampler', 'settings', 'more'),
    [
        ('euler', LATENT, {}),
        ('euler', LATENT, {'timestep_spacing': 'leading', 'steps_offset': 1}),
        ('euler_ancestral', LATENT, {}),
        ('heun', LATENT, {'timestep_spacing': 'trailing'}),
        ('heun', LATENT, {'clip_sample': True, 'clip_sample_range': 0.7}),
    ],
)
def test_ten_steps_equal_diffusers(monkeypatch, sampler, settings, more, prediction_type):
    if sampler == 'euler_ancestral' and prediction_type == 'sample':
        return  # which diffusers has not implemented
    assert_ten_steps_equal(monkeypatch, sampler, settings, prediction_type=prediction_type, **more)


def test_heun_with_a_cosine_schedule_and_clipping_equals_float64():
    """diffusers steps on x0 + s * noise with s up to 20000, whose float32 leaves x0 no digits."""
    ours, theirs = both('heun', PIXEL, clip_sample=True)
    theirs.set_timesteps(10)
    levels = theirs.sigmas.numpy().astype(np.float64)[[0, *range(1, 19, 2), 19]]
    times = theirs.timesteps.numpy()[[0, *range(1, 19, 2)]]

    def slope(y, at):
        level = levels[at]
        predicted = np.tanh((y / np.sqrt(level**2 + 1)) @ MIX[:, :CHANNELS].astype(np.float64)) * (
            0.5 + times[at] / 1000
        )
        return (y - np.clip(y - level * predicted, -1, 1)) / level

    y = START.astype(np.float64) * levels[0]
    for at, length in enumerate(np.diff(levels)):
        first = slope(y, at)
        end = y + length * first
        y = end if at == 9 else y + length * (first + slope(end, at + 1)) / 2
    assert_close(trajectory_here('heun', ours, 10), y, 2e-3)


@pytest.mark.parametrize('sampler', ['euler', 'heun'])
@pytest.mark.parametrize(
    'more', [dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0), dict(final_sigmas_type='sigma_min')]
)
def test_ends_of_sigma_equal_diffusers(monkeypatch, sampler, more):
    if sampler == 'heun' and 'final_sigmas_type' in more:
        return  # which always ends at zero
    config = {'_class_name': 'UniPCMultistepScheduler', **LATENT, **more}
    ours, theirs = schedules.from_config(config), CLASSES[sampler].from_config(config)
    assert_close(trajectory_here(sampler, ours, 7), trajectory_there(monkeypatch, sampler, theirs, 7))
