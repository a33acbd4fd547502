"""The machinery behind the settings: frozen dataclasses -> locked ConfigDict -> checked dataclasses; all error texts.

The dataclasses are the only list of settings. `to_config_dict` turns them into a ConfigDict, which config files and the
command line may change; `resolve` checks it and turns it back into dataclasses once. No other module handles a
ConfigDict. A setting's type is its annotation. Its range is the text given to `setting`, which the error repeats:

    weight: float = setting(1.0, '>= 0')        ->  config.prior.weight must be >= 0, got -1.0

Known types: bool, int, float, str, Literal, tuple, dict (free-form), another dataclass of settings, and X | None.
"""

import ast
import dataclasses
import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import config_dict, config_flags
from ml_collections.config_flags import tuple_parser

ROOT = 'config'  # the flag's name: --config=FILE --config.prior.weight=0
_NAMES = {bool: 'True or False', int: 'an int', float: 'a number', str: 'a string', dict: 'a dict'}
_PLURALS = {int: 'ints', float: 'numbers', str: 'strings'}


class ConfigError(Exception):
    """A setting has a value that is not allowed. The message is one sentence: dotted name, value, what is allowed.

    It is not a ValueError, because config_flags would answer that with a page of traceback; this one reaches the
    program.
    """


class UnknownSettingError(ConfigError, AttributeError, KeyError):
    """A name is not a setting. It is also the error that Python expects for a missing attribute and a missing key."""

    def __str__(self):  # KeyError's own __str__ would put the sentence in quotes
        return self.args[0]


def setting(
    default: Any,
    allowed: str | None = None,
    *,
    formerly: str | None = None,
    former_values: Mapping[str, str] | None = None,
) -> Any:
    """Declares a setting with a range, or one that had other names before.

    Args:
      allowed: '>= 0', '> 0' or an interval such as 'in [0, 1)'; every entry of a tuple must be inside. None: any value.
      formerly: the setting's former name. It is an error that says the new one, but in a begun run's config.json.
      former_values: former name of a value -> its name now; handled in the same way.
    """
    if allowed is not None:
        _is_within(0, allowed)
    names = {'formerly': formerly, 'former_values': former_values or {}}
    return dataclasses.field(default=default, metadata={'allowed': allowed, **names})


def path_setting(default: str | None) -> Any:
    """Declares a setting that is the path of a file or folder, or may be one (a model); `expanded` is applied to it."""
    return dataclasses.field(default=default, metadata={'is_path': True})


def expanded(name: str, path: str) -> str:
    """Replaces ~ and ~user at the beginning of a path by the home folder.

    Args:
      name: name of the setting or flag, for the error.
      path: the path as the user wrote it.

    Raises:
      ConfigError: if the path is empty (often because a shell variable is not set), or cannot be a path.
    """
    if not path.strip():
        raise ConfigError(f'{name} is {path!r}, which is no path; give one (is a shell variable not set?)')
    home = os.path.expanduser(path)
    if home.startswith('~') and not os.path.lexists(home):
        user = home.partition(os.sep)[0]
        raise ConfigError(f'{name} is {path!r} but there is no home folder {user}; write the whole path, or ./{path}')
    try:
        possible = b'\0' not in os.fsencode(home)
    except UnicodeEncodeError:  # a console without Unicode, such as LC_ALL=C with PYTHONUTF8=0
        possible = False
    if not possible:
        raise ConfigError(f'{name} is {path!r}, which holds characters that no path can hold here; give another')
    return home


def _is_within(value: float, allowed: str) -> bool:
    if match := re.fullmatch(r'(>=?) (\S+)', allowed):
        low = float(match[2])
        return value >= low if match[1] == '>=' else value > low
    match = re.fullmatch(r'in ([\[(])(\S+), (\S+)([\])])', allowed)
    if not match:
        raise ValueError(f'range {allowed!r} must look like ">= 0", "> 0" or "in [0, 1)"')
    low, high = float(match[2]), float(match[3])
    above = value >= low if match[1] == '[' else value > low
    return above and (value <= high if match[4] == ']' else value < high)


