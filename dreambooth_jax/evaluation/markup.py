"""HTML and SVG, written so that text cannot become markup: whatever is not `Markup` is escaped."""

import html
from typing import Any

_VOID = ('br', 'wbr', 'img', 'input', 'link', 'meta')  # elements that have no end tag


class Markup(str):
    """Text that is markup already; made here alone, but for what the package itself brings."""


def escaped(value: Any) -> Markup:
    """Returns a value as markup: `Markup` as it is, anything else as text that shows every character as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(*parts: Any) -> Markup:
    """Returns the parts one after the other; None is nothing."""
    return Markup(''.join(escaped(part) for part in parts if part is not None))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
      name: such as 'p'.
      children: what is in it; see `joined`.
      attributes: name -> value; a trailing _ is dropped and others become -, as in class_ and data_value. True: the
        attribute without a value; None and False: no attribute.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip('_').replace('_', '-')
        written.append(f' {key}' if value is True else f' {key}="{html.escape(str(value))}"')
    start = f'<{name}{"".join(written)}>'
    return Markup(start if name in _VOID else f'{start}{joined(*children)}</{name}>')
