"""From what a page or a program asks for to the command line of train: settings files, settings, their check.

Settings have the names of the settings files. They are checked as train checks them, without JAX, so that what can be
known to be wrong is refused before anything is queued.
"""

import dataclasses
import importlib.resources
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dreambooth_jax.config import ConfigError, DreamBoothConfig, PretrainConfig, resolve, to_config_dict, to_dict
from dreambooth_jax.config.described import described, unshown

OF_RUN = 'dreambooth_jax/config/of_run.py'


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A settings file that a run may begin with.

    Attributes:
      name: the file's name without .py.
      models: what may stand after its colon, such as 'sdxl'; empty: nothing.
      summary: its first line.
    """

    name: str
    models: tuple[str, ...]
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run is to be.

    Attributes:
      recipe: the name of a settings file.
      model: what stands after its colon; '': nothing.
      settings: dotted name -> value, where they differ.
    """

    recipe: str
    model: str
    settings: Mapping[str, Any]


class Recipes:
    """The settings files in a folder, such as configs/. They are Python files of the user's own and are run.

    Args:
      folder: the folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._kept: dict[Path, tuple[int, Any]] = {}
        self._found: tuple[Any, list[Recipe]] = (None, [])

    def all(self) -> list[Recipe]:
        """Returns the settings files of train; one that cannot be run is left out until it is asked for."""
        stamps = {path: path.stat().st_mtime_ns for path in sorted(self._folder.glob('*.py'))}
        if self._found[0] != stamps:
            self._found = stamps, self._look(stamps)
        return self._found[1]

    def _look(self, paths: Iterable[Path]) -> list[Recipe]:
        found = []
        for path in paths:
            if PretrainConfig.__name__ in path.read_text('utf-8', 'replace'):
                continue  # one of pretraining, which may take a second
            try:
                module = self._module(path)
                config = module.get_config()
            except Exception:  # a settings file is Python code and may raise anything
                continue
            if getattr(config, '_schema', None) is DreamBoothConfig:
                summary = (module.__doc__ or '').strip().split('\n')[0]
                found.append(Recipe(path.stem, tuple(getattr(module, 'MODELS', ())), summary))
        return found

    def config(self, wanted: Wanted) -> ConfigDict:
        """Returns the settings that are wanted.

        Raises:
          ConfigError: if the file, a name or a value is not known or not allowed.
        """
        config = self._begun(wanted)
        for name, value in wanted.settings.items():
            _assign(config, name, value)
        return config

    def checked(self, wanted: Wanted) -> DreamBoothConfig:
        """Returns the settings that are wanted, checked as train checks them.

        Raises:
          ConfigError: as `config`, and if settings exclude each other.
        """
        return resolve(DreamBoothConfig, self.config(wanted))

    def defaults(self, recipe: str, model: str) -> dict[str, Any]:
        """Returns dotted name -> value of every setting as a settings file has it.

        Raises:
          ConfigError: as `config`.
        """
        config = self._begun(Wanted(recipe=recipe, model=model, settings={}))
        return {one.name: _get(config, one.name) for one in described(DreamBoothConfig)}

    def unshown(self, recipe: str, model: str) -> dict[str, Any]:
        """Returns dotted name -> value of the settings in a settings file that no form can hold, as plain values.

        A run that begins with the file has them too.

        Raises:
          ConfigError: as `config`.
        """
        config, nothing = (
            self._begun(Wanted(recipe=recipe, model=model, settings={})),
            to_config_dict(DreamBoothConfig()),
        )
        found = {name: (_get(config, name), _get(nothing, name)) for name in unshown(DreamBoothConfig)}
        return {name: value for name, (value, default) in found.items() if value != default}

    def arguments(self, wanted: Wanted, workdir: Path) -> list[str]:
        """Returns the flags of train for what is wanted, which has been checked."""
        file = self._path(wanted.recipe)
        found = [f'--config={file}{":" if wanted.model else ""}{wanted.model}', f'--workdir={workdir}']
        return found + [f'--config.{name}={written(value)}' for name, value in wanted.settings.items()]

    def _begun(self, wanted: Wanted) -> ConfigDict:
        path = self._path(wanted.recipe)
        try:
            config = self._module(path).get_config(*([wanted.model] if wanted.model else []))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f'{path}: {type(error).__name__}: {error}') from None
        if getattr(config, '_schema', None) is not DreamBoothConfig:
            raise ConfigError(f'{path} holds no settings of train')
        return config

    def _path(self, recipe: str) -> Path:
        found = {path.stem: path for path in self._folder.glob('*.py')}
        if recipe not in found:
            raise ConfigError(f'config is {recipe!r} but must be one of {", ".join(sorted(found))}')
        return found[recipe]

    def _module(self, path: Path):
        changed = path.stat().st_mtime_ns
        if self._kept.get(path, (None,))[0] != changed:
            spec = importlib.util.spec_from_file_location(f'settings_file_{path.stem}', path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._kept[path] = changed, module
        return self._kept[path][1]


def again(run: Path, *more: str) -> list[str]:
    """Returns the flags of train that go on with a run by its own settings.

    Args:
      run: the run's folder.
      more: further flags, such as --extend=200.
    """
    file = importlib.resources.files('dreambooth_jax.config') / 'of_run.py'
    return [f'--config={_short(Path(str(file)))}:{run}', f'--workdir={run}', *more]


def written(value: Any) -> str:
    """Returns a setting's value as it is written on a command line."""
    return value if isinstance(value, str) else repr(tuple(value)) if isinstance(value, list | tuple) else repr(value)


def differing(config: ConfigDict, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted name -> value of the settings that are not the given ones."""
    return {name: value for name, before in defaults.items() if (value := _get(config, name)) != before}


def flat(settings: DreamBoothConfig) -> dict[str, Any]:
    """Returns dotted name -> value of every setting, those that no form can hold last."""
    plain, found = to_dict(settings), {}
    for name in (*(one.name for one in described(DreamBoothConfig)), *unshown(DreamBoothConfig)):
        value: Any = plain
        for part in name.split('.'):
            value = value[part]
        found[name] = value
    return found


def _short(path: Path) -> Path:
    """Returns a path from where the server runs, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _assign(config: ConfigDict, name: str, value: Any) -> None:
    known = {one.name for one in described(DreamBoothConfig)}
    *groups, last = name.split('.')
    for group in groups:
        config = config[group]
        if not isinstance(config, ConfigDict):
            raise ConfigError(f'config.{name} is not a known setting; what stands before its last dot is one itself')
    if name not in known:
        config[last]  # says what is known there
        raise ConfigError(
            f'config.{name} is no single setting, so it cannot be given here; write it in a settings file'
        )
    if isinstance(value, dict):
        raise ConfigError(f'config.{name} must not be a group of settings')
    config[last] = tuple(value) if isinstance(value, list) else value


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split('.'):
        config = config[part]
    return config
