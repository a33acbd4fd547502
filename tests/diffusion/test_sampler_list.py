"""The table of samplers: its names are those of the settings, and every entry describes a class of diffusers."""

import typing

import diffusers
import numpy as np
import pytest

from dreambooth_jax.config import Sampler
from dreambooth_jax.diffusion import samplers, schedules
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.diffusion.step_table import SchedulerFileError
from tests.support.published_schedulers import SD_1_5


def test_the_settings_name_every_sampler():
    assert typing.get_args(Sampler) == tuple(SAMPLERS)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_tables_are_finite_and_have_one_row_per_call(sampler):
    schedule = schedules.from_config(SD_1_5)
    for steps in (1, 2, 5):
        table = samplers.step_table(schedule, sampler, steps)
        for column in (table.t, table.alpha, table.sigma, table.x, table.x0, *table.previous_x0):
            assert column.shape == (samplers.network_calls(sampler, steps),) and column.dtype == np.float32
            assert np.isfinite(column).all()
    assert hasattr(diffusers, SAMPLERS[sampler].diffusers_class)


@pytest.mark.parametrize(
    ('sampler', 'options', 'sentence'),
    [
        ('euler', dict(interpolation_type='log_linear'), "interpolation_type is 'log_linear', .* allowed: linear;"),
        ('euler', dict(final_sigmas_type='half'), "final_sigmas_type is 'half', .* allowed: zero, sigma_min;"),
        ('heun', dict(use_karras_sigmas=True, use_beta_sigmas=True), 'use_karras_sigmas and use_beta_sigmas, but only'),
        ('unipc', dict(solver_order=4), 'solver_order is 4, with which sampler unipc .* allowed: 1, 2, 3;'),
        ('unipc', dict(predict_x0=False), 'predict_x0 is False, .* allowed: true;'),
        ('unipc', dict(solver_type='rk4'), "solver_type is 'rk4', .* allowed: bh1, bh2, midpoint, heun, logrho;"),
        ('unipc', dict(lower_order_final=False), 'lower_order_final is false, .* cannot end at a sigma of zero'),
        (
            'unipc',
            dict(final_sigmas_type='sigma_min', use_karras_sigmas=True),
            "final_sigmas_type is 'sigma_min' together with a spacing of sigmas, .* last step of length 0",
        ),
    ],
)
def test_what_a_file_asks_in_vain_is_one_sentence_for_that_sampler_alone(sampler, options, sentence):
    schedule = schedules.from_config({**SD_1_5, **options})
    assert len(samplers.timesteps(schedule, 'ddim', 5)) == 5
    with pytest.raises(SchedulerFileError, match=sentence):
        samplers.step_table(schedule, sampler, 5)
