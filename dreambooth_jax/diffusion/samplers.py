"""From noise to images: ancestral sampling (ddpm), DDIM and DPM-Solver++, all as one scan over the same step.

Every sampler makes the same update with other coefficients,

    x <- a * x + b * x0 + c * previous x0 + d * noise prediction + std * fresh noise,

so a sampler is a function that makes the table of a, b, c, d and std, with one table row per denoising step. `sample`
runs any such table. Tables are made on the host, in float32 and in diffusers' order of operations where differences
cancel (schedules.py says why).

The samplers do what diffusers does. The scheduler file decides, and where it says nothing, the defaults of the
sampler's own class (scheduler_files.py):

  ddpm          DDPMScheduler: Ho et al. 2020, equations 6, 7 and 15; learned variance of Nichol & Dhariwal 2021.
  ddim          DDIMScheduler with use_clipped_model_output: Song et al. 2021, equations 12 and 16. With eta 0 it adds
                no noise, with eta 1 as much as ddpm.
  dpmsolver++   DPMSolverMultistepScheduler (dpmsolver++, order 2, midpoint, last sigma zero, unless the file says
                otherwise): Lu et al. 2022, algorithm 2; the first and the last step are of first order.

The clean prediction x0 is thresholded where the schedule says so, or else clipped; dpmsolver++ never clips, as in
diffusers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.guidance import dynamic_threshold
from dreambooth_jax.diffusion.noise import sample_noise
from dreambooth_jax.diffusion.prediction import convert
from dreambooth_jax.diffusion.scheduler_files import Sampling
from dreambooth_jax.diffusion.schedules import Schedule, posterior_of

# Replaces an alphas_cumprod of 0, so that dpmsolver++'s first sigma is finite: scheduling_dpmsolver_multistep.py.
_TINY_ALPHAS_CUMPROD = np.float32(2.0**-24)
# With fewer steps than this, the last step of dpmsolver++ is better of first order: the same file.
_FEW_STEPS = 15
# Lowest variance whose logarithm is taken: scheduling_ddpm.py.
_MIN_VARIANCE = np.float32(1e-20)


class StepTable(NamedTuple):
    """The coefficients of every denoising step: t is i32[N], the others are f32[N].

    A table row, for one step, has the same fields without [N].
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    previous_x0: np.ndarray
    noise_prediction: np.ndarray
    std: np.ndarray  # Standard deviation of the fresh noise, unless the variance is learned.
    log_variance_low: np.ndarray  # Learned range: the log variances that -1 and 1 stand for.
    log_variance_high: np.ndarray
    is_noisy: np.ndarray  # 1 where the step adds fresh noise, otherwise 0.


