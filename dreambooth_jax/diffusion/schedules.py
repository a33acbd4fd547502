"""Noise schedules: how much image and how much noise x_t holds at every time t.

Conventions of the whole package:

  x_t = alpha * x0 + sigma * noise, with alpha^2 + sigma^2 = 1 (variance preserving) and alpha^2 = alphas_cumprod[t].
  t runs from 0 (almost clean) to T - 1 (almost noise); t = -1 stands for the clean image (alphas_cumprod 1).
  Images and latents are NHWC; images lie in [-1, 1].

Everything is computed on the host in float32 and in the order of diffusers' schedulers, because 1 - alphas_cumprod
cancels: with another order of operations small betas change by 1e-4 of their size, and then no sampler agrees with
diffusers.

Sources: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled_linear), Nichol & Dhariwal 2021 (squaredcos_cap_v2), Lin
    et al. 2023 (zero terminal SNR). scheduler_files.py says how diffusers' files are read.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import scheduler_files
from dreambooth_jax.diffusion.scheduler_files import BETA_SCHEDULES, PREDICTION_TYPES, VARIANCE_TYPES, Sampling

# Highest beta of the cosine schedule (Nichol & Dhariwal 2021, section 3.2): 1 would erase x_t at T - 1.
_COSINE_MAX_BETA = 0.999
_COSINE_OFFSET = 0.008


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """One noise schedule, and what a model that was trained on it predicts.

    It is compared and hashed by identity, so that it can be a static argument of jitted functions.

    Attributes:
        betas: f32[T], the noise variance that each step adds, in (0, 1].
        alphas_cumprod: f32[T], alpha^2 of each time; 0 at T - 1 with zero terminal SNR.
        prediction_type: one of PREDICTION_TYPES.
        variance_type: which variance the network learned, one of VARIANCE_TYPES. Networks with 'learned' or
            'learned_range' return twice the channels.
        rescale_betas_zero_snr: whether the betas were rescaled, so that alphas_cumprod[T - 1] is 0.
        beta_schedule: the name of the formula of the betas.
        written: what a scheduler file says about generating, by its keys; see `sampling`.
    """

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    prediction_type: str = 'epsilon'
    variance_type: str = 'fixed_small'
    rescale_betas_zero_snr: bool = False
    beta_schedule: str = 'linear'
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_train_timesteps(self) -> int:
        """The number of times, T."""
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        """Whether the model returns variance channels after the channels of the prediction."""
        return self.variance_type in ('learned', 'learned_range')

    def sampling(self, sampler: str) -> Sampling:
        """Returns how `sampler` generates with this schedule.

        Keys that are written decide; for the others the defaults of the sampler's own class in diffusers apply.

        Raises: ValueError for an unknown sampler, or if that sampler cannot do what is written.
        """
        return scheduler_files.sampling(sampler, self.written)


class Posterior(NamedTuple):
    """q(x_previous | x_t, x0) = N(x0_coefficient * x0 + x_t_coefficient * x_t, variance), all f32 of the shape of t.

    beta = 1 - alphas_cumprod[t] / alphas_cumprod[previous_t] is the upper bound of the variance.
    """

    x0_coefficient: Any
    x_t_coefficient: Any
    variance: Any
    beta: Any


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
) -> Schedule:
    """Makes a schedule from its formula.

    Args:
        beta_schedule: one of BETA_SCHEDULES; not used if trained_betas is given.
        num_train_timesteps: T, > 1; not used if trained_betas is given.
        beta_start: the first beta; squaredcos_cap_v2 does not use it.
        beta_end: the last beta; squaredcos_cap_v2 does not use it.
        rescale_betas_zero_snr: see rescale_zero_terminal_snr.
        trained_betas: f32[T], the betas themselves; None: the formula.
        prediction_type, variance_type: of Schedule.
        written: keys of scheduler files that say how images are generated, such as timestep_spacing.
    Raises: ValueError that names the key, its value and what is allowed.
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
    return Schedule(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        prediction_type=prediction_type,
        variance_type=variance_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        beta_schedule=beta_schedule,
        written={'variance_type': variance_type, **scheduler_files.check_written(written)},
    )


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Makes the schedule of a diffusers scheduler_config.json.

    It has the noise that the file's class trains with, and the keys that say how samplers generate with it.

    Args:
        config: the contents of the file. scheduler_files.py says what missing keys mean.
    Raises: ValueError that names the key, its value and what is allowed.
    """
    try:
        noise, written = scheduler_files.read(config)
        return make_schedule(**{**noise, **written})
    except ValueError as error:
        raise ValueError(f'Scheduler configuration: {error}') from None


def alpha_sigma(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the shares of image and noise, (alpha, sigma), f32 of the shape of t; t is i32[...] in [0, T)."""
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)[t]
    return jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod)


def snr(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Returns the signal-to-noise ratio alpha^2 / sigma^2, f32 of the shape of t; t is i32[...] in [0, T)."""
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)[t]
    return alphas_cumprod / (1.0 - alphas_cumprod)


def posterior(schedule: Schedule, t: jax.Array, previous_t: jax.Array) -> Posterior:
    """Returns the coefficients of q(x_previous | x_t, x0).

    Args:
        t: i32[...] in [0, T).
        previous_t: i32[...] below t; negative means the clean image, where the variance is 0.
    Source: Ho et al. 2020, equations 6 and 7, generalized to any two times.
    """
    table = jnp.asarray(schedule.alphas_cumprod)
    now = table[t]
    before = jnp.where(previous_t < 0, 1.0, table[jnp.maximum(previous_t, 0)])
    return posterior_of(now, before)


def posterior_of(alphas_cumprod: Any, previous_alphas_cumprod: Any) -> Posterior:
    """Returns `posterior` from values of alphas_cumprod, f32[...] of NumPy or JAX.

    The order of operations is that of diffusers.
    """
    alpha_step = alphas_cumprod / previous_alphas_cumprod
    beta = 1 - alpha_step
    sigma2, previous_sigma2 = 1 - alphas_cumprod, 1 - previous_alphas_cumprod
    return Posterior(
        x0_coefficient=previous_alphas_cumprod**0.5 * beta / sigma2,
        x_t_coefficient=alpha_step**0.5 * previous_sigma2 / sigma2,
        variance=previous_sigma2 / sigma2 * beta,
        beta=beta,
    )


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
