"""The training of one stage as one object, and `fit`, which carries it out.

`train`, `pretrain`, the plan of a run and the measurements in experiments/speed all read the same TrainRun, so that
what is planned and measured is what runs. To make one computes nothing and places nothing on the devices.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from dreambooth_jax.config import CheckpointConfig
from dreambooth_jax.monitoring.metrics import Metrics
from dreambooth_jax.training import hosts, loop, requests
from dreambooth_jax.training.callbacks import Callback, ChoosesCheckpoint, ClosedAtTheEnd, SaveCheckpoint
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.state import TrainState, init_state
from dreambooth_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How many steps a training takes, and how much of one is computed at once.

    Attributes:
      steps: optimizer steps.
      per_dispatch: how many of them run in one call to the device. None means 1 on CPU and 10 elsewhere.
      gradient_accumulation_steps: see make_train_step.
    """

    steps: int
    per_dispatch: int | None = None
    gradient_accumulation_steps: int = 1

    @property
    def steps_per_dispatch(self) -> int:
        """The largest number of steps in one call to the device."""
        return self.per_dispatch or (1 if _on_cpu() else 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun:
    """The training of one stage. Its arrays are on the host, or only shapes where nothing is to be trained.

    Attributes:
      name: the name of the stage, used for folders and metrics.
      loss: the loss of a stage (losses/stage.py).
      params: the parameters to train, as they are at step 0: component -> dotted path -> array.
      frozen: a pytree of arrays that do not train, which are placed once, before the first step.
      frozen_at: (the placed `frozen`, step) -> the frozen data of the dispatch that starts at that step, placed.
      batch: the examples of the global batch (data/pairs.py); their number is a multiple of `placement.devices *
        budget.gradient_accumulation_steps`.
      pick, ema_decay: see make_train_step.
      tx: the optimizer.
      learning_rate: step -> learning rate, for the metrics.
      placement: where state, frozen data and batch are stored (training/placement.py).
      budget: how many steps, and how much at once.
      seed: the seed of all random numbers of the training.
      checkpoint: how often the state is saved, and how many checkpoints are kept.
      callbacks: what else is done with the state of some steps, in this order, after it is saved. At most one of them
        chooses the best checkpoint (callbacks.ChoosesCheckpoint).
      description: the label of the progress bar; None means `name`.
    """

    name: str
    loss: Callable
    params: Any
    frozen: Any = dataclasses.field(default_factory=dict)
    frozen_at: Callable[[Any, int], Any]
    batch: Mapping[str, np.ndarray]
    pick: Callable
    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    ema_decay: float | None = None
    placement: Placement
    budget: Budget
    seed: int
    checkpoint: CheckpointConfig = CheckpointConfig()
    callbacks: Sequence[Callback] = ()
    description: str | None = None

    @property
    def choosers(self) -> list[ChoosesCheckpoint]:
        """The callback that chooses the best checkpoint, if there is one."""
        return [one for one in self.callbacks if isinstance(one, ChoosesCheckpoint)]

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint so far; None if nothing chooses one."""
        return next((one.best for one in self.choosers), None)

    def wanted(self) -> set[int]:
        """Returns the steps whose checkpoints are kept beside the newest ones."""
        return {step for one in self.choosers for step in (one.best, *one.again) if step is not None}

    @property
    def examples_per_step(self) -> int:
        """How many examples one step learns from, without those that only pad the batch."""
        return int((self.batch['weight'] > 0).sum())

    @property
    def idle_examples(self) -> int:
        """How many examples of a step only pad the batch, so that the devices share it evenly."""
        return len(self.batch['weight']) - self.examples_per_step

    def init(self, params: Any) -> TrainState:
        """Returns the state at step 0. Pure."""
        return init_state(params, self.tx, ema=self.ema_decay is not None)

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """The shapes and dtypes of the state; nothing is computed."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.params)
        return jax.eval_shape(self.init, shapes)

    def make_step(self, axis_name: str | None, num_steps: int) -> Callable:
        """Returns the function of `num_steps` steps in one dispatch, not compiled (make_train_step)."""
        return make_train_step(
            self.loss,
            self.tx,
            ema_decay=self.ema_decay,
            axis_name=axis_name,
            pick=self.pick,
            num_steps=num_steps,
            gradient_accumulation_steps=self.budget.gradient_accumulation_steps,
            unroll=_on_cpu(),
        )

    def compile(self, num_steps: int) -> Callable:
        """Returns the compiled function of `num_steps` steps: (state, frozen, key, batch) -> (state, metrics)."""
        return self.placement.compile(lambda axis_name: self.make_step(axis_name, num_steps))

    def lower(self, num_steps: int, step: int = 0) -> jax.stages.Lowered:
        """Returns the same program before it is compiled, for the shapes of this run; nothing is computed or placed.

        Args:
          num_steps: as for `compile`.
          step: the first step of the dispatch, by which `frozen_at` chooses the frozen data.
        """
        frozen = self.frozen_at(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.frozen), step)
        key = jax.eval_shape(lambda: jax.random.key(self.seed))
        make_step = lambda axis_name: self.make_step(axis_name, num_steps)  # noqa: E731
        return self.placement.lower(make_step, self.state_shapes, frozen, key, self.batch)


