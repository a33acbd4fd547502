"""The folder of a run: a run begins with its settings and images there, and continues only with the same ones.

Until a stage has a checkpoint nothing is learned, and its settings may change; what exists by then, such as class
images, is kept where it still fits. From then on, settings that change what is learned are refused. Photos and models
are identified by their hashes (inputs.py), so that they may be moved and renamed but not exchanged.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dreambooth_jax.config import Config, ConfigError, resolve, to_dict, with_new_names
from dreambooth_jax.system import disk, lock
from dreambooth_jax.training import inputs as run_inputs
from dreambooth_jax.training import requests
from dreambooth_jax.training.inputs import CLASS_PHOTOS, Inputs

CONFIG = 'config.json'
# Settings that may always change: they say how long, how often, how much at once and where, but not what is learned.
FREE = (
    'base.steps',
    'base.gradient_accumulation_steps',
    'super_resolution.steps',
    'super_resolution.gradient_accumulation_steps',
    'steps',
    'prior.batch_size',
    CLASS_PHOTOS,
    'data.consent',
    'data.tfds_dir',
    'data.tfds_manual_dir',
    'data.consent',
    'parallel.mode',
    'parallel.fsdp_min_bytes',
    'parallel.remat',
    'parallel.steps_per_dispatch',
    'checkpoint',
    'samples',
    'evaluation',
    'export',
    'painters',
)
# Settings that class images are generated with.
_CLASS_IMAGES = ('prior.num_images', 'prior.steps', 'prior.guidance_scale', 'prior.sampler')
_STAGES = ('base', 'super_resolution')
# Settings that name models; the files of a model are identified by their hashes, whatever their names.
_MODELS = ('model', 'super_resolution_model')
# Settings that name photos, which are identified by their hashes too.
_FOLDER, _DATASET, _SPLIT = 'instance_dir', 'tfds', 'tfds_split'
_PATHS = (
    'model',
    'model_tokenizer_dir',
    'model_transformer_file',
    'super_resolution_model',
    'init_from',
    'init',
    'base',
)


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps other processes from working in the folder of the run.

    The folder is made if it is missing, and freed of requests to an earlier process. Hosts of one run share it.

    Raises:
      LockError: if another process works there.
      ConfigError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                held.enter_context(lock.locked(workdir, 'wait for it, or start this one with another --workdir'))
                requests.clear(workdir)
            except OSError as error:
                raise _unwritable(workdir, error) from None
        yield


def _unwritable(workdir: Path, error: OSError) -> ConfigError:
    return ConfigError(f'--workdir={workdir} cannot be written: {disk.reason(error)}')


def check(config: Config, workdir: Path, found: Inputs | None = None) -> Inputs | None:
    """Checks whether a run may begin or continue in a folder; writes nothing.

    Args:
      found: the inputs that are present now; None if the settings describe them completely.

    Returns:
      `found`, with its photos in the order in which the run uses them.

    Raises:
      ConfigError: if a setting, photo or model differs from the run's and would change what is learned; it names both.
    """
    stages = trained_stages(workdir)
    if not stages:
        return found
    # Something was learned here, so the settings and the inputs must be those that it was learned with.
    begun = run_inputs.read(workdir) if found is not None else None
    new = _flat(to_dict(config))
    if (workdir / CONFIG).exists():
        unused = _CLASS_IMAGES if begun and CLASS_PHOTOS in begun.photos.keys() & found.photos.keys() else ()
        old = _flat(_read(workdir / CONFIG, type(config)))
        _check_settings(old, new, workdir, stages, begun is not None, unused)
    return found if begun is None else run_inputs.check(begun, found, new, workdir, stages)


def begin(config: Config, workdir: Path, found: Inputs | None = None) -> None:
    """Makes the folder and writes config.json and, unless `found` is None, inputs.json.

    Raises:
      ConfigError: as `check`, and if the folder cannot be written.
    """
    found = check(config, workdir, found)
    if jax.process_index() != 0:
        return  # one writer, where several hosts share the folder
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if found is not None:
            _write(workdir / run_inputs.FILE, run_inputs.to_json(found))
        _write(workdir / CONFIG, json.dumps(to_dict(config), indent=2) + '\n')
    except OSError as error:
        raise _unwritable(workdir, error) from None


def changed(config: Config, workdir: Path, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that are not those of the run's last start: dotted name -> (before, now).

    Args:
      names: the settings, or groups of settings, that are compared.

    Raises:
      ConfigError: if the file of the run's settings is damaged.
    """
    if not (workdir / CONFIG).exists():
        return {}
    old, new = _flat(_read(workdir / CONFIG, type(config))), _flat(to_dict(config))
    asked = [name for name in sorted(new) if any(name == one or name.startswith(f'{one}.') for one in names)]
    return {name: (old.get(name), new[name]) for name in asked if not _is_same(name, old.get(name), new[name])}


