"""From noise to images: one loop that takes the steps of any sampler.

A sampler is a table of coefficients (step_table.py); sampler_list.py has those that there are. They do what the classes
of diffusers do. The scheduler file decides, and where it says nothing, the defaults of the sampler's own class
(scheduler_files.py).

The clean prediction x0 is thresholded where the file says so, or else clipped, if the sampler does either.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.guidance import dynamic_threshold
from dreambooth_jax.diffusion.noise import sample_noise
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.diffusion.step_table import Sampling, StepTable


class Memory(NamedTuple):
    """What one step leaves to the next.

    Attributes:
      previous_x0: the x0 of the calls before, the newest first, each f32[B, H, W, C]; as many as the table reads.
      previous_x: f32[B, H, W, C], the x of the call before, after any correction; None if the table reads none.
    """

    previous_x0: tuple[jax.Array, ...] = ()
    previous_x: jax.Array | None = None

    @classmethod
    def empty(cls, table: StepTable, x: jax.Array) -> 'Memory':
        """Returns the zeros that the first step finds, of the shape of x; `table` may also be one row."""
        reads_x = table.previous_x is not None or table.correction is not None
        return cls((jnp.zeros_like(x),) * len(table.previous_x0), jnp.zeros_like(x) if reads_x else None)


def sample(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    x_T: jax.Array,
    keys: jax.Array,
    *,
    schedule: NoiseProcess,
    sampler: str = 'ddpm',
    num_steps: int,
    eta: float = 0.0,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Generates images from noise, f32[B, H, W, C]: the last x0, not clipped further.

    The function is pure. It may run under jax.jit with all arguments static except x_T, keys and noise.

    Args:
      denoise: (x_t f32[B, H, W, C], t f32[B]) -> [B, H, W, C], or [B, H, W, 2C] with variance channels after the
        prediction; guidance is already applied. It is traced once. ddpm uses variance channels if its variance_type
        is a learned one; otherwise they are dropped.
      x_T: f32[B, H, W, C], the initial noise (initial_noise).
      keys: key[B], one per example, for the fresh noise. An example's noise is the same in any batch.
      schedule: the noise process. It says what the network predicts and, by schedule.sampling(sampler), how x0 is
        limited and how times are spaced.
      sampler: the name of a sampler, one of sampler_list.SAMPLERS.
      num_steps: the number of denoising steps, 1 to T.
      eta: ddim's share of fresh noise in [0, 1]; the other samplers take only 0.
      noise: f32[N, B, H, W, C] with N = len(timesteps), fresh noise to use instead of sampling from keys.

    Raises:
      ValueError: for an unknown sampler or a number of steps, an eta or a shape that is not allowed.
    """
    x_T = jnp.asarray(x_T, jnp.float32)
    schedule = schedule.of_shape(x_T.shape[1:3])
    table = step_table(schedule, sampler, num_steps, eta)
    sampling = schedule.sampling(sampler)
    if noise is not None and noise.shape != (len(table.t), *x_T.shape):
        raise ValueError(f'noise has shape {noise.shape}; {(len(table.t), *x_T.shape)} is needed.')

    def step(carry, inputs):
        x, memory = carry
        row, index, fresh = inputs
        if table.adds_noise and fresh is None:
            fresh = sample_noise(_fold(keys, index + 1), x.shape[1:])  # 0 is the number of the initial noise.
        if row.input_scale is not None:
            x = row.input_scale * x
        answer = denoise(x, schedule.network_time(jnp.full((x.shape[0],), row.t, jnp.float32)))
        new, _, memory = denoise_step(answer, x, memory, row, fresh, process=schedule, sampling=sampling)
        return (new, memory), None

    inputs = (jax.tree.map(jnp.asarray, table), jnp.arange(len(table.t)), noise if table.adds_noise else None)
    (x, _), _ = jax.lax.scan(step, (x_T, Memory.empty(table, x_T)), inputs)
    return x


