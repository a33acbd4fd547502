"""The settings with what their source says about them, for forms: the comments above them are their only docs."""

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any

from dreambooth_jax.config import schema
from dreambooth_jax.config.schema import Config

_FIELD = re.compile(r'    (\w+): ')
_COMMENT = re.compile(r'    # ?(.*)')


@dataclasses.dataclass(frozen=True)
class Described:
    """One setting.

    Attributes:
      name: dotted, such as 'base.steps'.
      group: what stands before the last dot; '' at the top.
      doc: the comment above it, in one line.
      kind: its type in words, such as 'an int or None'.
      choices: its values, if they are listed.
      allowed: its range, such as '> 0'; None: any value of the type.
      default: its value unless something else is given.
    """

    name: str
    group: str
    doc: str
    kind: str
    choices: tuple[Any, ...]
    allowed: str | None
    default: Any


@functools.cache
def described(cls: type[Config]) -> tuple[Described, ...]:
    """Returns every setting of a group and of the groups in it, but for lists of groups, which no form can hold."""
    return tuple(_of(cls(), ''))


@functools.cache
def unshown(cls: type[Config]) -> tuple[str, ...]:
    """Returns the dotted names of the settings that no form can hold, which `described` leaves out."""
    return tuple(_unshown(cls(), ''))


def _unshown(settings: Config, prefix: str) -> list[str]:
    found = []
    for name, field in schema._fields(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, Config):
            found += _unshown(value, f'{prefix}{name}.')
        elif _is_unshown(field):
            found.append(prefix + name)
    return found


def _is_unshown(field: schema._Field) -> bool:
    return schema._holds_groups(field) or field.kind is dict


def _of(settings: Config, prefix: str) -> list[Described]:
    docs, found = _docs(type(settings)), []
    for name, field in schema._fields(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, Config):
            found += _of(value, f'{prefix}{name}.')
        elif not _is_unshown(field):
            is_listed = typing.get_origin(field.kind) is typing.Literal
            choices = (*([None] if field.optional else []), *typing.get_args(field.kind)) if is_listed else ()
            kind = schema._describe(field.kind) + (' or None' if field.optional else '')
            doc = docs.get(name, '')
            found.append(Described(prefix + name, prefix.rstrip('.'), doc, kind, choices, field.allowed, value))
    return found


def _docs(cls: type[Config]) -> dict[str, str]:
    """Returns the name of each setting of a group -> the comment right above it."""
    found = {}
    for parent in reversed(cls.__mro__):
        if not (issubclass(parent, Config) and dataclasses.is_dataclass(parent)):
            continue
        above: list[str] = []
        last = ''  # of the field before; a comment may be about several fields in a row
        for line in inspect.getsource(parent).splitlines():
            if comment := _COMMENT.fullmatch(line):
                above.append(comment[1].strip())
                continue
            if field := _FIELD.match(line):
                last = ' '.join(above) or last
                found[field[1]] = last
            elif not line.strip():
                last = ''
            above = []
    return found