class Config:
    """Base class of all groups of settings. It checks and converts every field when a group is created."""

    def __post_init__(self):
        for name, field in _fields(type(self)).items():
            object.__setattr__(self, name, field.convert(name, getattr(self, name)))

    def check(self, path: str) -> None:
        """Checks rules between settings and raises ConfigError. `resolve` calls it with the group's dotted name."""


@dataclasses.dataclass(frozen=True)
class _Field:
    """One setting: its type without None, whether None is allowed, range, whether it is a path, and former names."""

    kind: Any
    optional: bool
    allowed: str | None = None
    is_path: bool = False
    formerly: str | None = None
    former_values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def convert(self, path: str, value: Any) -> Any:
        if value is None and self.optional:
            return None
        return _convert(path, self, value)

    def wrong(self, path: str, value: Any) -> ConfigError:
        wanted = _describe(self.kind) + (' or None' if self.optional else '')
        kind = '' if value is None else f' ({type(value).__name__})'
        return ConfigError(f'{path} must be {wanted}, got {value!r}{kind}')


@functools.cache
def _fields(cls: type) -> dict[str, _Field]:
    hints = typing.get_type_hints(cls)
    return {field.name: _field(hints[field.name], **field.metadata) for field in dataclasses.fields(cls)}


def _field(hint: Any, **metadata: Any) -> _Field:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # Union: a Literal or None
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return _Field(kinds[0], len(kinds) < len(typing.get_args(hint)), **metadata)
    return _Field(hint, False, **metadata)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return 'one of ' + ', '.join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        entries = typing.get_args(kind)
        number = '' if entries[-1] is ... else f'{len(entries)} '
        return f'a tuple of {number}{_PLURALS.get(entries[0], "groups of settings")}'
    if dataclasses.is_dataclass(kind):
        return f'a group of settings ({", ".join(_fields(kind))})'
    return _NAMES[kind]


