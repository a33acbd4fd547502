"""euler, euler_ancestral and heun: the solvers of Karras et al. 2022 and k-diffusion.

  euler            EulerDiscreteScheduler: Karras et al. 2022, algorithm 1 without its second-order correction.
  euler_ancestral  EulerAncestralDiscreteScheduler: a longer step down, and fresh noise back up to the next level.
  heun             HeunDiscreteScheduler: Karras et al. 2022, algorithm 1. Every step but the last calls the network
                   twice, and so has two rows.

They are published for y = x0 + s * noise, where s is sigma / alpha, and follow dy / ds = (y - x0) / s. Here x is
alpha * y with alpha = 1 / sqrt(1 + s^2), which is also what they give the network. The last step does not scale: at
s = 0 alpha is 1, and where a file ends at the noise of time 0 instead, diffusers returns y itself.

Their times need not be whole numbers: 'linspace' does not round, and with sigma / alpha spaced instead, the times are
interpolated. The network is told the fraction.
"""

from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.diffusion.spacing import noise_ratios, spread_ratios, spread_times, times_of
from dreambooth_jax.diffusion.step_table import (
    FINAL_SIGMAS,
    LINSPACE,
    SIGMA_SPACINGS,
    Sampler,
    Sampling,
    StepTable,
    make_table,
)


class _Path(NamedTuple):
    """The times, f64[N], sigma / alpha before and after each step, and the scale of x there; all f64[N]."""

    times: np.ndarray
    now: np.ndarray
    next: np.ndarray
    alpha: np.ndarray
    next_alpha: np.ndarray
    input_scale: np.ndarray


def _path(process: Any, sampling: Sampling, num_steps: int, sampler: str) -> _Path:
    ratios = noise_ratios(process)
    times = spread_times(process, sampling, num_steps, sampler, whole=False)
    # Between two times sigma / alpha is interpolated linearly.
    path = np.interp(times, np.arange(len(ratios)), ratios)
    if sampling.sigma_spacing is not None:
        path = spread_ratios(path[::-1], sampling, len(path))
        times = times_of(path, np.log(ratios))
    end = 0.0 if sampling.ends_clean else ratios[0]
    path = np.append(path, end).astype(np.float32).astype(np.float64)
    alpha = 1 / np.sqrt(path**2 + 1)
    alpha[-1] = 1
    # Sampling starts from y = s * noise, which is a little less than x_T = noise, unless the spacing is 'leading'.
    input_scale = np.ones(len(times))
    if sampling.timestep_spacing != 'leading':
        input_scale[0] = path[0] * alpha[0]
    return _Path(times, path[:-1], path[1:], alpha[:-1], alpha[1:], input_scale)


def _euler(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    path = _path(process, sampling, num_steps, 'euler')
    return make_table(
        t=path.times,
        alpha=path.alpha,
        sigma=path.now * path.alpha,
        x=path.next_alpha / path.alpha * path.next / path.now,
        x0=path.next_alpha * (1 - path.next / path.now),
        input_scale=path.input_scale,
    )


def _euler_ancestral(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    path = _path(process, sampling, num_steps, 'euler_ancestral')
    # Down to `down` and, with fresh noise, up to `next` again: down^2 + up^2 = next^2.
    up = path.next * np.sqrt(path.now**2 - path.next**2) / path.now
    down = path.next**2 / path.now
    return make_table(
        t=path.times,
        alpha=path.alpha,
        sigma=path.now * path.alpha,
        x=path.next_alpha / path.alpha * down / path.now,
        x0=path.next_alpha * (1 - down / path.now),
        std=path.next_alpha * up,
        is_noisy=(up > 0).astype(np.float32),
        input_scale=path.input_scale,
    )


def _heun(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    path = _path(process, sampling, num_steps, 'heun')
    calls = 2 * len(path.times) - 1
    first, second = slice(0, calls, 2), slice(1, calls, 2)
    zeros = {name: np.zeros(calls) for name in ('x', 'x0', 'previous_x', 'previous_x0')}
    # The first call of a step is a step of euler.
    zeros['x'][first] = path.next_alpha / path.alpha * path.next / path.now
    zeros['x0'][first] = path.next_alpha * (1 - path.next / path.now)
    # The second call, at the end of that step, starts again with the mean of both slopes (y - x0) / s:
    #   y_next = y + length / 2 * ((y - x0) / now + (y' - x0') / next).
    now, following, scale, next_scale = (a[:-1] for a in (path.now, path.next, path.alpha, path.next_alpha))
    half = (following - now) / 2
    zeros['x'][second] = half / following
    zeros['x0'][second] = -next_scale * half / following
    zeros['previous_x'][second] = next_scale / scale * (1 + half / now)
    zeros['previous_x0'][second] = -next_scale * half / now
    # Both calls at one level see the same time: t0, t1, t1, t2, t2, ...
    at = (np.arange(calls) + 1) // 2
    return make_table(
        t=path.times[at],
        alpha=path.alpha[at],
        sigma=(path.now * path.alpha)[at],
        x=zeros['x'],
        x0=zeros['x0'],
        previous_x=zeros['previous_x'],
        previous_x0=(zeros['previous_x0'],),
        input_scale=np.where(np.arange(calls) == 0, path.input_scale[0], 1),
    )


# 'log_linear' would not lead to the noise of its times.
_INTERPOLATION = {'interpolation_type': ('interpolation_type', {'linear': 'linear'})}

EULER = Sampler(
    diffusers_class='EulerDiscreteScheduler',
    defaults={**LINSPACE, 'interpolation_type': 'linear', 'final_sigmas_type': 'zero', **SIGMA_SPACINGS},
    meanings={**_INTERPOLATION, **FINAL_SIGMAS},
    columns=_euler,
)
EULER_ANCESTRAL = Sampler(
    diffusers_class='EulerAncestralDiscreteScheduler', defaults=LINSPACE, columns=_euler_ancestral
)
HEUN = Sampler(
    diffusers_class='HeunDiscreteScheduler',
    defaults={**LINSPACE, 'clip_sample': False, 'clip_sample_range': 1.0, **SIGMA_SPACINGS},
    columns=_heun,
    network_calls=lambda steps: 2 * steps - 1,
)