def sample(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    x_T: jax.Array,
    keys: jax.Array,
    *,
    schedule: Schedule,
    sampler: str = 'ddpm',
    num_steps: int,
    eta: float = 0.0,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Generates images from noise, f32[B, H, W, C]: the last x0, not clipped further.

    The function is pure. It may run under jax.jit with all arguments static except x_T, keys and noise.

    Args:
        denoise: (x_t f32[B, H, W, C], t i32[B]) -> [B, H, W, C], or [B, H, W, 2C] with variance channels after the
            prediction; guidance is already applied. It is traced once. ddpm uses variance channels if its variance_type
            is a learned one; otherwise they are dropped.
        x_T: f32[B, H, W, C], the initial noise (initial_noise).
        keys: key[B], one per example, for the fresh noise. An example's noise is the same in any batch.
        schedule: says what the network predicts and, by schedule.sampling(sampler), how x0 is limited and how times are
            spaced.
        sampler: 'ddpm', 'ddim' or 'dpmsolver++'.
        num_steps: the number of denoising steps, 1 to T.
        eta: ddim's share of fresh noise in [0, 1]; the other samplers take only 0.
        noise: f32[N, B, H, W, C] with N = len(timesteps), fresh noise to use instead of sampling from keys.
    Raises: ValueError for an unknown sampler or a number of steps, an eta or a shape that is not allowed.
    """
    table = step_table(schedule, sampler, num_steps, eta)
    x_T = jnp.asarray(x_T, jnp.float32)
    if noise is not None and noise.shape != (len(table.t), *x_T.shape):
        raise ValueError(f'noise has shape {noise.shape}; {(len(table.t), *x_T.shape)} is needed.')
    adds_noise = bool(table.is_noisy.any())

    def step(carry, inputs):
        x, previous_x0 = carry
        row, index, fresh = inputs
        if adds_noise and fresh is None:
            fresh = sample_noise(_fold(keys, index + 1), x.shape[1:])  # 0 is the number of the initial noise.
        answer = denoise(x, jnp.full((x.shape[0],), row.t, jnp.int32))
        return denoise_step(answer, x, previous_x0, row, fresh, schedule=schedule, sampler=sampler), None

    inputs = (jax.tree.map(jnp.asarray, table), jnp.arange(len(table.t)), noise if adds_noise else None)
    (x, _), _ = jax.lax.scan(step, (x_T, jnp.zeros_like(x_T)), inputs)
    return x


def denoise_step(
    answer: jax.Array,
    x: jax.Array,
    previous_x0: jax.Array,
    row: StepTable,
    fresh_noise: jax.Array | None,
    *,
    schedule: Schedule,
    sampler: str,
) -> tuple[jax.Array, jax.Array]:
    """Takes one step of any sampler.

    Args:
        answer: [B, H, W, C or 2C], the network's output for x and row.t.
        x: f32[B, H, W, C].
        previous_x0: f32[B, H, W, C], the x0 that the previous step returned; zeros in the first step.
        row: one table row of step_table for the same schedule and sampler.
        fresh_noise: f32[B, H, W, C]; None if the table adds no noise.
    Returns: (next x, x0), each f32[B, H, W, C].
    Raises: ValueError if the network's channels do not fit.
    """
    sampling = schedule.sampling(sampler)
    learns_variance = sampler == 'ddpm' and sampling.variance_type in ('learned', 'learned_range')
    prediction, variance = _split_channels(answer.astype(jnp.float32), x.shape[-1], learns_variance)
    known = dict(source=schedule.prediction_type, x_t=x, alpha=row.alpha, sigma=row.sigma)
    x0 = _limit(convert(prediction, target='sample', **known), sampling)
    # ddpm needs these two terms; the other samplers add one more.
    new = row.x * x + row.x0 * x0
    if sampler == 'dpmsolver++':
        new = new + row.previous_x0 * previous_x0
    if sampler == 'ddim':
        # Take the noise that belongs to the limited x0 (diffusers' use_clipped_model_output). With the predicted noise
        # instead, the two would no longer add up to x, and guided pixel models would drift into wrong colours.
        if sampling.thresholding or sampling.clip_sample:
            prediction, known['source'] = x0, 'sample'
        new = new + row.noise_prediction * convert(prediction, target='epsilon', **known)
    if fresh_noise is not None:
        std = _learned_std(sampling.variance_type, variance, row) if learns_variance else row.std
        new = new + std * fresh_noise
    return new, x0


def step_table(schedule: Schedule, sampler: str, num_steps: int, eta: float = 0.0) -> StepTable:
    """Returns the coefficients of every step as NumPy arrays; arguments and errors are those of `sample`."""
    sampling = schedule.sampling(sampler)
    if not 0.0 <= eta <= 1.0 or (eta and sampler != 'ddim'):
        raise ValueError(f'eta is {eta} with sampler {sampler}; ddim takes 0 to 1, the others 0.')
    if sampler == 'dpmsolver++':
        return _multistep(*_solver_path(schedule, sampling, num_steps), sampling)
    times = timesteps(schedule, sampler, num_steps)
    if schedule.prediction_type == 'epsilon' and schedule.alphas_cumprod[times[0]] == 0:
        raise ValueError(
            f'sampler {sampler} starts at time {times[0]}, where this schedule leaves nothing of the image '
            f'(rescale_betas_zero_snr), which a prediction of noise cannot find again; take dpmsolver++.'
        )
    if sampler == 'ddpm':
        return _ancestral(schedule, times, sampling)
    return _implicit(schedule, times, sampling, num_steps, eta)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Samples x_T, f32[B, *shape], from a standard normal distribution.

    Args:
        keys: key[B]; the same keys may go to `sample`, which samples other numbers from them.
    """
    return sample_noise(_fold(keys, 0), shape)


def timesteps(schedule: Schedule, sampler: str, num_steps: int) -> np.ndarray:
    """Returns the times at which `sampler` calls the network, i64[N], falling; equal to diffusers' set_timesteps.

    N is num_steps, or less if dpmsolver++ with 'trailing' spacing leaves out the times below lambda_min_clipped. Times
    may repeat only if dpmsolver++ spaces sigma / alpha instead of the times: the network then sees other noise at the
    same time.

    Args:
        schedule: its sampling(sampler) says how times are spaced.
        sampler: 'ddpm', 'ddim' or 'dpmsolver++'.
        num_steps: 1 to T.
    Raises: ValueError for an unknown sampler, or if the times would repeat or leave [0, T).
    Source: Lin et al. 2023, table 2; set_timesteps of DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler.
    """
    sampling = schedule.sampling(sampler)
    if sampler == 'dpmsolver++':
        return _solver_path(schedule, sampling, num_steps)[0]
    return _spread_times(schedule, sampling, sampler, num_steps)


def _spread_times(schedule: Schedule, sampling: Sampling, sampler: str, num_steps: int) -> np.ndarray:
    total = schedule.num_train_timesteps
    _check_steps(num_steps, total)
    # DPM-Solver++ spreads one time more and leaves out t = 0, because it ends at sigma zero anyway.
    extra = sampler == 'dpmsolver++'
    last = _num_usable_times(schedule, sampling.lambda_min_clipped) if extra else total
    if sampling.timestep_spacing == 'linspace':
        rising = np.linspace(0, last - 1, num_steps + extra).round()[extra:]
    elif sampling.timestep_spacing == 'leading':
        rising = (np.arange(num_steps + extra) * (last // (num_steps + extra)))[extra:] + sampling.steps_offset
    else:
        rising = np.arange(last, 0, -total / num_steps).round()[::-1] - 1
        # At 61 steps, for example, rounding gives one time too many; diffusers then returns -1.
        rising = rising[rising >= 0]
    times = rising[::-1].astype(np.int64)
    if len(times) == 0 or times[0] >= total or np.any(np.diff(times) >= 0):
        raise ValueError(
            f'steps is {num_steps}: sampler {sampler} cannot spread that many different times over [0, {last}) '
            f'({sampling.timestep_spacing}, offset {sampling.steps_offset}); take fewer.'
        )
    return times


def _check_steps(num_steps: int, total: int) -> None:
    if not 1 <= num_steps <= total:
        raise ValueError(f'steps is {num_steps}; 1 to {total} denoise steps are possible.')


def _num_usable_times(schedule: Schedule, lambda_min_clipped: float) -> int:
    # How many times, counted from 0, have a log(alpha / sigma) of at least lambda_min_clipped.
    alphas_cumprod = _finite_alphas_cumprod(schedule)
    log_ratio = np.log(np.sqrt(alphas_cumprod)) - np.log(np.sqrt(1 - alphas_cumprod))
    return len(log_ratio) - int(np.searchsorted(log_ratio[::-1], lambda_min_clipped))


def _finite_alphas_cumprod(schedule: Schedule) -> np.ndarray:
    alphas_cumprod = schedule.alphas_cumprod.copy()
    if schedule.rescale_betas_zero_snr:
        alphas_cumprod[-1] = _TINY_ALPHAS_CUMPROD
    return alphas_cumprod


def _solver_path(schedule: Schedule, sampling: Sampling, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns dpmsolver++'s times, i64[N], and sigma / alpha, f64[N + 1].

    The last value of sigma / alpha is that of the finished image.
    """
    alphas_cumprod = _finite_alphas_cumprod(schedule)
    ratios = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
    if sampling.sigma_spacing is None:
        times = _spread_times(schedule, sampling, 'dpmsolver++', num_steps)
        path = ratios[times]
    else:
        _check_steps(num_steps, len(ratios))
        path = _spread_ratios(ratios, sampling, num_steps)
        times = _times_of(path, np.log(ratios))
        # diffusers rounds in these cases and truncates in the others.
        if sampling.sigma_spacing in ('karras', 'lu') and schedule.beta_schedule != 'squaredcos_cap_v2':
            times = times.round()
        times = times.astype(np.int64)
    end = 0.0 if sampling.ends_clean else ratios[0]
    return times, np.append(path, end).astype(np.float32).astype(np.float64)


def _spread_ratios(ratios: np.ndarray, sampling: Sampling, num_steps: int) -> np.ndarray:
    # sigma / alpha of every step, falling, evenly spaced in some function of it. 'karras' is Karras et al. 2022,
    # equation 5, with rho 7; 'lu' (Lu et al. 2022) and 'exponential' are even in its logarithm; 'beta' (Lee et al.
    # 2024) takes the quantiles of a beta distribution.
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


def _times_of(path: np.ndarray, log_ratios: np.ndarray) -> np.ndarray:
    # The fractional times at which the schedule has these sigma / alpha, interpolated in the logarithm. The order of
    # operations is that of diffusers, because the result is truncated to whole numbers and the last digit can decide.
    log_path = np.log(np.maximum(path, 1e-10))
    low = np.clip(np.searchsorted(log_ratios, log_path, side='right') - 1, 0, len(log_ratios) - 2)
    share = (log_ratios[low] - log_path) / (log_ratios[low] - log_ratios[low + 1])
    share = np.clip(share, 0, 1)
    return (1 - share) * low + share * (low + 1)


def _ancestral(schedule: Schedule, times: np.ndarray, sampling: Sampling) -> StepTable:
    now = schedule.alphas_cumprod[times]
    before = np.append(now[1:], np.float32(1))
    posterior = posterior_of(now, before)
    small = np.maximum(posterior.variance, _MIN_VARIANCE)
    # The '_log' types are the same variances; diffusers computes them by way of logarithms.
    variance = posterior.beta if sampling.variance_type.startswith('fixed_large') else small
    noisy = (times > 0).astype(np.float32)
    return _table(
        times,
        alpha=now**0.5,
        sigma=(1 - now) ** 0.5,
        x=posterior.x_t_coefficient,
        x0=posterior.x0_coefficient,
        std=variance**0.5 * noisy,
        log_variance_low=np.log(small),
        log_variance_high=np.log(posterior.beta),
        is_noisy=noisy,
    )


def _implicit(schedule: Schedule, times: np.ndarray, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    now = schedule.alphas_cumprod[times]
    # The previous time is a fixed stride away, as in diffusers, not the next time of the list. The two differ unless
    # the spacing is 'leading'.
    previous = times - schedule.num_train_timesteps // num_steps
    final = np.float32(1) if sampling.set_alpha_to_one else schedule.alphas_cumprod[0]
    before = np.where(previous >= 0, schedule.alphas_cumprod[np.maximum(previous, 0)], final)
    variance = (1 - before) / (1 - now) * (1 - now / before)
    std = np.float32(eta) * variance**0.5
    return _table(
        times,
        alpha=now**0.5,
        sigma=(1 - now) ** 0.5,
        x0=before**0.5,
        noise_prediction=np.maximum(1 - before - std**2, 0) ** 0.5,  # At eta 1 rounding may give less than 0.
        std=std,
        is_noisy=(std > 0).astype(np.float32),
    )


def _multistep(times: np.ndarray, ratio: np.ndarray, sampling: Sampling) -> StepTable:
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
    return _table(
        times,
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        x=sigma[1:] / sigma[:-1] * decay ** (speed - 1),
        x0=first_order + slope,
        previous_x0=-slope,
        std=std,
        is_noisy=(std > 0).astype(np.float32),
    )


def _table(times: np.ndarray, **columns: np.ndarray) -> StepTable:
    # Coefficients that a sampler does not use are 0.
    zeros = np.zeros(len(times), np.float32)
    given = {name: np.asarray(column, np.float32) for name, column in columns.items()}
    return StepTable(t=times.astype(np.int32), **{name: given.get(name, zeros) for name in StepTable._fields[1:]})


def _split_channels(answer: jax.Array, channels: int, learns_variance: bool) -> tuple[jax.Array, jax.Array | None]:
    if answer.shape[-1] == 2 * channels:
        return answer[..., :channels], answer[..., channels:]
    if learns_variance or answer.shape[-1] != channels:
        needed = f'{2 * channels} (prediction and variance)' if learns_variance else f'{channels} or {2 * channels}'
        raise ValueError(f'The network answers with {answer.shape[-1]} channels; the sampler needs {needed}.')
    return answer, None


def _limit(x0: jax.Array, sampling: Sampling) -> jax.Array:
    if sampling.thresholding:
        return dynamic_threshold(x0, sampling.dynamic_thresholding_ratio, sampling.sample_max_value)
    if sampling.clip_sample:
        return jnp.clip(x0, -sampling.clip_sample_range, sampling.clip_sample_range)
    return x0


def _learned_std(variance_type: str, variance: jax.Array, row: StepTable) -> jax.Array:
    if variance_type == 'learned':
        return jnp.sqrt(variance) * row.is_noisy
    share = (variance + 1) / 2
    return jnp.exp(0.5 * (share * row.log_variance_high + (1 - share) * row.log_variance_low)) * row.is_noisy


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