def _convert(path: str, field: _Field, value: Any) -> Any:
    """Converts a value to the field's type; raises ConfigError if it is not allowed."""
    kind = field.kind
    if dataclasses.is_dataclass(kind):
        return _resolve(kind, value, path)
    if kind is dict:
        if not isinstance(value, Mapping | config_dict.ConfigDict):
            raise field.wrong(path, value)
        return _free_form(path, value)
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            if isinstance(value, str) and value in field.former_values:
                raise ConfigError(f'{path} is {value!r}, which is now called {field.former_values[value]!r}')
            none = ' or None' if field.optional else ''
            raise ConfigError(f'{path} must be {_describe(kind)}{none}, got {value!r}')
        return value
    if typing.get_origin(kind) is tuple:
        entries = typing.get_args(kind)
        endless = entries[-1] is ...
        if not isinstance(value, tuple | list) or not (endless or len(value) == len(entries)):
            raise field.wrong(path, value)
        entry = _field(entries[0], allowed=field.allowed)
        return tuple(entry.convert(f'{path}[{index}]', item) for index, item in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise field.wrong(path, value)
    if field.is_path:
        return expanded(path, value)
    if kind is str and not is_unicode(value):
        raise ConfigError(f'{path} is {value!r}, which is not UTF-8 in this console; set LC_ALL=C.UTF-8')
    if kind is float and not math.isfinite(value):
        raise ConfigError(f'{path} must be a finite number, got {value}')
    if field.allowed and not _is_within(value, field.allowed):
        raise ConfigError(f'{path} must be {field.allowed}, got {value}')
    return value


def is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode. Python represents bytes that it cannot decode as lone surrogates."""
    return not any('\ud800' <= character <= '\udfff' for character in text)


def _free_form(path: str, value: Any) -> Any:
    """Converts a free-form setting to plain dicts, tuples and scalars, so that it compares equal after JSON."""
    if isinstance(value, Mapping | config_dict.ConfigDict):
        return {str(key): _free_form(f'{path}.{key}', value[key]) for key in value}
    if isinstance(value, tuple | list):
        return tuple(_free_form(f'{path}[{index}]', item) for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ConfigError(f'{path} must be a number, string, bool or None, or tuples or dicts of them, got {value!r}')


def with_new_names(cls: type[Config], written: Any) -> Any:
    """Replaces the former names of settings and values (see `setting`) by the present ones.

    Args:
      cls: the group of settings that `written` describes.
      written: plain dicts, as read from JSON. Anything else that is wrong in them stays as it is.
    """
    if not isinstance(written, Mapping):
        return written
    fields = _fields(cls)
    today = {field.formerly: name for name, field in fields.items() if field.formerly}
    renamed = {today.get(name, name): value for name, value in written.items()}
    for name, value in renamed.items():
        field = fields.get(name)
        if field is None:
            continue
        entry = typing.get_args(field.kind)[0] if _holds_groups(field) else None
        if isinstance(value, str):
            renamed[name] = field.former_values.get(value, value)
        elif dataclasses.is_dataclass(field.kind):
            renamed[name] = with_new_names(field.kind, value)
        elif isinstance(value, list | tuple) and entry is not None:
            renamed[name] = tuple(with_new_names(entry, one) for one in value)
    return renamed


def _leaves(cls: type, path: str) -> Iterator[str]:
    for name, field in _fields(cls).items():
        if dataclasses.is_dataclass(field.kind):
            yield from _leaves(field.kind, f'{path}.{name}')
        else:
            yield f'{path}.{name}'


def _unknown(path: str, name: str, names: list[str], leaves: Iterable[str] = ()) -> UnknownSettingError:
    near = [f'{path}.{match}' for match in difflib.get_close_matches(name, names, 1, cutoff=0.7)]
    near = near or [leaf for leaf in leaves if leaf.endswith(f'.{name}')]
    hint = f'did you mean {" or ".join(near)}?' if near else f'known here: {", ".join(names)}'
    return UnknownSettingError(f'{path}.{name} is not a known setting; {hint}')


def _unknown_of(cls: type, path: str, name: str) -> UnknownSettingError:
    for new, field in _fields(cls).items():
        if field.formerly == name:
            return UnknownSettingError(f'{path}.{name} is now called {path}.{new}')
    return _unknown(path, name, list(_fields(cls)), _leaves(cls, path))


class CheckedConfigDict(config_dict.ConfigDict):
    """A ConfigDict that knows its settings and therefore checks every assignment at once, with our error texts.

    If `schema` is None, it is a free-form setting: unlocked, with any keys.
    """

    def __init__(self, schema: type[Config] | None, path: str, values: Mapping[str, Any] | None = None):
        super().__init__(values, sort_keys=False)
        object.__setattr__(self, '_schema', schema)
        object.__setattr__(self, '_path', path)

    def __reduce__(self):  # for copy and pickle: ConfigDict's own would call __init__ without arguments
        return _rebuild, (self._schema, self._path, self._fields, self.is_locked)

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str):
        if '.' in name or name in self._fields:
            return super().__getitem__(name)
        raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownSettingError:
        if self._schema is None:
            return _unknown(self._path, name, list(self._fields))
        return _unknown_of(self._schema, self._path, name)

    def __setattr__(self, name: str, value: Any):
        self[name] = value

    def __setitem__(self, name: str, value: Any):
        if not self.is_locked or isinstance(value, config_dict.FieldReference):
            super().__setitem__(name, value)
            return
        if name not in self._fields:
            raise self._unknown(name)
        field, path = _fields(self._schema)[name], f'{self._path}.{name}'
        if isinstance(self[name], CheckedConfigDict):
            if not isinstance(value, Mapping | config_dict.ConfigDict):
                raise field.wrong(path, value)
            for key in value:
                self[name][key] = value[key]
            return
        value = field.convert(path, value)
        if field.kind is dict:
            value = CheckedConfigDict(None, path, value)
        elif _holds_groups(field):
            value = tuple(to_dict(item) for item in value)
        super().__setitem__(name, value)

    def get_type(self, key: str):
        """Returns a setting's type; `X | None` if it is optional, so that the command line can set it to None."""
        kind = super().get_type(key)
        return kind | None if self._schema and _fields(self._schema)[key].optional else kind


def _rebuild(schema: type[Config] | None, path: str, fields: dict[str, Any], locked: bool) -> CheckedConfigDict:
    out = CheckedConfigDict(schema, path)
    out._fields.update(fields)
    object.__setattr__(out, '_locked', locked)
    return out


def _holds_groups(field: _Field) -> bool:
    return typing.get_origin(field.kind) is tuple and dataclasses.is_dataclass(typing.get_args(field.kind)[0])


class _TupleParser(tuple_parser.TupleParser):
    """A parser that refuses a broken tuple, such as one without its last bracket; the parent takes it for a string."""

    def parse(self, argument: Any) -> Any:
        if isinstance(argument, str) and re.match(r'[(\[]?\s*["\']', argument):
            try:
                ast.literal_eval(argument)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f'it is no tuple of strings ({error.args[0]})') from None
        return super().parse(argument)


