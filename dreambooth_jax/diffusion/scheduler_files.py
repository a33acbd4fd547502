"""How a scheduler_config.json is read: which keys it may hold, and what each sampler does with them.

A file names one class of diffusers and has two readers. The first is the model: the noise that it was trained with
(betas, prediction and variance type) is that of the class in the file, and keys that the file leaves out have that
class's defaults (NOISE_DEFAULTS). The second is the sampler, which decides how images are generated: diffusers passes
the keys that the file holds to the sampler's class, and that class has its own defaults for the others
(sampler_list.SAMPLERS), as `SamplerClass.from_config(FileClass.from_config(file).config)` does. For example, Stable
Diffusion 1.5's file names PNDMScheduler and no spacing; so the times of ddim are spaced 'leading' and those of
dpmsolver++ 'linspace'.

One thing differs from diffusers: a beta that the file leaves out. diffusers takes it from the sampler's class too, and
then generates with noise that the model never saw. Files that diffusers writes name all betas.

Sources: configuration_utils.py and schedulers/scheduling_*.py of diffusers 0.42.1.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.diffusion.step_table import Sampling, SchedulerFileError

BETA_SCHEDULES = ('linear', 'scaled_linear', 'squaredcos_cap_v2')
PREDICTION_TYPES = ('epsilon', 'v_prediction', 'sample')
VARIANCE_TYPES = ('fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log', 'learned', 'learned_range')
TIMESTEP_SPACINGS = ('linspace', 'leading', 'trailing')
_MOST_TIMES = 100_000  # limit for the length of a noise schedule; published ones have 1000
_INFINITY = math.inf

# The keys in which a class's defaults differ from DDPMScheduler's, whose betas are linear from 0.0001 to 0.02.
_NARROW = {'beta_start': 0.00085, 'beta_end': 0.012}
_LATENT = {**_NARROW, 'beta_schedule': 'scaled_linear'}
NOISE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    'DDPMScheduler': {},
    'DDPMParallelScheduler': {},
    'DDIMScheduler': {},
    'DDIMParallelScheduler': {},
    'DDIMInverseScheduler': {},
    'PNDMScheduler': {},
    'LMSDiscreteScheduler': {},
    'EulerDiscreteScheduler': {},
    'EulerAncestralDiscreteScheduler': {},
    'HeunDiscreteScheduler': _NARROW,
    'KDPM2DiscreteScheduler': _NARROW,
    'KDPM2AncestralDiscreteScheduler': _NARROW,
    'DPMSolverMultistepScheduler': {},
    'DPMSolverMultistepInverseScheduler': {},
    'DPMSolverSinglestepScheduler': {},
    'DPMSolverSDEScheduler': _NARROW,
    'DEISMultistepScheduler': {},
    'UniPCMultistepScheduler': {},
    'SASolverScheduler': {},
    'LCMScheduler': _LATENT,
    'TCDScheduler': _LATENT,
    'RePaintScheduler': {},
    'UnCLIPScheduler': {'beta_schedule': 'squaredcos_cap_v2', 'variance_type': 'fixed_small_log'},
}

_SIGMA_SPACINGS = {  # in the order in which diffusers checks them
    'use_karras_sigmas': 'karras',
    'use_lu_lambdas': 'lu',
    'use_exponential_sigmas': 'exponential',
    'use_beta_sigmas': 'beta',
}


def _rule(kind: type, words: str, test: Callable[[Any], bool] = lambda value: True):
    return kind, words, test


def _one_of(names: Sequence[str]):
    return _rule(str, ', '.join(names), lambda value: value in names)


_BOOL = _rule(bool, 'true, false')
_BETA = _rule(float, 'numbers above 0 and below 1', lambda value: 0 < value < 1)
_POSITIVE = _rule(float, 'numbers above 0', lambda value: 0 < value < _INFINITY)
_ANY_NUMBER = _rule(float, 'numbers', lambda value: not math.isnan(value))
_NOISE_RULES = {
    'beta_schedule': _one_of(BETA_SCHEDULES),
    'num_train_timesteps': _rule(int, f'whole numbers from 2 to {_MOST_TIMES}', lambda many: 2 <= many <= _MOST_TIMES),
    'beta_start': _BETA,
    'beta_end': _BETA,
    'rescale_betas_zero_snr': _BOOL,
    'trained_betas': _rule(
        list, 'lists of numbers above 0 and at most 1', lambda values: all(_is_number(v) and 0 < v <= 1 for v in values)
    ),
    'prediction_type': _one_of(PREDICTION_TYPES),
    'variance_type': _one_of(VARIANCE_TYPES),
}
_SAMPLING_RULES = {
    'thresholding': _BOOL,
    'dynamic_thresholding_ratio': _rule(float, 'numbers above 0 and at most 1', lambda value: 0 < value <= 1),
    'sample_max_value': _rule(float, 'numbers from 1 on', lambda value: value >= 1),
    'clip_sample': _BOOL,
    'clip_sample_range': _POSITIVE,
    'timestep_spacing': _one_of(TIMESTEP_SPACINGS),
    'steps_offset': _rule(int, f'whole numbers from 0 to {_MOST_TIMES}', lambda value: 0 <= value <= _MOST_TIMES),
    'variance_type': _NOISE_RULES['variance_type'],
    'set_alpha_to_one': _BOOL,
    'lambda_min_clipped': _ANY_NUMBER,
    'algorithm_type': _rule(str, 'names'),
    'solver_order': _rule(int, 'whole numbers'),
    'solver_type': _rule(str, 'names'),
    'lower_order_final': _BOOL,
    'euler_at_final': _BOOL,
    'predict_x0': _BOOL,
    'disable_corrector': _rule(
        list, 'lists of whole numbers', lambda values: all(type(value) is int and value >= 0 for value in values)
    ),
    'interpolation_type': _rule(str, 'names'),
    'final_sigmas_type': _rule(str, 'names'),
    'use_karras_sigmas': _BOOL,
    'use_exponential_sigmas': _BOOL,
    'use_beta_sigmas': _BOOL,
    'use_lu_lambdas': _BOOL,
    'sigma_min': _POSITIVE,
    'sigma_max': _POSITIVE,
}
# Keys that mark models whose noise is not a discrete, variance-preserving schedule, although their class can have one:
# key -> the values that are allowed.
_OTHER_PROCESSES = {'use_flow_sigmas': (False, None), 'timestep_type': ('discrete', None)}


def read(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the keys of a scheduler_config.json: those about the model's noise, and those about generating images.

    Args:
      config: the contents of the file. Keys under `_use_default_values` count as left out, as in diffusers. So do keys
        that are null, except that a switch that is null is off.

    Returns:
      (noise, written). noise is complete except for DDPMScheduler's defaults; written has the keys of the file.

    Raises:
      ValueError: it names the key, its value and what is allowed.
    """
    class_name = config.get('_class_name', 'DDPMScheduler')
    if not isinstance(class_name, str) or class_name not in NOISE_DEFAULTS:
        raise ValueError(f'_class_name is {class_name!r}; allowed: {", ".join(NOISE_DEFAULTS)}.')
    for key, allowed in _OTHER_PROCESSES.items():
        if config.get(key) not in allowed:
            raise ValueError(f'{key} is {config[key]!r}; allowed: {str(allowed[0]).lower()}.')
    unsaid = config.get('_use_default_values') or ()
    if not isinstance(unsaid, list | tuple):
        raise ValueError(f'_use_default_values is {unsaid!r}; allowed: lists of keys.')
    given = {key: value for key, value in config.items() if key not in unsaid}
    noise = {**NOISE_DEFAULTS[class_name], **_checked(given, _NOISE_RULES)}
    betas = noise.get('trained_betas')
    if betas is not None and len(betas) != given.get('num_train_timesteps', len(betas)):
        raise ValueError(f'trained_betas has {len(betas)} numbers; allowed: num_train_timesteps of them.')
    return noise, _checked(given, _SAMPLING_RULES)


