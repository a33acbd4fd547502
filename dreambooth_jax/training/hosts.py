"""How a process joins the others of a run on several hosts, what the hosts do one for all, and how they end together.

If a process of the run dies, the others cannot go on. They learn of it from the network, in the next computation that
they share, and end at once (`together`). Where they learn nothing, as on TPUs, JAX's own service misses the dead one
and ends the others: in a moment if it was process 0, otherwise in 100 seconds. A shorter time would also end runs whose
network or machine only pauses. Started again on all hosts, the run goes on from its last checkpoint.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dreambooth_jax.config import ConfigError
from dreambooth_jax.system import ending

if TYPE_CHECKING:  # the programs answer --help before anything slow is imported
    import numpy as np


# The first host exports alone, at the end, and the others wait for it as they end, by JAX's own limit for 5 minutes. A
# host that dies meanwhile is missed all the same.
_EXPORT_SECONDS = 24 * 3600
# In the errors of a computation that several processes share, and of JAX's service that connects them.
_SIGNS = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'NCCL', 'heartbeat', 'Connection closed', 'Connection reset')


class Address(NamedTuple):
    """Where the processes of a run meet, under the names of jax.distributed.initialize.

    Attributes:
      coordinator_address: 'host:port' of process 0.
      num_processes: how many there are.
      process_id: the number of this one.
    All are None where the cluster itself tells them, as TPU slices and Slurm do.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def join(distributed: bool, address: Address = Address()) -> None:  # noqa: B008
    """Joins the other processes if `distributed` says so; must come before anything else asks JAX for devices.

    Raises:
      ConfigError: if the address is incomplete, contradicts itself or `distributed`, or if nobody tells it.
    """
    given = [f'--{name}' for name, value in address._asdict().items() if value is not None]
    missing = [f'--{name}' for name, value in address._asdict().items() if value is None]
    if given and not distributed:
        raise ConfigError(f'{given[0]} is given but --distributed is not; give both or neither')
    if given and missing:
        raise ConfigError(f'{given[0]} is given but {missing[0]} is not; give all three, or none where a cluster tells')
    if given and address.process_id >= address.num_processes:
        raise ConfigError(
            f'--process_id is {address.process_id} but --num_processes is {address.num_processes}; count from 0'
        )
    if not distributed:
        return
    import jax

    jax.config.update('jax_enable_preemption_service', False)  # that service would handle SIGTERM itself
    try:
        jax.distributed.initialize(**address._asdict(), shutdown_timeout_seconds=_EXPORT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f'--distributed: the processes of this run did not all come together in time '
            f'({_first_line(error)}); start the same command on all hosts'
        ) from None
    except ValueError as error:  # no cluster that JAX knows
        raise ConfigError(
            f'--distributed finds no cluster that tells where the processes meet ({error}); give '
            f'--coordinator_address, --num_processes and --process_id'
        ) from None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once, with a sentence, if the block fails because another process of the run is gone.

    Without it the error would pass through everything that is being closed, such as checkpoints, and then through JAX's
    own end, all of which wait for the other processes.
    """
    try:
        yield
    except Exception as error:
        if (reason := _of_the_network(error)) is None:
            raise
        ending.end(
            1,
            f'another process of this run has ended or does not answer ({_first_line(reason)}); what it says itself '
            f'tells why. Start the same command on all hosts again: it goes on from the last checkpoint',
        )


def _of_the_network(error: BaseException | None) -> BaseException | None:
    """Returns the error, or the one that it comes from, that says that another process is lost; None if none does."""
    jax = sys.modules.get('jax')  # if nobody has imported it, this process has not joined others
    if jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _SIGNS):
            return error
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip('.')


def of_first(value: 'np.ndarray | int | bool') -> 'np.ndarray':
    """Returns the first host's value on all hosts, which wait for each other here; of the same shape on all."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return np.asarray(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def json_of_first(find: Callable[[], Any]) -> Any:
    """Returns what `find` returns on the first host, on all hosts, which wait for each other here; JSON can hold it.

    Raises:
      TrainingError: on the other hosts, if it fails on the first. There, what it raised.
    """
    import jax
    import numpy as np

    found = on_first(find, 'say what the others need to know')
    if jax.process_count() == 1:
        return found
    words = np.frombuffer(json.dumps(found).encode(), np.uint8)
    length = int(of_first(len(words)))
    return json.loads(of_first(words if jax.process_index() == 0 else np.zeros(length, np.uint8)).tobytes())


def on_first(action: Callable[[], Any], doing: str) -> Any:
    """Runs `action` on the first host alone, while the others wait; if it fails, all hosts fail.

    Args:
      doing: what it does; the message of the other hosts puts it after 'could not'.

    Returns:
      What `action` returned on the first host; None on the others.

    Raises:
      TrainingError: on the other hosts. On the first one, what `action` raised.
    """
    import jax

    from dreambooth_jax.training.loop import TrainingError

    found, error = None, None
    if jax.process_index() == 0:
        try:
            found = action()
        except BaseException as caught:  # also Ctrl-C, of which the other hosts must be told: they would wait for ever
            error = caught
    failed = of_first(error is not None)
    if error is not None:
        raise error
    if failed:
        raise TrainingError(f'the first host could not {doing}; what it says itself tells why')
    return found
