"""What happens between the steps of a training: saving, samples, scores, a profile. The loop calls them (loop.py)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax

from dreambooth_jax.training import requests
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.state import TrainState


class Callback(Protocol):
    """Something that is done with the state of some steps.

    It is called on every host at the same steps, when all losses and gradients up to this state are known to be finite.
    It must not keep the state: the next step reuses its memory. An error that it raises ends the training.

    Attributes:
      every: the interval in steps. 0 means only at the end.
    """

    every: int

    def __call__(self, step: int, state: TrainState) -> Mapping[str, float] | None:
        """Called with the number of steps taken and the state after them.

        Returns:
          Name -> number, which the metrics of this step get in a line of their own; or None.
        """

    def missed(self, step: int) -> bool:
        """Returns whether what it does at a step has not been done; the same on every host.

        It is asked when a training goes on from the checkpoint of a step at which it was due, because the process may
        have been killed between the two.
        """


class OnRequest(Callback):
    """A callback that is also called when somebody asks for it while the training runs (requests.py).

    Attributes:
      request: the name of the request.
    """

    request: str


class ChoosesCheckpoint(Callback):
    """A callback by which the best checkpoint is known. The state is saved at every step at which it is called.

    The training then gives the best state instead of the last one, keeps its checkpoint, and may end before its last
    step. What it knows of the steps up to a checkpoint must be the same in a process that goes on from there.
    """

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint so far, the same on every host; None if there is none yet."""

    @property
    def again(self) -> Sequence[int]:
        """Steps of earlier checkpoints, in their order, that it is called with before a training goes on.

        They are there, and the same on every host. The numbers that it returns for them are not written.
        """
        return ()

    def enough(self, step: int) -> bool:
        """Returns whether the training should end after this step; the same on every host."""


@dataclasses.dataclass(frozen=True)
class Chosen(ChoosesCheckpoint):
    """A choice that stands, of a stage that does not train on.

    Attributes:
      best: the step of the checkpoint; None: the last one.
      every: as in Callback.
    """

    best: int | None = None
    every: int = 0

    def __call__(self, step: int, state: TrainState) -> None:
        pass

    def missed(self, step: int) -> bool:
        return False

    def enough(self, step: int) -> bool:
        return True


class ClosedAtTheEnd(Callback):
    """A callback that holds something which must be given back."""

    def close(self) -> None:
        """Called once, when the training ends: it is done, has had enough, was stopped, or has failed."""


class Profile(ClosedAtTheEnd):
    """Writes a trace of `every` steps for jax.profiler's viewers, after as many steps that warm up.

    Args:
      folder: gets the trace (plugins/profile/<time>/), which TensorBoard and Perfetto open.
      every: how many steps are traced.
      steps: how many steps there are; a training that is no longer than `every` has no trace. One that ends during the
        trace has a shorter one.
    """

    def __init__(self, folder: Path, every: int, steps: int):
        self.folder, self.every, self.steps = folder, every, steps
        self._began, self._tracing = False, False

    def __call__(self, step: int, state: TrainState) -> None:
        if self._tracing:
            self.close()
        elif not self._began and step < self.steps and step % self.every == 0:  # or it is the end, before all steps
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder))
            self._began, self._tracing = True, True

    def missed(self, step: int) -> bool:
        return False  # a trace is of the steps that this process takes

    def close(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


@dataclasses.dataclass(frozen=True)
class SaveCheckpoint(OnRequest):
    """Writes checkpoints. Every host writes its part of them.

    Attributes:
      checkpoints: the checkpoints of the stage.
      placement: where the state is.
      every: as in Callback.
      before: called before each save.
    """

    checkpoints: Checkpoints
    placement: Placement
    every: int = 0
    before: Callable[[], None] = lambda: None
    request: str = requests.SAVE

    def __call__(self, step: int, state: TrainState) -> None:
        self.before()
        self.checkpoints.save(step, self.placement.to_global(state))

    def missed(self, step: int) -> bool:
        return self.checkpoints.latest != step
