"""dpmsolver++: DPM-Solver++ of order 2 with the previous x0, or its stochastic form.

It is DPMSolverMultistepScheduler (dpmsolver++, order 2, midpoint, last sigma zero, unless the file says otherwise): Lu
et al. 2022, algorithm 2; the first and the last step are of first order.
"""

import math
from typing import Any

import numpy as np

from dreambooth_jax.diffusion.spacing import finite_alphas_cumprod, noise_ratios, spread_ratios, spread_times, times_of
from dreambooth_jax.diffusion.step_table import (
    FINAL_SIGMAS,
    LINSPACE,
    SIGMA_SPACINGS,
    THRESHOLDING,
    Sampler,
    Sampling,
    StepTable,
    make_table,
)

# With fewer steps than this, the last step is better of first order: scheduling_dpmsolver_multistep.py.
_FEW_STEPS = 15
# Names that other classes of diffusers write for themselves stand for the defaults (diffusers intends this for 'deis',
# but then refuses to end at sigma zero with it). The third order, and solving for the noise ('dpmsolver', which
# diffusers has deprecated), would need steps of another form.
_ADDS_NOISE = {'dpmsolver++': False, 'deis': False, 'sde-dpmsolver++': True}
_SECOND_ORDERS = {'midpoint': 'midpoint', 'heun': 'heun', 'logrho': 'midpoint', 'bh1': 'midpoint', 'bh2': 'midpoint'}


def _columns(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    times, ratio = _path(process, sampling, num_steps)
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    # e^-h, where h is the step in log(alpha / sigma), is a quotient of the ratios; it is 0 where the image is finished.
    decay = ratio[1:] / ratio[:-1]
    with np.errstate(divide='ignore'):
        steps = -np.log(decay)
    # The stochastic equation forgets x twice as fast and replaces what it forgets by noise.
    speed = 2 if sampling.adds_noise else 1
    first_order = alpha[1:] * (1 - decay**speed)
    # The second order adds slope * (h / previous h) * (x0 - previous x0).
    if sampling.solver_type == 'midpoint':
        slope = 0.5 * first_order
    else:
        slope = alpha[1:] - first_order / np.maximum(speed * steps, 1e-12)
    slope[1:] *= steps[1:] / steps[:-1]
    # There is no slope in the first step, which has no previous x0, nor in the last one if h is infinite there or the
    # settings ask for first order.
    slope[0] = 0
    if sampling.ends_clean or sampling.euler_at_final or (sampling.lower_order_final and len(times) < _FEW_STEPS):
        slope[-1] = 0
    if sampling.solver_order == 1:
        slope[:] = 0
    std = sigma[1:] * np.sqrt(1 - decay**2) * sampling.adds_noise
    return make_table(
        t=times,
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        x=sigma[1:] / sigma[:-1] * decay ** (speed - 1),
        x0=first_order + slope,
        previous_x0=(-slope,),
        std=std,
        is_noisy=(std > 0).astype(np.float32),
    )


def _path(process: Any, sampling: Sampling, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    # The times, i64[N], and sigma / alpha, f64[N + 1], of which the last is that of the finished image. N is less than
    # num_steps if 'trailing' spacing leaves out the times below lambda_min_clipped. Times may repeat only if sigma /
    # alpha is spaced instead of the times: the network then sees other noise at the same time.
    ratios = noise_ratios(process)
    if sampling.sigma_spacing is None:
        last = _num_usable_times(process, sampling.lambda_min_clipped)
        times = spread_times(process, sampling, num_steps, 'dpmsolver++', omits_zero=True, last=last).astype(np.int64)
        path = ratios[times]
    else:
        path = spread_ratios(ratios, sampling, num_steps)
        times = times_of(path, np.log(ratios))
        # diffusers rounds in these cases and truncates in the others.
        if sampling.sigma_spacing in ('karras', 'lu') and process.beta_schedule != 'squaredcos_cap_v2':
            times = times.round()
        times = times.astype(np.int64)
    end = 0.0 if sampling.ends_clean else ratios[0]
    return times, np.append(path, end).astype(np.float32).astype(np.float64)


def _num_usable_times(process: Any, lambda_min_clipped: float) -> int:
    # How many times, counted from 0, have a log(alpha / sigma) of at least lambda_min_clipped.
    alphas_cumprod = finite_alphas_cumprod(process)
    log_ratio = np.log(np.sqrt(alphas_cumprod)) - np.log(np.sqrt(1 - alphas_cumprod))
    return len(log_ratio) - int(np.searchsorted(log_ratio[::-1], lambda_min_clipped))


DPM_SOLVER = Sampler(
    diffusers_class='DPMSolverMultistepScheduler',
    defaults={
        **THRESHOLDING,
        **LINSPACE,
        'lambda_min_clipped': -math.inf,
        'algorithm_type': 'dpmsolver++',
        'solver_order': 2,
        'solver_type': 'midpoint',
        'lower_order_final': True,
        'euler_at_final': False,
        'final_sigmas_type': 'zero',
        **SIGMA_SPACINGS,
        'use_lu_lambdas': False,
    },
    meanings={
        'algorithm_type': ('adds_noise', _ADDS_NOISE),
        'solver_type': ('solver_type', _SECOND_ORDERS),
        'solver_order': ('solver_order', {1: 1, 2: 2}),
        **FINAL_SIGMAS,
    },
    columns=_columns,
)
