"""The devices that a run is planned for: those at hand, or a TPU or NVIDIA cards that are not there."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from dreambooth_jax.config import ConfigError
from dreambooth_jax.finetune.cards import CARDS, Card, target_config
from dreambooth_jax.system import cpu_devices, cuda

# XLA tries a card's own kernels of products out before it takes one. Without a card it takes the first, which fails for
# some shapes in float32, so that all products are left to cuBLAS.
WITHOUT_A_CARD = {'xla_gpu_enable_triton_gemm': False}
# FLOP/s of a chip in bfloat16, by Google's pages on each kind of Cloud TPU.
_CHIP_SPEEDS = {'TPU v4': 275e12, 'TPU v5': 459e12, 'TPU v5 lite': 197e12, 'TPU v6 lite': 918e12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The devices that a plan is for.

    Attributes:
      devices: all that train; None: all that JAX has here.
      name: their number and kind, for the plan.
      compiler: whose compiler counts temporaries, for the plan; None: they are not counted.
      present: whether the devices are here, so that their speed can be measured.
      speed: FLOP/s of all together by the makers' data sheets, of devices that are not here; None: not known.
      memory: the bytes of one device that programs may take; None: the compiler itself refuses what takes more.
      compiler_options: options of XLA by which it compiles for these devices; None: those that it has.
    """

    devices: Sequence[jax.Device] | None
    name: str
    compiler: str | None = None
    present: bool = True
    speed: float | None = None
    memory: int | None = None
    compiler_options: Mapping[str, Any] | None = None

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
      topology: a TPU or cards that need not be here, such as 'v5e:2x4', 'v6e:1x1' for one chip, 'h100' or 'rtx4090:2';
        None: the devices at hand.
      compiled: whether the compiler counts temporaries; with a topology it always does.

    Raises:
      ConfigError: if the topology is unknown, or libtpu or JAX's plugin for CUDA is not installed.
    """
    if topology is None:
        training, backend = cpu_devices.training(), jax.default_backend()
        name = f'{len(training or jax.devices())} x {jax.devices()[0].device_kind}'
        yield Target(devices=training, name=name, compiler=f'XLA for {backend}' if compiled else None)
        return
    name, _, count = topology.partition(':')
    card = CARDS.get(name)
    devices = _chips(topology) if card is None else _cards(topology, card, count)
    speed = _CHIP_SPEEDS.get(devices[0].device_kind) if card is None else card.speed
    # The package chooses dtype, attention and steps per dispatch by the backend that it finds.
    backend = 'tpu' if card is None else 'gpu'
    # The latest cards have kernels for heads wider than 128 too, but jax.nn itself would ask a card that is here.
    capability = None if card is None else min(card.capability, (8, 9))
    with _replaced(jax, 'default_backend', lambda: backend), _replaced(cuda, 'capability', lambda: capability):
        yield Target(
            devices=devices,
            name=f'{len(devices)} x {devices[0].device_kind} ({topology}, not here)',
            compiler=f'XLA for {topology}, ahead of time',
            present=False,
            speed=speed and speed * len(devices),
            memory=None if card is None else card.usable,
            compiler_options=None if card is None else WITHOUT_A_CARD,
        )


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    found = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, found)


def _cards(topology: str, card: Card, count: str) -> list[jax.Device]:
    from jax.experimental import topologies

    if not re.fullmatch('[1-9][0-9]{0,2}', count or '1'):
        raise ConfigError(f'--topology={topology} must be the name of a card, or with their number such as h100:8')
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # the plugin would else look for a card and give up
    try:
        shape = f'1x1x{count or 1}'  # slices, hosts in each, cards in each
        described = topologies.get_topology_desc(platform='cuda', target_config=target_config(card), topology=shape)
        return list(described.devices)
    except NotImplementedError:
        raise ConfigError(
            f"--topology={topology} needs JAX's plugin for CUDA, which compiles for NVIDIA cards and is not installed; "
            "install it: pip install 'jax[cuda12]'"
        ) from None


def _chips(topology: str) -> list[jax.Device]:
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
        f'--topology={topology} is no TPU that the installed libtpu knows ({reason}); give one such as v5e:2x4, or '
        f'v6e:1x1 for one chip, or a card of {", ".join(CARDS)}'
    )
