"""Shows the machine's CPU to JAX as several devices, on which small models generate images faster than on one.

XLA cuts each operation of a small network into parts for the cores, which then mostly wait for each other. As devices
of their own the cores generate different images instead. A training step, whose gradients they would have to add up,
gains nothing, so that it stays on one of them (experiments/speed). Every device holds all weights.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

_COUNT = '--xla_force_host_platform_device_count'
_split = False  # whether `use` has done it, not the user


def use(count: int | None) -> None:
    """Sets XLA's flag, before anything asks JAX for devices; accelerators do not notice.

    Args:
      count: the number of devices; None: JAX's own, one. Whoever has set the number in XLA_FLAGS keeps it.
    """
    global _split
    given = os.environ.get('XLA_FLAGS', '')
    if count is None or _COUNT in given:
        return
    os.environ['XLA_FLAGS'] = f'{given} {_COUNT}={count}'.strip()
    _split = True


def training(devices: Sequence['jax.Device']) -> list['jax.Device']:
    """Returns those of all devices that train: all, or one of each process if `use` has divided its CPU."""
    if not _split or devices[0].platform != 'cpu':
        return list(devices)
    return list({device.process_index: device for device in reversed(devices)}.values())[::-1]
