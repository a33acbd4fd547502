"""Contents of a config.json, completed with the reference's defaults and checked: one sentence for a wrong value."""

import math
from collections.abc import Mapping
from typing import Any


def wrong(network: str, key: str, value: Any, allowed: str) -> ValueError:
    """The error of a value that is not supported, e.g. of ('vae', 'layers_per_block', 0, 'a positive integer')."""
    return ValueError(f'{network} config: {key} is {value!r} but must be {allowed}')


def is_positive(value: Any, kind) -> bool:
    """Whether it is a finite number of this kind (a type or a union of them) above zero; True is no number."""
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


def resolve(
    network: str,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    choices: Mapping[str, tuple],
    fixed: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Completes a config.json and checks what it says, except lists, which the network checks.

    Args:
      network: what an error calls it.
      config: keys that `defaults` lacks are left out.
      defaults: of the reference's constructor. A value must be of its default's kind: a positive integer for an
        integer, a positive number for a float, a bool for a bool.
      choices: {key: values allowed}, instead of the kind.
      fixed: keys that have no other value than the default.
    Returns: every key of `defaults`.
    Raises: ValueError, one sentence with the key, the value found and the values allowed.
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
