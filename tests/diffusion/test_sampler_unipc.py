"""unipc takes the steps of diffusers' UniPCMultistepScheduler, but never one to infinity or NaN."""

import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers, schedules
from tests.support.trajectories import (
    IMAGEN,
    LATENT,
    assert_close,
    assert_ten_steps_equal,
    both,
    trajectory_here,
    trajectory_there,
)

UNIPC = {
    **{f'order {order}': dict(solver_order=order) for order in (1, 2, 3)},
    **{
        f'order {order} bh1': dict(solver_order=order, solver_type='bh1', final_sigmas_type='sigma_min')
        for order in (1, 2, 3)
    },
    'high order to the end': dict(solver_order=3, lower_order_final=False, final_sigmas_type='sigma_min'),
    'another class solver': dict(solver_type='midpoint'),
    'corrector off at first': dict(disable_corrector=[0, 1]),
    'thresholded': dict(thresholding=True, sample_max_value=1.5),
    'karras within ends': dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0),
}


@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize(('settings', 'more'), [(LATENT, {}), (IMAGEN, {'solver_order': 3})])
def test_ten_steps_equal_diffusers(monkeypatch, settings, more, prediction_type):
    assert_ten_steps_equal(monkeypatch, 'unipc', settings, prediction_type=prediction_type, **more)


@pytest.mark.parametrize('option', UNIPC)
def test_unipc_of_every_order_equals_diffusers(monkeypatch, option):
    ours, theirs = both('unipc', LATENT, **UNIPC[option])
    assert_close(trajectory_here('unipc', ours, 7), trajectory_there(monkeypatch, 'unipc', theirs, 7))


def test_unipc_refuses_a_high_order_to_a_sigma_of_zero_where_diffusers_has_infinity(monkeypatch):
    ours, theirs = both('unipc', LATENT, lower_order_final=False)
    assert not np.isfinite(trajectory_there(monkeypatch, 'unipc', theirs, 5)).any()
    with pytest.raises(ValueError, match='cannot end at a sigma of zero'):
        samplers.step_table(ours, 'unipc', 5)


@pytest.mark.parametrize('solver_order', [1, 2, 3])
def test_unipc_with_bh1_ends_at_the_clean_image_where_diffusers_has_nan(monkeypatch, solver_order):
    ours, theirs = both('unipc', LATENT, solver_order=solver_order, solver_type='bh1')
    assert np.isnan(trajectory_there(monkeypatch, 'unipc', theirs, 5)).all()
    assert np.isfinite(trajectory_here('unipc', ours, 5)).all()
