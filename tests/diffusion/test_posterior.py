"""The posterior of two times: Bayes' rule on the process, and the ends where it is certain."""

import numpy as np
import pytest

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.diffusion.posterior import posterior, posterior_of

SCHEDULE = schedules.make_schedule('linear')


@pytest.mark.parametrize(('t', 'previous'), [(1, 0), (500, 499), (999, 900), (40, 3)])
def test_it_is_bayes_rule_for_gaussians(t, previous):
    now, before = (float(SCHEDULE.alphas_cumprod[time]) for time in (t, previous))
    step = now / before  # x_t = sqrt(step) * x_previous + sqrt(1 - step) * noise
    precision = 1 / (1 - before) + step / (1 - step)
    found = posterior(SCHEDULE, np.array(t), np.array(previous))
    assert float(found.variance) == pytest.approx(1 / precision, rel=1e-3)
    assert float(found.x0_coefficient) == pytest.approx(before**0.5 / (1 - before) / precision, rel=1e-3)
    assert float(found.x_t_coefficient) == pytest.approx(step**0.5 / (1 - step) / precision, rel=1e-3)
    assert float(found.beta) == pytest.approx(1 - step, rel=1e-3) and found.variance <= found.beta


def test_before_the_first_time_there_is_the_clean_image_alone():
    found = posterior(SCHEDULE, np.array([0, 7]), np.array([-1, -5]))
    np.testing.assert_allclose(found.variance, 0, atol=1e-7)
    np.testing.assert_allclose(found.x0_coefficient, 1, rtol=1e-4)
    np.testing.assert_allclose(found.x_t_coefficient, 0, atol=1e-4)


def test_numpy_in_gives_numpy_of_the_same_dtype():
    now, before = (SCHEDULE.alphas_cumprod[[9, 99]], SCHEDULE.alphas_cumprod[[0, 9]])
    for value in posterior_of(now, before):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == (2,)