def denoise_step(
    answer: jax.Array,
    x: jax.Array,
    memory: Memory,
    row: StepTable,
    fresh_noise: jax.Array | None,
    *,
    process: NoiseProcess,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array, Memory]:
    """Takes one step of any sampler.

    Args:
      answer: [B, H, W, C or 2C], the network's output for x and row.t.
      x: f32[B, H, W, C], as the network saw it.
      memory: what the previous step returned; Memory.empty in the first step.
      row: one table row of step_table for the same process and sampler.
      fresh_noise: f32[B, H, W, C]; None if the table adds no noise.
      process: says what the network predicts.
      sampling: process.sampling of the sampler.

    Returns:
      (next x f32[B, H, W, C], x0 f32[B, H, W, C], what the next step needs).

    Raises:
      ValueError: if the network's channels do not fit.
    """
    prediction, variance = _split_channels(answer.astype(jnp.float32), x.shape[-1], sampling.learns_variance)
    x0 = _limit(process.to_x0(prediction, x, row.alpha, row.sigma), sampling)
    corrected = x
    if row.correction is not None:
        corrected = row.correction.x * x + row.correction.previous_x * memory.previous_x + row.correction.x0 * x0
        for weight, earlier in zip(row.correction.previous_x0, memory.previous_x0, strict=True):
            corrected = corrected + weight * earlier
    new = row.x * corrected + row.x0 * x0
    for weight, earlier in zip(row.previous_x0, memory.previous_x0, strict=True):
        new = new + weight * earlier
    if row.previous_x is not None:
        new = new + row.previous_x * memory.previous_x
    if row.noise_prediction is not None:
        # Take the noise that belongs to the limited x0 (diffusers' use_clipped_model_output). With the predicted noise
        # instead, the two would no longer add up to x, and guided pixel models would drift into wrong colours.
        if sampling.thresholding or sampling.clip_sample:
            noise = (x - row.alpha * x0) / row.sigma
        else:
            noise = process.to_noise(prediction, x, row.alpha, row.sigma)
        new = new + row.noise_prediction * noise
    if fresh_noise is not None:
        std = _learned_std(sampling.variance_type, variance, row) if sampling.learns_variance else row.std
        new = new + std * fresh_noise
    kept = corrected if memory.previous_x is not None else None
    return new, x0, Memory((x0, *memory.previous_x0[:-1]) if memory.previous_x0 else (), kept)


def step_table(schedule: NoiseProcess, sampler: str, num_steps: int, eta: float = 0.0) -> StepTable:
    """Returns the coefficients of every step as NumPy arrays; arguments and errors are those of `sample`."""
    return schedule.step_table(sampler, num_steps, eta)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Samples x_T, f32[B, *shape], from a standard normal distribution.

    Args:
      keys: key[B]; the same keys may go to `sample`, which samples other numbers from them.
    """
    return sample_noise(_fold(keys, 0), shape)


def timesteps(schedule: NoiseProcess, sampler: str, num_steps: int) -> np.ndarray:
    """Returns the times at which `sampler` calls the network, f32[N], never rising; equal to diffusers' set_timesteps.

    N is `network_calls`, or less if dpmsolver++ with 'trailing' spacing leaves out the times below lambda_min_clipped.
    Times may repeat: heun calls the network twice at every level between the ends, and dpmsolver++ rounds the times
    that belong to a spacing of sigma / alpha.

    Args:
      schedule: its sampling(sampler) says how times are spaced.
      sampler: the name of a sampler.
      num_steps: 1 to T.

    Raises:
      ValueError: for an unknown sampler, or if the times would leave [0, T) or steps have no length.
    """
    return step_table(schedule, sampler, num_steps).t


def network_calls(sampler: str, num_steps: int) -> int:
    """Returns how many times `sampler` calls the network for one image without guidance."""
    return SAMPLERS[sampler].network_calls(num_steps)


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
