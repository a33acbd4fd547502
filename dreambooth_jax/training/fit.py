"""Trains one stage, from its loss to its best weights: placement, resuming, metrics, checkpoints and the loop.

`train` and `pretrain` share this; they differ in the loss, the data and the settings that they pass in.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from dreambooth_jax.monitoring.metrics import Metrics
from dreambooth_jax.training import loop
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.state import TrainState, init_state
from dreambooth_jax.training.step import make_train_step


def fit(
    loss: Callable,
    params: Any,
    *,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[int], float],
    placement: Placement,
    batch: dict[str, np.ndarray],
    pick: Callable,
    frozen: Callable[[int], Any],
    workdir: Path,
    name: str,
    seed: int,
    steps: int,
    ema_decay: float | None = None,
    steps_per_dispatch: int | None = None,
    gradient_accumulation_steps: int = 1,
    save_every: int = 0,
    keep: int = 2,
    sample: Callable[[int, TrainState], None] | None = None,
    sample_every: int = 0,
    description: str | None = None,
) -> tuple[TrainState, bool]:
    """Trains a stage from step 0, or continues from the newest checkpoint in <workdir>/<name>/checkpoints.

    Args:
      loss: the loss of a stage (stages/stage.py).
      params: the parameters to train, as they are at step 0.
      tx: the optimizer.
      learning_rate: step -> learning rate, for the metrics.
      placement: where state, frozen data and batch are stored (training/placement.py).
      batch: the examples of the global batch (data/pairs.py); their number is a multiple of `placement.devices *
        gradient_accumulation_steps`.
      pick: see make_train_step.
      frozen: step -> the frozen data of the dispatch that starts at that step, already placed.
      workdir: the folder of the run.
      name: the name of the stage, used for folders and metrics.
      seed: the seed of all random numbers of the training.
      ema_decay: see make_train_step.
      steps_per_dispatch: how many steps run in one call to the device. None means 1 on CPU and 10 elsewhere.
      gradient_accumulation_steps: see make_train_step.
      save_every, sample_every: the interval in steps; 0 means only at the end.
      keep: how many checkpoints are kept.
      sample: (step, state) -> None, generates samples.
      description: the label of the progress bar; None means `name`.
    Returns: the state, and whether it reached `steps`. False means that a signal stopped the training early; the state
      is saved.
    Raises: CheckpointError, TrainingError.
    """
    # Place the state first: a checkpoint is restored into its layout and onto its devices.
    state = placement.place_state(lambda params: init_state(params, tx, ema=ema_decay is not None), params)
    checkpoints = Checkpoints(workdir / name / 'checkpoints', keep=keep)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)
    # Every host knows the metrics of all hosts, and they share the folder, so only one host writes.
    writer = Metrics(workdir, name, resume_step=int(state.step)) if jax.process_index() == 0 else None
    on_cpu = jax.default_backend() == 'cpu'  # XLA on CPU runs convolutions inside a loop very slowly
    make = functools.partial(
        make_train_step,
        loss,
        tx,
        ema_decay=ema_decay,
        pick=pick,
        gradient_accumulation_steps=gradient_accumulation_steps,
        unroll=on_cpu,
    )
    # The step is compiled once for each dispatch length, because the last dispatch before a save may be shorter.
    step_for = functools.cache(lambda count: placement.compile(lambda axis: make(axis_name=axis, num_steps=count)))
    # Every host saves its part of a checkpoint, so the state must be global; metrics are written by one host.
    hooks = loop.Hooks(
        save=lambda step, state: checkpoints.save(step, placement.to_global(state)),
        frozen=frozen,
        write=writer.write if writer else lambda step, values: None,
        sample=sample or (lambda step, state: None),
        save_every=save_every,
        sample_every=sample_every,
    )
    # A group without examples has no loss. A curve of zeros would look like a measurement, so it is left out.
    absent = tuple(
        prefix
        for prefix, member in (('instance_', 1), ('prior_', 0))
        if not np.any((batch['is_instance'] == member) & (batch['weight'] > 0))
    )

    def fetch(metrics):
        return {name: value for name, value in placement.fetch(metrics).items() if not name.startswith(absent)}

    # Signals are handled until everything is on disk, because the last checkpoint may still be being written.
    with loop.Stop().listening() as stop, contextlib.ExitStack() as closing:
        closing.callback(checkpoints.close)
        if writer:
            closing.callback(writer.close)
        return loop.run(
            state,
            step_for,
            placement.place_batch(batch),
            placement.place_state(lambda: jax.random.key(seed)),
            hooks,
            steps=steps,
            steps_per_dispatch=steps_per_dispatch or (1 if on_cpu else 10),
            examples_per_step=int((batch['weight'] > 0).sum()),
            learning_rate=learning_rate,
            fetch=fetch,
            stop=stop,
            description=description or name,
        )
