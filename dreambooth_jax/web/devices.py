"""Sets of accelerators, of which each runs one job at a time, and how a process is shown one set alone.

Nothing here looks at the machine: the server does not load JAX, and must not take the devices that it gives away.

Source: NVIDIA's CUDA programming guide for CUDA_VISIBLE_DEVICES; for TPUs the variables that libtpu reads, as JAX's
developers list them for several processes on one TPU VM (gist skye/f82ba45d2445bb19d53545538754f9a3). No set was tried
on a TPU or on several GPUs.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from dreambooth_jax.config import ConfigError

# How many chips of a TPU -> how they lie beside each other on a host of four or eight.
_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}
_FIRST_PORT = 8476  # each process on a TPU host has one of its own


@dataclasses.dataclass(frozen=True)
class DeviceSet:
    """Some of a machine's accelerators.

    Attributes:
      numbers: their numbers, from 0; (): all that there are, however many.
    """

    numbers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Returns the numbers as the flag --devices has them, such as '0,1'; '' for all."""
        return ','.join(map(str, self.numbers))

    def overlaps(self, other: 'DeviceSet') -> bool:
        """Returns whether a device is in both; all that there are overlap with any."""
        return not self.numbers or not other.numbers or bool({*self.numbers} & {*other.numbers})

    def environment(self) -> dict[str, str]:
        """Returns the variables that show a process these devices alone; {} for all."""
        if not self.numbers:
            return {}
        found = {'CUDA_VISIBLE_DEVICES': self.name, 'TPU_VISIBLE_CHIPS': self.name, 'TPU_VISIBLE_DEVICES': self.name}
        if len(self.numbers) in _BOUNDS:
            port = str(_FIRST_PORT + self.numbers[0])
            found |= {
                'TPU_CHIPS_PER_PROCESS_BOUNDS': _BOUNDS[len(self.numbers)],
                'TPU_PROCESS_BOUNDS': '1,1,1',
                'TPU_MESH_CONTROLLER_ADDRESS': f'localhost:{port}',
                'TPU_MESH_CONTROLLER_PORT': port,
            }
        return found


ALL = DeviceSet()


def named(name: str | None) -> DeviceSet:
    """Returns the set of a name; None and '' are all devices, as jobs had them before there were sets."""
    return DeviceSet(tuple(map(int, name.split(',')))) if name else ALL


def parse(texts: Sequence[str]) -> tuple[DeviceSet, ...]:
    """Returns the sets of the flag --devices, given once for each set; one set of all devices if it is not given.

    Raises:
      ConfigError: if a value is no list of numbers, or two have a device in common.
    """
    for text in texts:
        if not re.fullmatch(r'\d+(,\d+)*', text) or len({*text.split(',')}) < len(text.split(',')):
            raise ConfigError(f'--devices={text} must be numbers of accelerators, each once, such as 0,1')
    found = tuple(map(named, texts)) or (ALL,)
    for one, other in itertools.combinations(found, 2):
        if one.overlaps(other):
            raise ConfigError(
                f'--devices={one.name} and --devices={other.name} have a device in common; each can be of one set only'
            )
    return found
