"""What happens between the steps of a training: saving, samples, scores. The loop calls them (loop.py)."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

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

        Returns: name -> number, which the metrics of this step get in a line of their own; or None.
        """


@dataclasses.dataclass(frozen=True)
class SaveCheckpoint:
    """Writes checkpoints. Every host writes its part of them.

    Attributes:
      checkpoints: the checkpoints of the stage.
      placement: where the state is.
      every: as in Callback.
    """

    checkpoints: Checkpoints
    placement: Placement
    every: int = 0

    def __call__(self, step: int, state: TrainState) -> None:
        self.checkpoints.save(step, self.placement.to_global(state))