def fit(run: TrainRun, workdir: Path) -> tuple[TrainState, bool]:
    """Trains a stage from step 0, or continues from the newest checkpoint in <workdir>/<name>/checkpoints.

    Args:
      workdir: the folder of the run.

    Returns:
      The state, and whether the training is finished. False means that it was asked to stop; the state is saved.
      Of a finished training in which a callback chooses, it is the state of the best checkpoint, else the last one.

    Raises:
      CheckpointError: if a checkpoint cannot be read or written; see training/checkpoint.py.
      TrainingError: if the training fails; see loop.run.
    """
    placement, budget = run.placement, run.budget
    if run.idle_examples and jax.process_index() == 0:
        logging.warning(
            '%s: %d of the %d examples that a step computes teach nothing, because %d do not fill %d devices; '
            '--dry_run says which batch size does',
            *(run.name, run.idle_examples, len(run.batch['weight']), run.examples_per_step, placement.devices),
        )
    frozen = placement.place(run.frozen)
    # Place the state first: a checkpoint is restored into its layout and onto its devices.
    state = placement.place_state(run.init, placement.place(run.params))
    checkpoints = Checkpoints(workdir / run.name / 'checkpoints', keep=run.checkpoint.keep, besides=run.wanted)
    for chooser in run.choosers:
        for step in tuple(chooser.again):
            state = checkpoints.restore(state, step)
            chooser(step, state)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)
    # Every host knows the metrics of all hosts, and they share the folder, so only one host writes.
    writer = Metrics(workdir, run.name, resume_step=int(state.step)) if jax.process_index() == 0 else None
    # A group without examples has no loss. A curve of zeros would look like a measurement, so it is left out.
    absent = tuple(
        prefix
        for prefix, member in (('instance_', 1), ('prior_', 0))
        if not np.any((run.batch['is_instance'] == member) & (run.batch['weight'] > 0))
    )

    def fetch(metrics):
        return {name: value for name, value in placement.fetch(metrics).items() if not name.startswith(absent)}

    # Signals are handled until everything is on disk, because the last checkpoint may still be being written.
    with requests.Requests(workdir / requests.FOLDER).listening() as asked, contextlib.ExitStack() as closing:
        closing.callback(checkpoints.close)
        if writer:
            closing.callback(writer.close)
        closing.enter_context(hosts.together())
        for callback in run.callbacks:
            if isinstance(callback, ClosedAtTheEnd):
                closing.callback(callback.close)
        state, finished = loop.run(
            state,
            loop.Program(
                # Compiled once for each dispatch length, because the last dispatch before a save may be shorter.
                step_for=functools.cache(run.compile),
                frozen=functools.partial(run.frozen_at, frozen),
                batch=placement.place_batch(run.batch),
                key=placement.place_state(lambda: jax.random.key(run.seed)),
                fetch=fetch,
            ),
            # A checkpoint says that its steps are done with, so their numbers must be on disk.
            SaveCheckpoint(checkpoints, placement, run.checkpoint.every, writer.flush if writer else lambda: None),
            run.callbacks,
            steps=budget.steps,
            steps_per_dispatch=budget.steps_per_dispatch,
            log=loop.Log(
                write=writer.write if writer else lambda step, values: None,
                learning_rate=run.learning_rate,
                examples_per_step=run.examples_per_step,
                description=run.description or run.name,
            ),
            asked=asked,
        )
        if finished and run.best not in (None, int(state.step)):
            checkpoints.tidy()
            # Only shapes and places of the last state are needed, and there may be no room for two.
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            jax.tree.map(lambda x: x.delete(), state)
            state = checkpoints.restore(like, run.best)
        elif finished and run.best is not None:
            checkpoints.tidy()
        return state, finished


def _on_cpu() -> bool:
    return jax.default_backend() == 'cpu'  # XLA on CPU runs convolutions inside a loop very slowly
