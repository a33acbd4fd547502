"""What a training is asked for while it runs: by a signal to end, and more by files in the folder <run>/control.

    stop      save a checkpoint and end; the same command goes on from there
    save      save a checkpoint
    sample    save a sample grid
    pause     save a checkpoint and wait until this file is removed; meanwhile the other requests are answered too

`touch runs/dog/control/sample` asks, as any other program may. What the files hold does not matter. The training looks
for them between dispatches (loop.py) and removes a file when that is done, all but `pause`, which is for others to
remove. While it waits, there is a file `paused`. Files from before the start of a run are removed then, so a run that
is started again does not wait.

Several hosts do everything together, after one of them got a signal, or the first one saw a file.
"""

import contextlib
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreambooth_jax.training.control import FOLDER, KINDS, PAUSE, PAUSED, SAMPLE, SAVE, STOP

__all__ = ['FOLDER', 'KINDS', 'PAUSE', 'PAUSED', 'SAMPLE', 'SAVE', 'STOP', 'Requests', 'clear', 'named']

_LOOK_EVERY = 0.5  # seconds; a look may take some milliseconds where the folder is on another machine


def clear(workdir: Path) -> None:
    """Makes the folder of the requests ready for a run that starts: what was asked of an earlier process is removed.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*KINDS, PAUSED):
        (folder / name).unlink(missing_ok=True)


class Requests:
    """What is asked of a training.

    Args:
      folder: the folder of the files; None: signals alone are heard.
      look_every: seconds between two looks into the folder.

    Attributes:
      requested: the number of the signal that asked the run to end; False: none did.
      heeded: whether training ended early because of a request, or a second Ctrl-C was passed on.
    """

    def __init__(self, folder: Path | None = None, *, look_every: float = _LOOK_EVERY):
        self.requested: int | bool = False
        self.heeded = False
        self._folder = folder if jax.process_index() == 0 else None
        self._look_every, self._looked, self._files = look_every, -float('inf'), frozenset()

    @contextlib.contextmanager
    def listening(self) -> Iterator['Requests']:
        """Treats SIGTERM (and the first Ctrl-C) as a request to save and end. It restores the old handlers afterwards.

        The old handlers receive a second Ctrl-C, and also a request that came too late to end the training early.
        """

        def ask(number, frame):
            if self.requested and number == signal.SIGINT:
                self.heeded = True
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self.requested = number

        # signal.signal returns None for a handler that was not set from Python, and which Python cannot restore.
        before = {number: signal.signal(number, ask) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.requested and not self.heeded:
            signal.raise_signal(self.requested)

    def here(self) -> frozenset[str]:
        """Returns what this host was asked for and has not answered, some of KINDS."""
        if self._folder is not None and time.monotonic() - self._looked >= self._look_every:
            self._files = frozenset(name for name in KINDS if (self._folder / name).exists())
            self._looked = time.monotonic()
        return self._files | {STOP} if self.requested else self._files

    def anywhere(self) -> jax.Array | np.ndarray:
        """Returns what any host was asked for, bool[4] in the order of KINDS; `named` reads it.

        With several hosts the devices compute the answer, after the dispatch before, so it is an array on them.
        """
        asked = np.isin(KINDS, list(self.here()))
        if jax.process_count() == 1:
            return asked
        every_device = NamedSharding(Mesh(np.array(jax.devices()), ('hosts',)), PartitionSpec('hosts'))
        asked = np.tile(asked, (jax.local_device_count(), 1))
        return jnp.any(jax.make_array_from_process_local_data(every_device, asked), axis=0)

    def answered(self, names: Collection[str]) -> None:
        """Removes the files of requests that were answered."""
        if self._folder is not None:
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
        self._looked = -float('inf')  # what is asked for from now on must be seen

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Tells others, by the file `paused`, that training waits."""
        mark = None if self._folder is None else self._folder / PAUSED
        if mark is not None:
            mark.touch()
        try:
            yield
        finally:
            if mark is not None:
                mark.unlink(missing_ok=True)

    def wait(self) -> frozenset[str]:
        """Waits for a moment, and returns what any host is asked for then."""
        time.sleep(self._look_every)
        return named(self.anywhere())


def named(asked: jax.Array | np.ndarray) -> frozenset[str]:
    """Returns the requests in a result of Requests.anywhere, on the host."""
    return frozenset(np.asarray(KINDS)[np.asarray(asked)].tolist())