def check_written(written: Mapping[str, Any]) -> dict[str, Any]:
    """Checks keys that say how images are generated, as those of a file are checked, and returns them.

    Raises:
      ValueError: for an unknown key or a value that is not allowed.
    """
    unknown = [key for key in written if key not in _SAMPLING_RULES]
    if unknown:
        raise ValueError(f'{unknown[0]} is no key of a scheduler file; allowed: {", ".join(_SAMPLING_RULES)}.')
    return _checked(written, _SAMPLING_RULES)


def _checked(config: Mapping[str, Any], rules: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, (kind, words, test) in rules.items():
        value = config.get(key)
        if key not in config or (value is None and kind is not bool):
            continue
        if key == 'lambda_min_clipped' and value in ('-inf', '-Infinity'):  # JSON has no infinity
            value = -_INFINITY
        if kind is bool and value is None:
            value = False
        if kind is float and _is_number(value):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not test(value):
            raise ValueError(f'{key} is {value!r}; allowed: {words}.')
        found[key] = value
    return found


def _is_number(value: Any) -> bool:
    # A whole number too large for a float does not count: nothing can be computed with it.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def sampling(sampler: str, written: Mapping[str, Any]) -> Sampling:
    """Returns what `sampler` does with a file that holds the keys `written`.

    Raises:
      ValueError: for an unknown sampler.
      SchedulerFileError: for a key with which diffusers' class would generate in a way that this sampler cannot.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f'sampler is {sampler!r}; allowed: {", ".join(SAMPLERS)}.')
    entry = SAMPLERS[sampler]
    found = {key: written.get(key, default) for key, default in entry.defaults.items()}
    for key, (field, meanings) in entry.meanings.items():
        if found[key] not in meanings:
            raise SchedulerFileError(
                f"the scheduler file's {key} is {found[key]!r}, with which sampler {sampler} cannot sample; allowed: "
                f'{", ".join(map(_as_written, meanings))}; take the sampler ddim or ddpm, or change it there.'
            )
        found[field] = meanings[found[key]]
    spacings = [key for key in _SIGMA_SPACINGS if found.get(key)]
    several = [key for key in spacings if key != 'use_lu_lambdas']  # diffusers allows this one together with others
    if len(several) > 1:
        raise SchedulerFileError(
            f'the scheduler file sets {" and ".join(several)}, but only one can be; leave one of them on.'
        )
    found['sigma_spacing'] = _SIGMA_SPACINGS[spacings[0]] if spacings else None
    found['disable_corrector'] = tuple(found.get('disable_corrector', ()))
    return Sampling(**{field.name: found[field.name] for field in dataclasses.fields(Sampling) if field.name in found})


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
