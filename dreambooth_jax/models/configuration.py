"""Completes the contents of a config.json with the defaults of the reference, and checks them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def wrong(network: str, key: str, value: Any, allowed: str) -> ValueError:
    """Returns the error for an unsupported value, e.g. ('vae', 'layers_per_block', 0, 'a positive integer')."""
    return ValueError(f'{network} config: {key} is {value!r} but must be {allowed}')


def is_positive(value: Any, kind) -> bool:
    """Whether the value is a finite number above zero of this type, or one of a union of types; a bool is no number."""
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


def check_known(network: str, config: Mapping[str, Any], known: Iterable[str], told: Iterable[str] = ()) -> None:
    """Raises ValueError, one sentence, for a key of a config.json that is not known and does not start with '_'.

    Args:
      network: name of the network for the error.
      known: all keys that may be there.
      told: those that the error lists; empty: all of them.
    """
    known = set(known)
    unknown = sorted(key for key in config if key not in known and not key.startswith('_'))
    if unknown:
        allowed = tuple(sorted(told or known))
        raise ValueError(f'{network} config: unknown key {unknown[0]!r}; it must be one of {allowed}')


def resolve(
    network: str,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    choices: Mapping[str, tuple],
    fixed: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Completes a config.json and checks its values, except lists, which the network checks itself.

    Args:
      network: name of the network for an error.
      config: contents of the file; keys that `defaults` lacks are left out.
      defaults: {key: default in the constructor of the reference}. The type of the default determines which values are
        allowed: positive integers for an int, positive numbers for a float, bools for a bool.
      choices: {key: allowed values}, which replace the rule of `defaults`.
      fixed: keys for which only the default is allowed.

    Returns:
      All keys of `defaults`.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    full = {key: config.get(key, default) for key, default in defaults.items()}
    for key, value in full.items():
        default = defaults[key]
        if key in fixed:
            if value != default:
                raise wrong(network, key, value, f'{default!r}: no other value is implemented')
        elif key in choices:
            if value not in choices[key]:
                raise wrong(network, key, value, f'one of {choices[key]}')
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise wrong(network, key, value, 'one of (False, True)')
        elif isinstance(default, int):
            if not is_positive(value, int):
                raise wrong(network, key, value, 'a positive integer')
        elif isinstance(default, float) and not is_positive(value, int | float):
            raise wrong(network, key, value, 'a positive number')
    return full
