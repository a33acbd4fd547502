"""The discrete variance-preserving process of DDPM: T whole times, alpha^2 + sigma^2 = 1.

  x_t = alpha * x0 + sigma * noise, with alpha^2 = alphas_cumprod[t].
  t runs from 0 (almost clean) to T - 1 (almost noise). Training draws whole numbers, which are float32 here like the
  times of every process; samplers may call the network between them.

Its noise schedule, the betas, is made by schedules.py.

Source: Ho et al. 2020.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import scheduler_files
from dreambooth_jax.diffusion.noise import sample_timesteps
from dreambooth_jax.diffusion.prediction import convert, over_trailing, target_for
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.diffusion.step_table import Sampling, StepTable
from dreambooth_jax.diffusion.times import UNIFORM, TimeDistribution


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteVP:
    """One noise schedule, and what a model that was trained on it predicts; see `process.NoiseProcess`.

    It is compared and hashed by identity, so that it can be a static argument of jitted functions.

    Attributes:
      betas: f32[T], the noise variance that each step adds, in (0, 1].
      alphas_cumprod: f32[T], alpha^2 of each time; 0 at T - 1 with zero terminal SNR.
      prediction_type: one of scheduler_files.PREDICTION_TYPES.
      variance_type: which variance the network learned, one of scheduler_files.VARIANCE_TYPES. Networks with
        'learned' or 'learned_range' return twice the channels.
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

    weightings: ClassVar[tuple[str, ...]] = ()
    has_dynamic_shift: ClassVar[bool] = False

    @property
    def num_train_timesteps(self) -> int:
        """The number of times, T."""
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        """Whether the model returns variance channels after the channels of the prediction."""
        return self.variance_type in ('learned', 'learned_range')

    @property
    def last_time(self) -> float:
        """T - 1."""
        return float(self.num_train_timesteps - 1)

    def described(self, steps: int) -> str:
        """Returns the number of times and what is predicted; the number of steps makes no difference."""
        return f'{self.num_train_timesteps} discrete times ({self.beta_schedule}), {self.prediction_type} predicted'

    def of_shape(self, shape: tuple[int, int]) -> Self:
        """Returns this process, which is the same for images of every size."""
        return self

    def sample_times(self, keys: jax.Array, distribution: TimeDistribution = UNIFORM) -> jax.Array:
        """Samples whole times in [0, T), f32[B], with one key per example, key[B].

        The share u of a distribution is the time floor(u * T), as in diffusers' training scripts.
        """
        total = self.num_train_timesteps
        if distribution.kind == 'uniform' and distribution.shift is None:
            # Whole numbers drawn as such are exactly uniform, and the same as ever for the same keys.
            low, high = distribution.range
            first = min(int(low * total), total - 1)
            t = sample_timesteps(keys, first, max(first + 1, round(high * total)))
        else:
            t = jnp.clip(jnp.floor(distribution.sample(keys) * total), 0, total - 1)
        return t.astype(jnp.float32)

    def network_time(self, t: jax.Array) -> jax.Array:
        """Returns the times as they are: the network is told the number of the step, f32[B]."""
        return t

    def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the shares of image and noise, (alpha, sigma), f32 of the shape of t, whole numbers in [0, T)."""
        alphas_cumprod = self._alphas_cumprod(t)
        return jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod)

    def snr(self, t: jax.Array) -> jax.Array:
        """Returns the signal-to-noise ratio alpha^2 / sigma^2, f32 of the shape of t, whole numbers in [0, T)."""
        alphas_cumprod = self._alphas_cumprod(t)
        return alphas_cumprod / (1.0 - alphas_cumprod)

    def weight(self, t: jax.Array, kind: str) -> jax.Array:
        """Raises ValueError: this process has no weightings but min-SNR, which losses compute from `snr`."""
        raise ValueError(f'weighting is {kind!r}; this process has none.')

    def _alphas_cumprod(self, t: jax.Array) -> jax.Array:
        return jnp.asarray(self.alphas_cumprod)[jnp.asarray(t).astype(jnp.int32)]

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns x_t, f32[B, ...]; x0, noise: [B, ...]; t: [B], whole numbers in [0, T)."""
        alpha, sigma = self.alpha_sigma(t)
        x0, noise = jnp.asarray(x0, jnp.float32), jnp.asarray(noise, jnp.float32)
        return over_trailing(alpha, x0) * x0 + over_trailing(sigma, x0) * noise

    def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns what the network should predict, f32[B, ...]; arguments as of `add_noise`."""
        return target_for(self.prediction_type, x0, noise, *self.alpha_sigma(t))

    def to_x0(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the x0 that a prediction for x_t means, f32[B, ...]; alpha, sigma: f32[B] or f32[], of x_t."""
        known = dict(x_t=x_t, alpha=alpha, sigma=sigma)
        return convert(prediction, source=self.prediction_type, target='sample', **known)

    def to_noise(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the noise that a prediction for x_t means, f32[B, ...]; arguments as of `to_x0`."""
        known = dict(x_t=x_t, alpha=alpha, sigma=sigma)
        return convert(prediction, source=self.prediction_type, target='epsilon', **known)

    def sampling(self, sampler: str) -> Sampling:
        """Returns how `sampler` generates with this schedule.

        Keys that are written decide; for the others the defaults of the sampler's own class in diffusers apply.

        Raises:
          ValueError: for an unknown sampler, or if that sampler cannot do what is written.
        """
        return scheduler_files.sampling(sampler, self.written)

    def step_table(self, sampler: str, num_steps: int, eta: float = 0.0) -> StepTable:
        """Returns the coefficients of every step as NumPy arrays; arguments and errors are those of samplers.sample."""
        sampling, entry = self.sampling(sampler), SAMPLERS[sampler]
        if not 0.0 <= eta <= 1.0 or (eta and not entry.takes_eta):
            takes = ', '.join(name for name, other in SAMPLERS.items() if other.takes_eta)
            raise ValueError(f'eta is {eta} with sampler {sampler}; {takes} takes 0 to 1, the others 0.')
        table = entry.columns(self, sampling, num_steps, eta)
        if not entry.starts_at_zero_signal and self.prediction_type == 'epsilon' and table.alpha[0] == 0:
            can = ', '.join(name for name, other in SAMPLERS.items() if other.starts_at_zero_signal)
            raise ValueError(
                f'sampler {sampler} starts at time {int(table.t[0])}, where this schedule leaves nothing of the image '
                f'(rescale_betas_zero_snr), which a prediction of noise cannot find again; take one of {can}.'
            )
        return table
