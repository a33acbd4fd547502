"""What a sampler is: a name, the keys that it reads, and a function that makes the table of its steps.

Every sampler makes the same update with other coefficients,

    x <- a * x + b * x0 + c . earlier x0 + p * earlier x + d * noise prediction + std * fresh noise,

so a sampler is a function that makes the columns a, b, c, p, d and std, with one table row per call of the network. A
column that a sampler does not have is None, and its term is left out. Two more columns change what the update starts
from: `input_scale` scales x before the network sees it, and `correction` improves x once the network has seen it
(predictor-corrector methods). `samplers.sample` runs any such table.

x is variance preserving, x = alpha * x0 + sigma * noise with alpha^2 + sigma^2 = 1, or as its noise process says; it is
what the network is given. Samplers that are published for x0 + (sigma / alpha) * noise have their coefficients
multiplied by alpha.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Correction(NamedTuple):
    """Coefficients of the corrected x: of x, the previous corrected x, x0 and the earlier x0, each f32[N]."""

    x: np.ndarray
    previous_x: np.ndarray
    x0: np.ndarray
    previous_x0: tuple[np.ndarray, ...]


class StepTable(NamedTuple):
    """The coefficients of every call of the network, f32[N] each.

    A table row, for one call, has the same fields without [N].
    """

    t: np.ndarray  # The time, as the noise process counts it; not always a whole number.
    alpha: np.ndarray  # The shares of image and noise in x.
    sigma: np.ndarray
    x: np.ndarray
    x0: np.ndarray
    previous_x0: tuple[np.ndarray, ...] = ()  # Of the last x0, the one before it, and so on.
    previous_x: np.ndarray | None = None  # Of the x at the previous call (the corrected one, if there is a correction).
    noise_prediction: np.ndarray | None = None
    std: np.ndarray | None = None  # Standard deviation of the fresh noise, unless the variance is learned.
    is_noisy: np.ndarray | None = None  # 1 where the step adds fresh noise, otherwise 0.
    log_variance_low: np.ndarray | None = None  # Learned range: the log variances that -1 and 1 stand for.
    log_variance_high: np.ndarray | None = None
    input_scale: np.ndarray | None = None
    correction: Correction | None = None

    @property
    def adds_noise(self) -> bool:
        """Whether any step adds fresh noise."""
        return self.is_noisy is not None and bool(self.is_noisy.any())


def make_table(**columns: Any) -> StepTable:
    """Returns the table of the given columns as float32; `x` is 0 if it is not given."""
    columns.setdefault('x', np.zeros(len(columns['t'])))

    def as_float32(column):
        if isinstance(column, Correction):
            return Correction(*map(as_float32, column))
        if isinstance(column, tuple):
            return tuple(map(as_float32, column))
        return np.asarray(column, np.float32)

    return StepTable(**{name: as_float32(column) for name, column in columns.items()})


class SchedulerFileError(ValueError):
    """A file asks a sampler for something that it cannot do.

    The model may still be trained, and other samplers may generate with it.
    """


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What one sampler does with a noise schedule; fields that it does not read have these defaults.

    Attributes:
      timestep_spacing: how the few sampling times are spread over [0, T): 'linspace', 'leading' or 'trailing'.
      steps_offset: is added to every sampling time if the spacing is 'leading'.
      thresholding: whether x0 is thresholded dynamically (Imagen); if so, clip_sample is ignored.
      dynamic_thresholding_ratio: the quantile of |x0| that is the threshold, in (0, 1].
      sample_max_value: the highest threshold, >= 1.
      clip_sample: whether x0 is clipped to +-clip_sample_range; only ddpm, ddim and heun can clip.
      clip_sample_range: see clip_sample.
      variance_type: ddpm's variance, one of scheduler_files.VARIANCE_TYPES.
      set_alpha_to_one: whether ddim's last step goes to alphas_cumprod 1 instead of alphas_cumprod[0].
      lambda_min_clipped: the lowest log(alpha / sigma) at which dpmsolver++ starts; -inf means no limit.
      sigma_spacing: how sigma / alpha is spaced, 'karras', 'lu', 'exponential' or 'beta'. None: as the times are
        spaced.
      sigma_min, sigma_max: the ends of that spacing; None: those of the schedule.
      adds_noise: whether dpmsolver++ solves the stochastic equation (sde-dpmsolver++).
      solver_order: the order of dpmsolver++, 1 or 2, or of unipc, 1 to 3.
      solver_type: the form of dpmsolver++'s second order, 'midpoint' or 'heun'; of unipc, 'bh1' or 'bh2'.
      ends_clean: whether the last step goes to the clean image instead of the noise of time 0.
      lower_order_final: whether the last steps are of lower order; dpmsolver++ does so only below 15 steps.
      euler_at_final: whether dpmsolver++'s last step is of first order for any number of steps.
      disable_corrector: the steps of unipc, counted from 0, after which x is not corrected.
    """

    timestep_spacing: str
    steps_offset: int
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    variance_type: str = 'fixed_small'
    set_alpha_to_one: bool = True
    lambda_min_clipped: float = -np.inf
    sigma_spacing: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    adds_noise: bool = False
    solver_order: int = 2
    solver_type: str = 'midpoint'
    ends_clean: bool = True
    lower_order_final: bool = True
    euler_at_final: bool = False
    disable_corrector: tuple[int, ...] = ()

    @property
    def learns_variance(self) -> bool:
        """Whether the fresh noise has the variance that the network answers with."""
        return self.variance_type in ('learned', 'learned_range')


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One entry of the table of samplers (sampler_list.py).

    Attributes:
      diffusers_class: the class of diffusers that does the same.
      defaults: the keys of a scheduler file that it reads, with the defaults of that class.
      columns: (process, sampling, number of steps, eta) -> the table of its steps; a ValueError if the steps cannot be
        spread that way.
      meanings: for keys of which it allows only some values: key -> (field of Sampling, {value: what it means}).
      network_calls: number of steps -> how many times it calls the network.
      takes_eta: whether `eta`, ddim's share of fresh noise, may be other than 0.
      starts_at_zero_signal: whether it can start where nothing of the image is left though the network predicts noise.
    """

    diffusers_class: str
    defaults: Mapping[str, Any]
    columns: Callable[[Any, Sampling, int, float], StepTable]
    meanings: Mapping[str, tuple[str, Mapping[Any, Any]]] = dataclasses.field(default_factory=dict)
    network_calls: Callable[[int], int] = lambda steps: steps
    takes_eta: bool = False
    starts_at_zero_signal: bool = True


# Parts of `defaults` and `meanings` that several samplers share.
THRESHOLDING = {'thresholding': False, 'dynamic_thresholding_ratio': 0.995, 'sample_max_value': 1.0}
LEADING = {'timestep_spacing': 'leading', 'steps_offset': 0}
LINSPACE = {'timestep_spacing': 'linspace', 'steps_offset': 0}
# sigma_min and sigma_max are no arguments of some of these classes, but all read them from the file.
SIGMA_SPACINGS = {
    'use_karras_sigmas': False,
    'use_exponential_sigmas': False,
    'use_beta_sigmas': False,
    'sigma_min': None,
    'sigma_max': None,
}
FINAL_SIGMAS = {'final_sigmas_type': ('ends_clean', {'zero': True, 'sigma_min': False})}
