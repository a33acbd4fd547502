"""The sampling settings that belong to a model: those of a run's folder, or of a built-in model."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_jax.config import (
    STORYBOOK,
    STORYBOOK_CPU_DEVICES,
    STORYBOOK_ENLARGING,
    STORYBOOK_FLOW,
    STORYBOOK_FLOW_SAMPLING,
    STORYBOOK_SAMPLING,
    ConfigError,
    RunSamplesConfig,
    SamplesConfig,
    SuperResolutionConfig,
    resolve,
    with_new_names,
)
from dreambooth_jax.generation.options import SamplingOptions

if TYPE_CHECKING:
    from dreambooth_jax.generation.cascade import Cascade

# Settings among `samples` of a training alone: they say which model generates its samples.
_OF_OTHER_MODEL = {field.name for field in dataclasses.fields(RunSamplesConfig)} - {
    field.name for field in dataclasses.fields(SamplesConfig)
}
# Settings among `samples` that are about the files of images, not about how they are generated.
_OF_FILES = ('metadata', 'c2pa_certificate', 'c2pa_key')
_PARALLEL = {'cpu_devices': STORYBOOK_CPU_DEVICES}
_BUILT_IN = {
    STORYBOOK: {'samples': STORYBOOK_SAMPLING, 'super_resolution': STORYBOOK_ENLARGING, 'parallel': _PARALLEL},
    STORYBOOK_FLOW: {'samples': STORYBOOK_FLOW_SAMPLING, 'parallel': _PARALLEL},
}


class RunSettings(typing.NamedTuple):
    """Settings that are used unless a flag gives another value; for a model without a run they are the defaults.

    Attributes:
      samples: how the run generates its samples, and what their files say.
      super_resolution: how its second stage generates them.
      size: side of the base stage's images in pixels; None: the model's own.
      clip_skip: number of last CLIP layers that the run skips.
      cpu_devices: as how many devices a CPU generates; None: one.
      has_samples: whether the model says how it generates; otherwise `samples` are the defaults.
    """

    samples: SamplesConfig
    super_resolution: SuperResolutionConfig
    size: int | None
    clip_skip: int
    cpu_devices: int | None
    has_samples: bool

    def options(self, cascade: 'Cascade', given: Mapping[str, Any]) -> SamplingOptions:
        """Returns how images are sampled.

        Args:
          cascade: the model, whose makers' way is taken where nothing else says one.
          given: name -> value of the options that somebody has given, which count before the settings.
        """
        usual = {} if self.has_samples else cascade.base.family.usual_sampling(cascade.base)
        options = SamplingOptions.of_samples(dataclasses.replace(self.samples, **usual), self.super_resolution)
        return dataclasses.replace(options, **given)


def settings_of(model: str) -> RunSettings:
    """Returns the settings of the run of train or pretrain in the folder `model`, or of a built-in model.

    Raises:
      ConfigError: if the run's config.json is damaged.
    """
    folder = Path(model).expanduser()
    path = folder / 'config.json'
    if model in _BUILT_IN:
        written = _BUILT_IN[model]
    # A pipeline folder may hold a config.json too, but of something else than a run's settings.
    elif path.is_file() and not (folder / 'model_index.json').is_file():
        written = _read(path)
    else:
        written = {}
    groups = {'samples': {}, 'super_resolution': {}, 'data': {}, 'base': {}, 'parallel': {}}
    # Of a pretraining run, known by its setting 'stage', few are used: its 'base' is not a group of settings.
    used = ('samples', 'parallel') if 'stage' in written else groups
    groups |= {name: written[name] for name in used if name in written}
    has_samples = bool(groups['samples'])
    if isinstance(samples := groups['samples'], Mapping):
        own = {name: value for name, value in samples.items() if name not in _OF_OTHER_MODEL}
        has_samples = bool(own) and samples.get('model') is None
        # How another model generates says nothing of the run's own; what the files say counts all the same.
        groups['samples'] = own if has_samples else {name: own[name] for name in _OF_FILES if name in own}
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise ConfigError(f'{path} is damaged: its {name} is {group!r} but must be a group of settings; restore it')
    size, clip_skip = groups['data'].get('resolution'), groups['base'].get('clip_skip', 0)
    devices = groups['parallel'].get('cpu_devices')
    for name, value in (('data.resolution', size), ('parallel.cpu_devices', devices)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f'{path} is damaged: its {name} is {value!r}; restore it')
    if type(clip_skip) is not int or clip_skip < 0:
        raise ConfigError(f'{path} is damaged: its base.clip_skip is {clip_skip!r}; restore it')
    try:
        return RunSettings(
            resolve(SamplesConfig, with_new_names(SamplesConfig, groups['samples'])),
            resolve(SuperResolutionConfig, with_new_names(SuperResolutionConfig, groups['super_resolution'])),
            size,
            clip_skip,
            devices,
            has_samples,
        )
    except ConfigError as error:
        raise ConfigError(f'{path} is damaged: {error}; restore it') from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        written = json.loads(path.read_text('utf-8'))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{path} is no readable JSON ({error})') from None
    if not isinstance(written, dict):
        raise ConfigError(f"{path} holds a JSON {type(written).__name__} but must hold a run's settings; restore it")
    return written
