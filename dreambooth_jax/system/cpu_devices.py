"""Shows the machine's CPU to JAX as several devices, on which small models generate images faster than on one.

XLA cuts each operation of a small network into parts for the cores, which then mostly wait for each other. As devices
of their own the cores generate different images instead. A training step, whose gradients they would have to add up,
gains nothing, so that it stays on one of them (experiments/speed). Every device holds all weights.
"""

import os
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


def training() -> list['jax.Device'] | None:
    """Returns the devices that train: one of each process if `use` has divided its CPU; None: all."""
    if not _split:
        return None
    import jax

    if jax.default_backend() != 'cpu':
        return None
    return list({device.process_index: device for device in reversed(jax.devices())}.values())[::-1]
