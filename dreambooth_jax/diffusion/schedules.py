"""Noise schedules: how much image and how much noise are in x_t at every time t.

Conventions, for the whole package:
  x_t = alpha * x0 + sigma * noise, with alpha^2 + sigma^2 = 1 (variance preserving) and alpha^2 = alphas_cumprod[t].
  t runs from 0 (almost clean) to T - 1 (almost noise); t = -1 stands for the clean image (alphas_cumprod 1).
  Images and latents are NHWC; images lie in [-1, 1].

Everything is computed on the host in float32 and in the order of diffusers' schedulers, because 1 - alphas_cumprod
cancels: another order of operations moves small betas by 1e-4 of their size and then no sampler agrees.

Sources: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled_linear), Nichol & Dhariwal 2021 (squaredcos_cap_v2),
Lin et al. 2023 (zero terminal SNR). How diffusers' files are read: scheduler_files.py.
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
    """One noise schedule and what a model trained on it predicts. Compared and hashed by identity: a static argument.

    Attributes:
        betas: f32[T], noise variance added by each step, in (0, 1].
        alphas_cumprod: f32[T], alpha^2 of each time; 0 at T - 1 with zero terminal SNR.
        prediction_type: one of PREDICTION_TYPES.
        variance_type: what the network learned, one of VARIANCE_TYPES; 'learned*' ones answer with twice the channels.
        rescale_betas_zero_snr: whether betas were rescaled, so that alphas_cumprod[T - 1] is 0.
        beta_schedule: the formula of the betas.
        written: what is said of generating, by the keys of scheduler files; see `sampling`.
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
        """T."""
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        """Whether the model answers with variance channels behind the prediction."""
        return self.variance_type in ('learned', 'learned_range')

    def sampling(self, sampler: str) -> Sampling:
        """How `sampler` generates with this schedule: by what is written, else by the defaults of the sampler's own
        class.

        Raises: ValueError for an unknown sampler, or for what is written if that sampler cannot sample so.
        """
        return scheduler_files.sampling(sampler, self.written)


class Posterior(NamedTuple):
    """q(x_previous | x_t, x0) = N(x0_coefficient * x0 + x_t_coefficient * x_t, variance), all f32 of t's shape.

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
    """Schedule from its formula.

    Args:
        beta_schedule: one of BETA_SCHEDULES; unused when trained_betas is given.
        num_train_timesteps: T, > 1.
        beta_start: first beta; unused by squaredcos_cap_v2.
        beta_end: last beta; unused by squaredcos_cap_v2.
        rescale_betas_zero_snr: see rescale_zero_terminal_snr.
        trained_betas: f32[T], given betas.
        prediction_type, variance_type: of Schedule.
        written: keys of scheduler files that say how images are generated, such as timestep_spacing.
    Raises: ValueError naming the key, its value and what is allowed.
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
    """Schedule of a diffusers scheduler_config.json: what its class trained with, and how samplers generate with it.

    Args:
        config: the file's contents; keys that are left out: scheduler_files.py.
    Raises: ValueError naming the key, its value and what is allowed.
    """
    try:
        noise, written = scheduler_files.read(config)
        return make_schedule(**{**noise, **written})
    except ValueError as error:
        raise ValueError(f'Scheduler configuration: {error}') from None


def alpha_sigma(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shares of image and noise, (alpha, sigma), f32 of t's shape; t is i32[...] in [0, T)."""
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)[t]
    return jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod)


def snr(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Signal-to-noise ratio alpha^2 / sigma^2, f32 of t's shape; t is i32[...] in [0, T)."""
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)[t]
    return alphas_cumprod / (1.0 - alphas_cumprod)


def posterior(schedule: Schedule, t: jax.Array, previous_t: jax.Array) -> Posterior:
    """Coefficients of q(x_previous | x_t, x0).

    Args:
        t: i32[...] in [0, T).
        previous_t: i32[...] below t; negative for the clean image, where the variance is 0.
    Source: Ho et al. 2020, equations 6 and 7, for any two times.
    """
    table = jnp.asarray(schedule.alphas_cumprod)
    now = table[t]
    before = jnp.where(previous_t < 0, 1.0, table[jnp.maximum(previous_t, 0)])
    return posterior_of(now, before)


def posterior_of(alphas_cumprod: Any, previous_alphas_cumprod: Any) -> Posterior:
    """`posterior` from values of alphas_cumprod, f32[...] NumPy or JAX, in diffusers' order of operations."""
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
    """Betas moved so that x_{T-1} is pure noise and the first step stays as it was; f32[T] to f32[T].

    Source: Lin et al. 2023, algorithm 1. A model that predicts epsilon cannot sample from such a schedule's last
    time (nothing of x0 is left in x_t, and epsilon does not tell it); use v_prediction or sample.
    """
    root = np.sqrt(_cumulative_alphas(np.asarray(betas, np.float32)))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alphas_cumprod = root**2
    alphas = np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return (1 - alphas).astype(np.float32)


def _cumulative_alphas(betas: np.ndarray) -> np.ndarray:
    # torch.cumprod multiplies float32 numbers in a double and rounds each result.
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    # From both ends in float32, as torch.linspace.
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
