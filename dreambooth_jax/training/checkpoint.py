"""Checkpoints by Orbax.

They are written in the background, and only the newest few and those that are asked for are kept. A checkpoint that
does not fit the run is an error: nothing else is loaded in its place.
"""

import contextlib
import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dreambooth_jax.system import disk
from dreambooth_jax.training import hosts

_CUT_SHORT = '.orbax-checkpoint-tmp'  # in the names of Orbax's folders until they are complete


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which one and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in <folder>/<step>/.

    Call `close` at the end, also when training fails, because a save may still be under way. What a process that was
    killed has left in the folder is removed: saves that it did not complete, and old checkpoints that it did not delete
    or deleted in part.

    Args:
      folder: the folder of all steps; it is made if it is missing. No other process may be writing there, apart from
        the other hosts of the run.
      keep: how many of the newest checkpoints are kept. An older one is deleted only after the newer one is complete.
      besides: returns the steps that are kept besides, the same on every host; those that are not there do not count.

    Raises:
      CheckpointError: if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, besides: Callable[[], Collection[int]] = tuple):
        # Orbax logs every save and its timings at level INFO, which would break up the progress bar.
        logging.getLogger('absl').setLevel(logging.WARNING)
        self.folder = Path(folder).absolute()
        self._kept = functools.partial(_kept, keep=keep, besides=besides)
        policy = _Preserve(self._kept)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=True)
        with self._explained(f'the folder of checkpoints {self.folder} cannot be used'):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Orbax deletes old checkpoints only after a save, and a run whose last save is complete makes no other.
            hosts.on_first(functools.partial(_tidy, self.folder, self._kept), 'tidy the folder of checkpoints')
            handler = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none.

        A checkpoint that is being written counts; one whose writing was interrupted does not.
        """
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Starts to save `state`. It returns once the values are copied or, with `wait`, once they are on disk.

        A checkpoint that exists for this step is left as it is.

        Raises:
          CheckpointError: if the folder holds a later step or cannot be written, and also if an earlier save has failed
            in the meantime.
        """
        latest = self.latest
        if latest is not None and latest > step:
            raise CheckpointError(
                f'checkpoint {step} is not written: {self.folder} holds the later {latest}; go on from it or delete it'
            )
        with self._explained(f'checkpoint {step} could not be written to {self.folder}'):
            if latest != step:
                self._manager.save(step, args=ocp.args.StandardSave(state))
            if wait:
                self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Returns the state at `step` (None: the newest), in the layout and on the devices of `like`.

        Raises:
          CheckpointError: if there is no checkpoint, or if its arrays have other names, shapes or dtypes than `like`.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f'{self.folder} holds no complete checkpoint')
        # Compare before reading: Orbax's own error does not name the array that differs or say what to do.
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._explained(f'checkpoint {step} in {self.folder} could not be read'):
            stored = self._manager.item_metadata(step)
        if stored is not None:
            self._check_fits(step, _arrays(stored.tree), _arrays(wanted))
        with self._explained(f'checkpoint {step} in {self.folder} could not be read'):
            return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))

    def tidy(self) -> None:
        """Deletes the checkpoints that are kept no longer, such as one that was the best until after the last save.

        It waits for the save that is under way, and all hosts wait for each other.

        Raises:
          CheckpointError: if that save failed, or a checkpoint cannot be deleted.
        """
        with self._explained(f'the folder of checkpoints {self.folder} cannot be tidied'):
            self._manager.wait_until_finished()
            hosts.on_first(functools.partial(_tidy, self.folder, self._kept), 'tidy the folder of checkpoints')
            self._manager.reload()

    def close(self) -> None:
        """Waits for the save that is under way.

        Raises:
          CheckpointError: if that save failed.
        """
        with self._explained(f'the last checkpoint could not be written to {self.folder}'):
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_fits(self, step: int, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        names = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
        if names:
            first = names[0]
            found, needed = stored.get(first, 'absent'), wanted.get(first, 'absent')
            more = f' ({len(names) - 1} more arrays differ)' if len(names) > 1 else ''
            raise CheckpointError(
                f'checkpoint {step} in {self.folder} does not fit this run: {first} is {found} there but {needed} here'
                f'{more}; train with the settings it was made with, or in another folder'
            )

    @contextlib.contextmanager
    def _explained(self, what: str):
        try:
            yield
        except Exception as error:  # Orbax raises many types of error, from OSError to its own
            reason = disk.reason(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]
            there = [int(path.name) for path in self.folder.glob('*') if path.name.isdigit()]
            kept = f'; checkpoint {max(there)} is complete, go on from it' if there else ''
            raise CheckpointError(f'{what}: {reason}{kept}') from error


@dataclasses.dataclass(frozen=True)
class _Preserve:
    """Orbax's policy of which checkpoints stay when another is saved."""

    kept: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _kept(steps: Sequence[int], *, keep: int, besides: Callable[[], Collection[int]]) -> set[int]:
    return {*sorted(steps)[-keep:], *besides()}


def _tidy(folder: Path, kept: Callable[[Sequence[int]], set[int]]) -> None:
    complete = {int(path.name): path for path in folder.iterdir() if path.name.isdigit()}
    left = kept(list(complete))
    cut_short = [path for path in folder.iterdir() if _CUT_SHORT in path.name]
    for path in (*(path for step, path in complete.items() if step not in left), *cut_short):
        shutil.rmtree(path)


def _arrays(tree: Any) -> dict[str, str]:
    """Returns {dotted path: 'float32[3, 4]'} for a pytree of arrays, of shapes, or of Orbax's array metadata."""
    leaves = [leaf for leaf in jax.tree_util.tree_leaves_with_path(tree) if hasattr(leaf[1], 'shape')]
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): f'{array.dtype}{list(array.shape)}'
        for path, array in leaves
    }
