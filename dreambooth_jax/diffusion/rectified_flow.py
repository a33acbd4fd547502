"""Rectified flow: x_s = (1 - s) * x0 + s * noise, and a network that predicts the velocity noise - x0.

Its time s, in (0, 1], is the share of noise. Where the times lie is a matter of the shift

    s' = k * s / (1 + (k - 1) * s),

which with k > 1 spends more of them on noise: the more pixels an image has, the more noise it needs until nothing of it
can be seen. A scheduler file has one of two kinds. With a static shift, k is in the file, and training draws shifted
times too. With a dynamic shift, k = e^mu is computed for each generation by the pipeline's class, from the number of
tokens of the image and sometimes the number of steps; training then draws unshifted times, as the scripts of diffusers
do, unless the time distribution has a shift of its own, or a dynamic one. That is the rule of FLUX.1, with which its
makers trained FLUX.1 and FLUX.2, although pipelines of the latter generate with a higher mu.

The number of tokens is that of the array that is denoised, so a process learns it from the array's shape (`of_shape`).

Sources: Liu et al. 2022; Esser et al. 2024 (shift, section 5.3.2); diffusers 0.42.1
schedulers/scheduling_flow_match_euler_discrete.py and scheduling_flow_match_heun_discrete.py.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.prediction import over_trailing
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.diffusion.spacing import check_steps
from dreambooth_jax.diffusion.step_table import Sampling, StepTable, make_table
from dreambooth_jax.diffusion.times import UNIFORM, TimeDistribution, shifted

VELOCITY = 'velocity'
SCHEDULERS = ('FlowMatchEulerDiscreteScheduler', 'FlowMatchHeunDiscreteScheduler')
# How a pipeline's class spaces s before the shift: 'steps': from 1 to 1 / steps; 'scheduler': between the highest and
# the lowest s of the scheduler itself, which a static shift has then moved already.
SPACINGS = ('steps', 'scheduler')
SHIFT_TYPES = ('exponential', 'linear')
USUAL_TOKENS = 4096  # of an image of 1024 x 1024 pixels, 16 x 16 to a token
# Keys of a scheduler file that ask for something that is not done here: all must be off.
_OFF = ('invert_sigmas', 'use_karras_sigmas', 'use_exponential_sigmas', 'use_beta_sigmas', 'stochastic_sampling')

ShiftRule = Callable[[int, int], float]


@dataclasses.dataclass(frozen=True)
class LinearMu:
    """The dynamic shift of FLUX.1: mu is linear in the number of tokens, and does not depend on the steps.

    Attributes:
      base_shift, max_shift: mu at base_tokens and at max_tokens; beyond both it goes on along the line.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def __call__(self, tokens: int, steps: int) -> float:
        """Returns mu of an image of so many tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)

    @classmethod
    def of_file(cls, config: Mapping[str, Any]) -> 'LinearMu':
        """Returns the rule that a scheduler_config.json describes."""
        keys = {
            'base_shift': 'base_shift',
            'max_shift': 'max_shift',
            'base_tokens': 'base_image_seq_len',
            'max_tokens': 'max_image_seq_len',
        }
        return cls(**{field: config[key] for field, key in keys.items() if config.get(key) is not None})


# Name -> weight of the loss at times s. As in diffusers' scripts none is divided by the density of the times that are
# trained on. Source: Esser et al. 2024, section 3.1.
WEIGHTINGS = {
    'sigma_sqrt': lambda s: s**-2,
    'cosmap': lambda s: 2 / (math.pi * (1 - 2 * s + 2 * s**2)),
}


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """A rectified flow, and how images are generated with it; see `process.NoiseProcess`.

    It is compared by value, so that it can be a static argument of jitted functions.

    Attributes:
      shift: k of the static shift; 1 with a dynamic one.
      mu: (tokens, steps) -> mu, if the shift is dynamic; None: it is static.
      training_mu: the rule of a dynamic shift in training, if the time distribution has one.
      shift_type: how mu shifts: 'exponential' as above with k = e^mu; 'linear': k = mu.
      spacing: one of SPACINGS.
      shift_terminal: if given, s is stretched so that the last step starts there.
      num_train_timesteps: in how many times diffusers divides (0, 1]; the lowest is 1 / num_train_timesteps.
      tokens: the number of tokens of the image that is generated.
      patch: side of a token, in pixels or latents of the array that is denoised.
    """

    shift: float = 1.0
    mu: ShiftRule | None = None
    training_mu: ShiftRule = LinearMu()
    shift_type: str = 'exponential'
    spacing: str = 'steps'
    shift_terminal: float | None = None
    num_train_timesteps: int = 1000
    tokens: int = USUAL_TOKENS
    patch: int = 1

    prediction_type: ClassVar[str] = VELOCITY
    learns_variance: ClassVar[bool] = False
    weightings: ClassVar[tuple[str, ...]] = tuple(WEIGHTINGS)
    has_dynamic_shift: ClassVar[bool] = True

    @property
    def last_time(self) -> float:
        """s = 1."""
        return 1.0

    def described(self, steps: int) -> str:
        """Returns the shifts of training and of generating in so many steps."""
        of = f'{self.tokens} tokens and {steps} steps' if self.mu else 'every size'
        shift = self.sampling_shift(steps)
        return f'rectified flow, shift {self.shift:.4g} in training, {shift:.4g} in generating (for {of})'

    def of_shape(self, shape: tuple[int, int]) -> Self:
        """Returns the same process for images whose denoised array has this (height, width)."""
        height, width = shape
        return dataclasses.replace(self, tokens=-(-height // self.patch) * -(-width // self.patch))

    def sample_times(self, keys: jax.Array, distribution: TimeDistribution = UNIFORM) -> jax.Array:
        """Samples times s, f32[B], from 1 / num_train_timesteps (before the shift) to 1, with one key each, key[B].

        The shift of the distribution takes the place of the static one. A dynamic one is that of `tokens` tokens.
        """
        if distribution.dynamic_shift:
            distribution = dataclasses.replace(distribution, shift=self.training_shift(), dynamic_shift=False)
        s = jnp.clip(distribution.sample(keys), 1 / self.num_train_timesteps, 1.0)
        # With a shift of its own the distribution has applied it already.
        return s if distribution.shift is not None else shifted(s, self.shift)

    def network_time(self, t: jax.Array) -> jax.Array:
        """Returns the times as they are, f32[B] in (0, 1]; a family counts on as its network does."""
        return t

    def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the shares of image and noise, (1 - s, s), f32 of the shape of t."""
        t = jnp.asarray(t, jnp.float32)
        return 1.0 - t, t

    def snr(self, t: jax.Array) -> jax.Array:
        """Returns the signal-to-noise ratio (1 - s)^2 / s^2, f32 of the shape of t."""
        alpha, sigma = self.alpha_sigma(t)
        return jnp.square(alpha / sigma)

    def weight(self, t: jax.Array, kind: str) -> jax.Array:
        """Returns the weight of the loss at times s, f32 of the shape of t; kind: a name in WEIGHTINGS."""
        return WEIGHTINGS[kind](jnp.asarray(t, jnp.float32))

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns x_s, f32[B, ...]; x0, noise: [B, ...]; t: f32[B]."""
        alpha, sigma = self.alpha_sigma(t)
        x0, noise = jnp.asarray(x0, jnp.float32), jnp.asarray(noise, jnp.float32)
        return over_trailing(alpha, x0) * x0 + over_trailing(sigma, x0) * noise

    def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the velocity noise - x0, f32[B, ...], which is the same at all times."""
        return jnp.asarray(noise, jnp.float32) - jnp.asarray(x0, jnp.float32)

    def to_x0(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the x0 that a velocity at x_t means, f32[B, ...]; alpha, sigma: f32[B] or f32[], of x_t."""
        prediction, x_t = jnp.asarray(prediction, jnp.float32), jnp.asarray(x_t, jnp.float32)
        return x_t - over_trailing(sigma, x_t) * prediction

    def to_noise(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the noise that a velocity at x_t means, f32[B, ...]; arguments as of `to_x0`."""
        prediction, x_t = jnp.asarray(prediction, jnp.float32), jnp.asarray(x_t, jnp.float32)
        return x_t + over_trailing(alpha, x_t) * prediction

    def sampling(self, sampler: str) -> Sampling:
        """Returns how `sampler` generates: nothing is limited, and the spacing is that of `sigmas`.

        Raises:
          ValueError: for a sampler that cannot follow a rectified flow.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f'sampler is {sampler!r}; allowed: {", ".join(SAMPLERS)}.')
        if sampler not in _COLUMNS:
            raise ValueError(
                f'sampler {sampler} cannot sample a rectified flow, which this model is; take one of '
                f'{", ".join(_COLUMNS)}.'
            )
        return Sampling(timestep_spacing='trailing', steps_offset=0)

    def step_table(self, sampler: str, num_steps: int, eta: float = 0.0) -> StepTable:
        """Returns the coefficients of every step as NumPy arrays; arguments and errors are those of samplers.sample."""
        self.sampling(sampler)
        if eta:
            raise ValueError(f'eta is {eta} with sampler {sampler}; ddim takes 0 to 1, the others 0.')
        return _COLUMNS[sampler](self.sigmas(num_steps))

    def sampling_shift(self, steps: int) -> float:
        """Returns k of the shift with which an image of `tokens` tokens is generated in so many steps."""
        if self.mu is None:
            return self.shift
        return self._shift_of(self.mu(self.tokens, steps))

    def training_shift(self) -> float:
        """Returns k of the dynamic shift with which images of `tokens` tokens are trained on."""
        return self._shift_of(self.training_mu(self.tokens, self.num_train_timesteps))

    def _shift_of(self, mu: float) -> float:
        return math.exp(mu) if self.shift_type == 'exponential' else mu

    def sigmas(self, steps: int) -> np.ndarray:
        """Returns s before every step and the 0 at the end, f64[steps + 1], falling.

        Raises:
          ValueError: unless 1 <= steps <= num_train_timesteps.
        """
        check_steps(steps, self.num_train_timesteps)
        if self.spacing == 'steps':
            s = np.linspace(1.0, 1 / steps, steps)
        else:
            s = np.linspace(*(shifted(end, self.shift) for end in (1.0, 1 / self.num_train_timesteps)), steps)
        s = shifted(s, self.sampling_shift(steps))
        if self.shift_terminal:
            s = 1 - (1 - s) * (1 - self.shift_terminal) / (1 - s[-1])
        return np.append(s, 0.0)


def from_config(
    config: Mapping[str, Any], *, mu: ShiftRule | None = None, spacing: str = 'steps', patch: int = 1
) -> RectifiedFlow:
    """Returns the process of a scheduler_config.json.

    Args:
      config: the contents of the file.
      mu: the rule by which the pipeline's class computes mu if the file asks for a dynamic shift; None: LinearMu with
        the numbers of the file.
      spacing, patch: as in RectifiedFlow; the pipeline's class decides them too.

    Raises:
      ValueError: one sentence that names the key, its value and what is allowed.
    """
    class_name = config.get('_class_name')
    if class_name not in SCHEDULERS:
        raise ValueError(f'_class_name is {class_name!r}; allowed: {", ".join(SCHEDULERS)}.')
    for key in _OFF:
        if config.get(key):
            raise ValueError(f'{key} is {config[key]!r}; allowed: false.')
    predicted = config.get('prediction_type')
    if predicted not in (None, 'flow_prediction'):
        raise ValueError(f'prediction_type is {predicted!r}, but a rectified flow predicts the velocity; leave it out.')
    times = config.get('num_train_timesteps', 1000)
    if type(times) is not int or not 2 <= times <= 100_000:
        raise ValueError(f'num_train_timesteps is {times!r}; allowed: whole numbers from 2 to 100000.')
    shift = _number(config, 'shift', 1.0, 'numbers above 0', lambda value: value > 0)
    end = _number(config, 'shift_terminal', None, 'null, and numbers above 0 and below 1', lambda value: 0 < value < 1)
    for key in ('base_shift', 'max_shift', 'base_image_seq_len', 'max_image_seq_len'):
        _number(config, key, None, 'numbers', lambda value: True)
    kind = config.get('time_shift_type') or 'exponential'
    if kind not in SHIFT_TYPES:
        raise ValueError(f'time_shift_type is {kind!r}; allowed: {", ".join(SHIFT_TYPES)}.')
    dynamic = config.get('use_dynamic_shifting') or False
    if type(dynamic) is not bool:
        raise ValueError(f'use_dynamic_shifting is {dynamic!r}; allowed: true, false.')
    return RectifiedFlow(
        shift=1.0 if dynamic else shift,
        mu=(mu or LinearMu.of_file(config)) if dynamic else None,
        training_mu=LinearMu.of_file(config),
        shift_type=kind,
        spacing=spacing,
        shift_terminal=end,
        num_train_timesteps=times,
        patch=patch,
    )


def _number(config: Mapping[str, Any], key: str, default: Any, words: str, test: Callable[[float], bool]) -> Any:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not test(value):
        raise ValueError(f'{key} is {value!r}; allowed: {words}.')
    return value


def _euler(s: np.ndarray) -> StepTable:
    # x + (s_next - s) * v with v = (x - x0) / s.
    now, following = s[:-1], s[1:]
    return make_table(t=now, alpha=1 - now, sigma=now, x=following / now, x0=1 - following / now)


def _heun(s: np.ndarray) -> StepTable:
    # As sampler_euler.py has it for other processes: every step but the last calls the network a second time, at its
    # end, and starts again with the mean of both velocities.
    calls = 2 * (len(s) - 1) - 1
    first, second = slice(0, calls, 2), slice(1, calls, 2)
    columns = {name: np.zeros(calls) for name in ('x', 'x0', 'previous_x', 'previous_x0')}
    now, following = s[:-1], s[1:]
    columns['x'][first], columns['x0'][first] = following / now, 1 - following / now
    now, following = s[:-2], s[1:-1]
    half = (following - now) / 2
    columns['x'][second], columns['x0'][second] = half / following, -half / following
    columns['previous_x'][second], columns['previous_x0'][second] = 1 + half / now, -half / now
    at = s[(np.arange(calls) + 1) // 2]
    return make_table(t=at, alpha=1 - at, sigma=at, **columns | {'previous_x0': (columns['previous_x0'],)})


_COLUMNS = {'euler': _euler, 'heun': _heun}
