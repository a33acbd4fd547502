"""Noise schedules: the betas of the discrete variance-preserving process (discrete_vp.py).

Everything is computed on the host in float32 and in the order of diffusers' schedulers, because 1 - alphas_cumprod
cancels: with another order of operations small betas change by 1e-4 of their size, and then no sampler agrees with
diffusers.

Sources: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled_linear), Nichol & Dhariwal 2021 (squaredcos_cap_v2), Lin
    et al. 2023 (zero terminal SNR). scheduler_files.py says how diffusers' files are read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreambooth_jax.diffusion import scheduler_files
from dreambooth_jax.diffusion.discrete_vp import DiscreteVP
from dreambooth_jax.diffusion.scheduler_files import BETA_SCHEDULES, PREDICTION_TYPES, VARIANCE_TYPES

# Highest beta of the cosine schedule (Nichol & Dhariwal 2021, section 3.2): 1 would erase x_t at T - 1.
_COSINE_MAX_BETA = 0.999
_COSINE_OFFSET = 0.008

# The process that these betas are of, by its older name.
Schedule = DiscreteVP


def make_schedule(
    beta_schedule: str = 'linear',
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale_betas_zero_snr: bool = False,
    trained_betas: Sequence[float] | np.ndarray | None = None,
    prediction_type: str = 'epsilon',
    variance_type: str = 'fixed_small',
    **written: Any,
) -> DiscreteVP:
    """Makes a schedule from its formula.

    Args:
      beta_schedule: one of BETA_SCHEDULES; not used if trained_betas is given.
      num_train_timesteps: T, > 1; not used if trained_betas is given.
      beta_start: the first beta; squaredcos_cap_v2 does not use it.
      beta_end: the last beta; squaredcos_cap_v2 does not use it.
      rescale_betas_zero_snr: see rescale_zero_terminal_snr.
      trained_betas: f32[T], the betas themselves; None: the formula.
      prediction_type, variance_type: of DiscreteVP.
      written: keys of scheduler files that say how images are generated, such as timestep_spacing.

    Raises:
      ValueError: it names the key, its value and what is allowed.
    """
    _check_choice('prediction_type', prediction_type, PREDICTION_TYPES)
    _check_choice('variance_type', variance_type, VARIANCE_TYPES)
    if trained_betas is not None:
        betas = np.array(trained_betas, np.float32)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f'trained_betas has shape {betas.shape}; a list of at least 2 numbers is needed.')
    else:
        _check_choice('beta_schedule', beta_schedule, BETA_SCHEDULES)
        if num_train_timesteps < 2:
            raise ValueError(f'num_train_timesteps is {num_train_timesteps}; it must be at least 2.')
        if beta_schedule == 'linear':
            betas = _linspace(beta_start, beta_end, num_train_timesteps)
        elif beta_schedule == 'scaled_linear':
            betas = _linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        else:
            betas = _cosine_betas(num_train_timesteps)
    if rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    # Schedules are shared and are static arguments of compiled functions, so their arrays must never change.
    alphas_cumprod = _cumulative_alphas(betas)
    betas.setflags(write=False)
    alphas_cumprod.setflags(write=False)
    return DiscreteVP(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        prediction_type=prediction_type,
        variance_type=variance_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        beta_schedule=beta_schedule,
        written={'variance_type': variance_type, **scheduler_files.check_written(written)},
    )


def from_config(config: Mapping[str, Any]) -> DiscreteVP:
    """Makes the schedule of a diffusers scheduler_config.json.

    It has the noise that the file's class trains with, and the keys that say how samplers generate with it.

    Args:
      config: the contents of the file. scheduler_files.py says what missing keys mean.

    Raises:
      ValueError: it names the key, its value and what is allowed.
    """
    try:
        noise, written = scheduler_files.read(config)
        return make_schedule(**{**noise, **written})
    except ValueError as error:
        raise ValueError(f'Scheduler configuration: {error}') from None


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Changes betas so that x_{T-1} is pure noise and the first step stays the same; f32[T] to f32[T].

    A model that predicts epsilon cannot sample from the last time of such a schedule: nothing of x0 is left in x_t, so
    epsilon does not determine x0. Use v_prediction or sample.

    Source: Lin et al. 2023, algorithm 1.
    """
    root = np.sqrt(_cumulative_alphas(np.asarray(betas, np.float32)))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alphas_cumprod = root**2
    alphas = np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return (1 - alphas).astype(np.float32)


def _cumulative_alphas(betas: np.ndarray) -> np.ndarray:
    # torch.cumprod multiplies float32 numbers in float64 and rounds each result.
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    # Computed from both ends in float32, as torch.linspace does.
    start, end = np.float32(start), np.float32(end)
    step = (end - start) / np.float32(count - 1)
    index = np.arange(count)
    from_start = start + step * index.astype(np.float32)
    from_end = end - step * (count - 1 - index).astype(np.float32)
    return np.where(index < count // 2, from_start, from_end).astype(np.float32)


def _cosine_betas(count: int) -> np.ndarray:
    def signal(time: float) -> float:
        return math.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2

    ratios = [signal((i + 1) / count) / signal(i / count) for i in range(count)]
    return np.array([min(1 - ratio, _COSINE_MAX_BETA) for ratio in ratios], np.float32)


def _check_choice(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f'{key} is {value!r}; allowed: {", ".join(allowed)}.')