def checkpoints(workdir: Path, stage: str) -> list[int]:
    """Returns the steps of a stage's complete checkpoints, in their order."""
    return sorted(int(path.name) for path in (workdir / stage / 'checkpoints').glob('*') if path.name.isdigit())


def trained_stages(workdir: Path) -> list[str]:
    """Returns the stages that have something to lose.

    These are the stages with a complete checkpoint, or all stages if only an exported model/ is left.
    """
    found = {path.parts[-3] for path in workdir.glob('*/checkpoints/*') if path.name.isdigit()}
    if not found and (workdir / 'model' / 'model_index.json').is_file():
        return list(_STAGES)
    return sorted(found)


def _write(path: Path, text: str) -> None:
    with disk.writing(path) as new:
        new.write_text(text, 'utf-8')


def _read(path: Path, cls: type[Config]) -> dict:
    """Returns the settings in a file.

    Settings that are newer than the file get their defaults, which do what the program did before they existed.

    Raises:
      ConfigError: if the file is damaged.
    """
    try:
        before = json.loads(path.read_text('utf-8'))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f'{path} is damaged; restore it, or start another run with --workdir')
    try:
        return to_dict(resolve(cls, with_new_names(cls, before)))
    except ConfigError:  # it has a setting that no longer exists: compare the settings as they are in the file
        return before


def _check_settings(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    workdir: Path,
    stages: Sequence[str],
    by_content: bool,
    unused: Sequence[str],
) -> None:
    """Compares two flat dicts of settings.

    Args:
      stages: the stages that have trained.
      by_content: whether models and photos are compared by their hashes, so that their names do not matter.
      unused: names of settings from which nothing was learned.

    Raises:
      ConfigError: for the first setting that differs and would change what is learned.
    """
    unused = {*unused, *(_unused(old) & _unused(new))}
    for name in sorted({*old, *new}):
        before, value = old.get(name), new.get(name)
        if _is_same(name, before, value) or _plain(name) in unused or _is_free(name, new):
            continue
        if name.startswith(tuple(f'{stage}{end}' for stage in _STAGES if stage not in stages for end in '._')):
            continue
        if by_content and (name.startswith(_MODELS) or (_is_photos(name) and None not in (before, value))):
            continue
        if by_content and name.endswith(f'.{_SPLIT}'):
            continue
        length = ', the length of its cosine schedule' if _is_length(name) else ''
        raise ConfigError(
            f'config.{name} is {value!r} but {workdir} was begun with {before!r}{length}; set it back, or start '
            f'another run with --workdir'
        )


def _is_free(name: str, settings: Mapping[str, Any]) -> bool:
    if _is_length(name) and 'cosine' in (settings.get('optimizer.schedule'), settings.get('schedule')):
        return False  # the learning rate of every step depends on it
    return any(name == free or name.startswith(f'{free}.') for free in FREE)


def _is_length(name: str) -> bool:
    return name in ('steps', *(f'{stage}.steps' for stage in _STAGES))


def _unused(settings: Mapping[str, Any]) -> set[str]:
    """Returns the names of settings that have no influence on what is learned, given the other settings."""
    weight, kind = settings.get('prior.weight'), settings.get('prior.kind')
    found = set()
    if weight == 0 or kind == 'distillation':
        found |= {*_CLASS_IMAGES}
    if weight == 0:
        found |= {'prior.kind', 'prior.phrases', 'super_resolution.with_prior'}
        found |= {'data.class_prompt', 'data.subjects.class_prompt'}
    if weight == 0 or kind == 'distillation' or not settings.get('super_resolution.with_prior'):  # no class images
        found |= {f'super_resolution.sample_{name}' for name in ('noise_level', 'steps', 'guidance_scale')}
    return found


def _is_same(name: str, before: Any, value: Any) -> bool:
    if isinstance(before, str) and isinstance(value, str) and (name in _PATHS or name.endswith(f'.{_FOLDER}')):
        before, value = (os.path.realpath(os.path.expanduser(path)) for path in (before, value))
    return json.dumps(before) == json.dumps(value)


def _is_photos(name: str) -> bool:
    return name.endswith((f'.{_FOLDER}', f'.{_DATASET}'))


def _plain(name: str) -> str:
    """Removes the numbers of subjects: data.subjects[0].class_prompt -> data.subjects.class_prompt."""
    return re.sub(r'\[\d+\]', '', name)


def _flat(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns dotted name -> value. Subjects are numbered: data.subjects[0].class_prompt."""
    found = {}
    for name, value in settings.items():
        groups = isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value)
        if isinstance(value, Mapping):
            found |= _flat(value, f'{prefix}{name}.')
        elif groups:
            for number, one in enumerate(value):
                found |= _flat(one, f'{prefix}{name}[{number}].')
        else:
            found[prefix + name] = value
    return found
