"""Where the few steps of a sampler lie: its times, or sigma / alpha and the times that belong to them.

Everything is computed on the host, in diffusers' order of operations, because times are rounded or truncated and the
last digit can decide.

Sources: Lin et al. 2023, table 2; Karras et al. 2022; set_timesteps of diffusers' schedulers.
"""

import math
from typing import Any

import numpy as np

from dreambooth_jax.diffusion.step_table import Sampling

# Replaces an alphas_cumprod of 0, so that the first sigma / alpha is finite: scheduling_dpmsolver_multistep.py.
_TINY_ALPHAS_CUMPROD = np.float32(2.0**-24)


def finite_alphas_cumprod(process: Any) -> np.ndarray:
    """Returns alphas_cumprod f32[T] of a discrete process, with a tiny number in place of 0 at the last time."""
    alphas_cumprod = process.alphas_cumprod.copy()
    if process.rescale_betas_zero_snr:
        alphas_cumprod[-1] = _TINY_ALPHAS_CUMPROD
    return alphas_cumprod


def noise_ratios(process: Any) -> np.ndarray:
    """Returns sigma / alpha of every time, f32[T], rising and finite."""
    alphas_cumprod = finite_alphas_cumprod(process)
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5


def check_steps(num_steps: int, total: int) -> None:
    """Checks a number of denoising steps.

    Raises:
      ValueError: unless 1 <= num_steps <= total.
    """
    if not 1 <= num_steps <= total:
        raise ValueError(f'steps is {num_steps}; 1 to {total} denoise steps are possible.')


def spread_times(
    process: Any,
    sampling: Sampling,
    num_steps: int,
    sampler: str,
    *,
    omits_zero: bool = False,
    last: int | None = None,
    whole: bool = True,
) -> np.ndarray:
    """Spreads the times of the steps over [0, T).

    Args:
      process: the discrete process, which says T.
      sampling: says how times are spread.
      num_steps: 1 to T.
      sampler: its name, for the error.
      omits_zero: whether one time more is spread and t = 0 left out, as samplers do that end at sigma 0 anyway.
      last: times are below this one; None: T.
      whole: whether the times of 'linspace' are rounded to whole numbers.

    Returns:
      f64[num_steps], or fewer of them where 'trailing' spacing meets `last`; falling.

    Raises:
      ValueError: if the times would repeat or leave [0, T).
    """
    total = process.num_train_timesteps
    last = total if last is None else last
    check_steps(num_steps, total)
    extra = int(omits_zero)
    if sampling.timestep_spacing == 'linspace' and whole:
        rising = np.linspace(0, last - 1, num_steps + extra).round()[extra:]
    elif sampling.timestep_spacing == 'linspace':
        rising = np.linspace(0, last - 1, num_steps + extra, dtype=np.float32)[extra:]
    elif sampling.timestep_spacing == 'leading':
        rising = (np.arange(num_steps + extra) * (last // (num_steps + extra)))[extra:] + sampling.steps_offset
    else:
        rising = np.arange(last, 0, -total / num_steps).round()[::-1] - 1
        # At 61 steps, for example, rounding gives one time too many; diffusers then returns -1.
        rising = rising[rising >= 0]
    times = rising[::-1].astype(np.float64)
    if len(times) == 0 or times[0] >= total or np.any(np.diff(times) >= 0):
        raise ValueError(
            f'steps is {num_steps}: sampler {sampler} cannot spread that many different times over [0, {last}) '
            f'({sampling.timestep_spacing}, offset {sampling.steps_offset}); take fewer.'
        )
    return times


def spread_ratios(ratios: np.ndarray, sampling: Sampling, num_steps: int) -> np.ndarray:
    """Returns sigma / alpha of every step, f64[num_steps], falling, evenly spaced in some function of it.

    'karras' is Karras et al. 2022, equation 5, with rho 7; 'lu' (Lu et al. 2022) and 'exponential' are even in its
    logarithm; 'beta' (Lee et al. 2024) takes the quantiles of a beta distribution.

    Args:
      ratios: f[T], sigma / alpha of the schedule, rising.
    """
    check_steps(num_steps, len(ratios))
    highest, lowest = (float(ratios[end]) for end in (-1, 0))
    if sampling.sigma_spacing != 'lu':
        highest, lowest = sampling.sigma_max or highest, sampling.sigma_min or lowest
    ramp = np.linspace(0, 1, num_steps)
    if sampling.sigma_spacing == 'karras':
        start, end = highest ** (1 / 7), lowest ** (1 / 7)
        return (start + ramp * (end - start)) ** 7
    if sampling.sigma_spacing == 'beta':
        from scipy import stats  # takes half a second to import

        return lowest + stats.beta.ppf(1 - ramp, 0.6, 0.6) * (highest - lowest)
    if sampling.sigma_spacing == 'lu':
        start, end = (float(np.log(ratios)[index]) for index in (-1, 0))
        return np.exp(start + ramp * (end - start))
    return np.exp(np.linspace(math.log(highest), math.log(lowest), num_steps))


def times_of(path: np.ndarray, log_ratios: np.ndarray) -> np.ndarray:
    """Returns the fractional times at which the schedule has these sigma / alpha, interpolated in the logarithm.

    Args:
      path: f[N], sigma / alpha of each step.
      log_ratios: f[T], the logarithm of the schedule's sigma / alpha, rising.
    """
    log_path = np.log(np.maximum(path, 1e-10))
    low = np.clip(np.searchsorted(log_ratios, log_path, side='right') - 1, 0, len(log_ratios) - 2)
    share = (log_ratios[low] - log_path) / (log_ratios[low] - log_ratios[low + 1])
    share = np.clip(share, 0, 1)
    return (1 - share) * low + share * (low + 1)