class _OptionalParser:
    """Command-line parser of an `X | None` setting, with the interface of absl's ArgumentParser: 'None' means None."""

    syntactic_help = ''

    def __init__(self, kind: type):
        self.kind = kind

    def parse(self, text: Any) -> Any:
        if text is None or text == 'None':
            return None
        return _TupleParser().parse(text) if self.kind is tuple else self.kind(text)

    def flag_type(self) -> str:
        return f'{self.kind.__name__} or None'


config_flags.register_flag_parser_for_type(tuple, _TupleParser())
for _kind in (int, float, str, tuple):
    config_flags.register_flag_parser_for_type(_kind | None, _OptionalParser(_kind))


def to_config_dict(settings: Config, path: str = ROOT) -> CheckedConfigDict:
    """Turns a group of settings into a locked ConfigDict, in which only free-form settings stay unlocked."""
    out = CheckedConfigDict(type(settings), path)
    free = []
    for name, field in _fields(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, Config):
            out[name] = to_config_dict(value, f'{path}.{name}')
        elif field.kind is dict:
            out[name] = CheckedConfigDict(None, f'{path}.{name}', value)
            free.append(out[name])
        elif field.optional:
            out[name] = config_dict.placeholder(_class_of(field.kind))
            out[name] = value
        else:
            out[name] = tuple(to_dict(item) for item in value) if _holds_groups(field) else value
    out.lock()
    for value in free:
        value.unlock()
    return out


def _class_of(kind: Any) -> type:
    """Returns the class of a setting's values."""
    if typing.get_origin(kind) is typing.Literal:
        return type(typing.get_args(kind)[0])
    return typing.get_origin(kind) or kind


def resolve(cls: type[Config], config: Any) -> Any:
    """Checks a whole config and returns it as the dataclass `cls`.

    Args:
      config: the result of a config file's get_config(), or the dict in a run's config.json. Missing settings take
        their defaults.

    Raises:
      ConfigError: if a setting is unknown, has a wrong type, is not one of the choices or is out of range, or if two
        settings exclude each other.
    """
    return _resolve(cls, config, ROOT)


def _resolve(cls: type[Config], config: Any, path: str) -> Any:
    if isinstance(config, cls):
        config = {name: getattr(config, name) for name in _fields(cls)}
    if not hasattr(config, 'keys'):
        raise _field(cls).wrong(path, config)
    for name in config.keys():
        if name not in _fields(cls):
            raise _unknown_of(cls, path, name)
    given = {name: field for name, field in _fields(cls).items() if name in config}
    settings = cls(**{name: field.convert(f'{path}.{name}', config[name]) for name, field in given.items()})
    settings.check(path)
    return settings


def to_dict(settings: Config) -> dict[str, Any]:
    """Turns settings into nested dicts and lists for JSON; `resolve` turns them back into an equal dataclass."""

    def plain(value):
        if isinstance(value, Config):
            return to_dict(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {name: plain(getattr(settings, name)) for name in _fields(type(settings))}
