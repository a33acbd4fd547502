"""A run's folder: begun once with its settings, and gone on with under the same ones."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax

from dreambooth_jax.config import Settings, SettingsError, resolve, to_dict
from dreambooth_jax.system import disk, lock

# Settings that may change between the starts of one run: they say how long, how often and where, not what is learned.
FREE = ('base.steps', 'super_resolution.steps', 'steps', 'checkpoint', 'samples', 'parallel', 'export', 'painters')


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps other processes from working in the run's folder, which is made if missing; hosts of one run share it.

    Raises: LockError if one does; SettingsError if the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                held.enter_context(lock.locked(workdir, 'wait for it, or start this one with another --workdir'))
            except OSError as error:
                raise _unwritable(workdir, error) from None
        yield


def _unwritable(workdir: Path, error: OSError) -> SettingsError:
    return SettingsError(f'--workdir={workdir} cannot be written: {disk.reason(error)}')


def begin(config: Settings, workdir: Path) -> None:
    """Makes the folder and writes config.json, or checks that the settings are those the run was begun with.

    Raises: SettingsError if another value would change what is learned, naming both; if the folder cannot be written.
    """
    path = workdir / 'config.json'
    new = to_dict(config)
    if path.exists():
        for name, (old, value) in _differences(_read(path, type(config)), new).items():
            if not any(name == free or name.startswith(f'{free}.') for free in FREE):
                raise SettingsError(
                    f'config.{name} is {value!r} but {workdir} was begun with {old!r}; set it back, or start another '
                    f'run with --workdir'
                )
    if jax.process_index() != 0:
        return  # one writer, where several hosts share the folder
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with disk.writing(path) as temporary:
            temporary.write_text(json.dumps(new, indent=2) + '\n', 'utf-8')
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _read(path: Path, cls: type[Settings]) -> dict:
    """The settings in a file; those younger than it have their defaults, which do what was done without them."""
    try:
        before = json.loads(path.read_text('utf-8'))
    except ValueError:
        raise SettingsError(f'{path} is damaged; restore it, or start another run with --workdir') from None
    try:
        return to_dict(resolve(cls, before))
    except SettingsError:  # a setting that is no more: compared as it stands there
        return before


def _differences(old: dict, new: dict, prefix: str = '') -> dict[str, tuple]:
    found = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _differences(before, after, f'{prefix}{name}.')
        elif json.dumps(before) != json.dumps(after):
            found[prefix + name] = (before, after)
    return found
