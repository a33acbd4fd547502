"""Checkpoints by Orbax: written in the background, a kept number of them, and never a guess on restore."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one stage, <folder>/<step>/.

    Args:
      folder: made if missing.
      keep: newest checkpoints kept; an older one is deleted only after the newer one is complete.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        # Orbax tells every save and its own timings on the INFO level; a progress bar would drown in them.
        logging.getLogger('absl').setLevel(logging.WARNING)
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; a save that was cut short does not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Starts to save; returns once the values are copied, or with `wait` once they are on disk.

        Raises: CheckpointError, also for an earlier save that failed meanwhile.
        """
        if self.latest == step:
            return
        with self._explained(f'checkpoint {step} could not be written to {self.folder}'):
            self._manager.save(step, args=ocp.args.StandardSave(state))
            if wait:
                self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state at `step` (None: the newest) in the layout and on the devices of `like`.

        Raises: CheckpointError if there is none or it does not fit; nothing else is ever loaded in its place.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f'{self.folder} holds no complete checkpoint')
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._explained(f'checkpoint {step} in {self.folder} could not be read'):
            return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))

    def close(self) -> None:
        """Waits for the save under way. Raises: CheckpointError if it failed."""
        with self._explained(f'the last checkpoint could not be written to {self.folder}'):
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self, what: str):
        try:
            yield
        except Exception as error:  # Orbax raises many kinds, from OSError to its own
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f'{what}: {first_line}; earlier checkpoints are untouched') from error
