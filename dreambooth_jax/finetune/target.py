"""The devices that a run is planned for: those at hand, or those of a TPU that is not there."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

import jax

from dreambooth_jax.config import ConfigError
from dreambooth_jax.system import cpu_devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The devices that a plan is for.

    Attributes:
      devices: all that train; None: all that JAX has here.
      name: their number and kind, for the plan.
      compiler: whose compiler counts temporaries, for the plan; None: they are not counted.
      present: whether the devices are here, so that their speed can be measured.
    """

    devices: Sequence[jax.Device] | None
    name: str
    compiler: str | None = None
    present: bool = True

    @property
    def first(self) -> jax.Device:
        """The device on which a process puts arrays that have no layout."""
        return (self.devices or jax.local_devices())[0]

    @property
    def count(self) -> int:
        """The number of devices."""
        return len(self.devices or jax.devices())


@contextlib.contextmanager
def planned_for(topology: str | None = None, *, compiled: bool = False) -> Iterator[Target]:
    """Gives the devices to plan for. What is read and traced inside is meant for them.

    Args:
      topology: a TPU that need not be here, such as 'v5e:2x4', or one chip of it, 'v6e:1x1'; None: the devices at hand.
      compiled: whether the compiler counts temporaries; with a topology it always does.

    Raises:
      ConfigError: if the topology is unknown or libtpu is not installed.
    """
    if topology is None:
        training, backend = cpu_devices.training(), jax.default_backend()
        name = f'{len(training or jax.devices())} x {jax.devices()[0].device_kind}'
        yield Target(devices=training, name=name, compiler=f'XLA for {backend}' if compiled else None)
        return
    devices = _described(topology)
    name = f'{len(devices)} x {devices[0].device_kind} ({topology}, not here)'
    # The package chooses dtype, attention and steps per dispatch by the backend that it finds.
    found = jax.default_backend
    jax.default_backend = lambda: 'tpu'
    try:
        yield Target(devices=devices, name=name, compiler=f'XLA for {topology}, ahead of time', present=False)
    finally:
        jax.default_backend = found


def _described(topology: str) -> list[jax.Device]:
    from jax.experimental import topologies

    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU here: do not ask the network for its address
    # A host has 2x2 chips for the compiler unless it is told otherwise. One chip alone is a host of its own.
    alone = {'chips_per_host_bounds': (1, 1, 1)} if re.fullmatch(r'[^:]+:1(x1)+', topology) else {}
    try:
        return list(topologies.get_topology_desc(topology, platform='tpu', **alone).devices)
    except RuntimeError as error:  # JaxRuntimeError is one too
        reason = str(error).strip().splitlines()[0]
    if 'not installed' in reason:
        raise ConfigError(
            f'--topology={topology} needs the TPU compiler, which is not installed; install it: pip install libtpu'
        )
    if not reason.startswith('INVALID_ARGUMENT'):  # such as: another process has loaded libtpu
        raise ConfigError(f'--topology={topology}: the compiler of libtpu does not start ({reason}); try again later')
    raise ConfigError(
        f'--topology={topology} is no TPU that the installed libtpu knows ({reason}); give one such as v5e:2x4, '
        f'or v6e:1x1 for one chip'
    )
