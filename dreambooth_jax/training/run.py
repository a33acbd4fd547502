"""A run's folder: begun once with its settings, and gone on with under the same ones."""

import json
from pathlib import Path

import jax

from dreambooth_jax.config import Settings, SettingsError, resolve, to_dict

# Settings that may change between the starts of one run: they say how long, how often and where, not what is learned.
FREE = ('base.steps', 'super_resolution.steps', 'steps', 'checkpoint', 'samples', 'parallel', 'export', 'painters')


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
        temporary = path.with_suffix('.new')
        temporary.write_text(json.dumps(new, indent=2) + '\n')
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f'--workdir={workdir} cannot be written: {error.strerror}') from None


def _read(path: Path, cls: type[Settings]) -> dict:
    """The settings in a file; those younger than it have their defaults, which do what was done without them."""
    try:
        before = json.loads(path.read_text())
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
