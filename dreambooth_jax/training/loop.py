"""The loop around the training step. Each turn does this, in this order:

1. It stops if it was asked to (SIGTERM or Ctrl-C), and saves first. Hosts stop together, at the same step, after one of
   them was asked.
2. It saves, and calls the callbacks (samples, scores) with the present state, where they are due. If one of them says
   that this is enough, training ends as after the last step.
3. It dispatches the next steps.
4. It fetches the metrics of the previous dispatch while the new one runs, so that the device never waits for the host.
5. If a loss or a gradient is not finite, it stops the run, names the step, and leaves the last good checkpoint as it
   is.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dreambooth_jax.training.callbacks import Callback, ChoosesCheckpoint
from dreambooth_jax.training.state import TrainState


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why and, where one step is the cause, at which step."""


class Stop:
    """Whether the run was asked to end. `requested` becomes true when SIGTERM or Ctrl-C arrives within `listening`."""

    requested: int | bool = False  # the number of the signal
    heeded = False  # whether training ended early because of it, or a second Ctrl-C was passed on

    @contextlib.contextmanager
    def listening(self) -> Iterator['Stop']:
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

    def requested_anywhere(self) -> jax.Array | bool:
        """Returns whether any host was asked to stop by now.

        With several hosts the devices compute the answer, after the dispatch before, so it is an array bool[].
        """
        if jax.process_count() == 1:
            return bool(self.requested)
        every_device = NamedSharding(Mesh(np.array(jax.devices()), ('hosts',)), PartitionSpec('hosts'))
        asked = np.full(jax.local_device_count(), bool(self.requested))
        return jnp.any(jax.make_array_from_process_local_data(every_device, asked))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the devices compute, and on what.

    Attributes:
      step_for: n -> the compiled function of n steps in one dispatch (training/step.py).
      frozen: step -> the frozen data of the dispatch that starts at that step, placed on the devices.
      batch, key: the batch and the run's PRNG key, placed on the devices.
      fetch: brings the metrics of a dispatch to the host.
    """

    step_for: Callable[[int], Callable]
    frozen: Callable[[int], Any]
    batch: Any
    key: jax.Array
    fetch: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Where the numbers of the steps go, and what is added to them.

    Attributes:
      write: takes (step, {name: float}) of every step, and once more if callbacks return numbers.
      learning_rate: step -> learning rate.
      examples_per_step: how many examples one step sees, for the metric images_per_second.
      description: the label of the progress bar and of error messages.
    """

    write: Callable[[int, Mapping[str, float]], None]
    learning_rate: Callable[[int], float]
    examples_per_step: int
    description: str


def run(
    state: TrainState,
    program: Program,
    save: Callback,
    callbacks: Sequence[Callback],
    *,
    steps: int,
    steps_per_dispatch: int,
    log: Log,
    stop: Stop,
) -> tuple[TrainState, bool]:
    """Trains until step `steps`.

    Args:
      state: the state at any step; training continues from that step.
      program: what the devices compute.
      save: writes a checkpoint. It comes before the callbacks that are due at the same step, and the last state is
        always saved, also after an early stop.
      callbacks: called in this order between dispatches, which are shortened so that they end there. All of them are
        called with the last state, but not after an early stop. Those that were due at the first step, or are with the
        last state where no step is left, are called if they missed it. One of them may end the training
        (callbacks.ChoosesCheckpoint).
      steps_per_dispatch: the largest number of steps in one dispatch.
      log: where the numbers go.
      stop: says whether the run was asked to end.

    Returns:
      The state, and whether it reached `steps` or had enough. False means that the run was asked to stop; the state is
      saved.

    Raises:
      TrainingError: if a loss or a gradient is not finite; whatever a callback raises.
    """
    first = step = int(state.step)
    regular = [callback for callback in (save, *callbacks) if callback.every]
    choosers = [callback for callback in callbacks if isinstance(callback, ChoosesCheckpoint)]
    pending = None  # (first step, metrics, whether a host was asked to stop) of the dispatch that is running
    alone = jax.process_count() == 1
    stopping = False
    clock = time.perf_counter()
    bar = tqdm(
        total=steps,
        initial=step,
        desc=log.description,
        unit='step',
        smoothing=0.1,
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
    )
    with bar:

        def report(dispatched) -> None:
            nonlocal clock, stopping
            start, metrics, asked = dispatched
            metrics = program.fetch(metrics)
            stopping = bool(asked)
            now = time.perf_counter()
            count = len(metrics['loss'])
            speed = log.examples_per_step * count / (now - clock)
            clock = now
            for i in range(count):
                values = {name: float(value[i]) for name, value in metrics.items()}
                # A gradient that is not finite ruins the weights one step before the loss shows it.
                for what in ('loss', 'gradient_norm'):
                    if not math.isfinite(values[what]):
                        raise TrainingError(
                            f'{log.description}: the {what.replace("_", " ")} of step {start + i + 1} is '
                            f'{values[what]}; training stopped and the last good checkpoint is untouched. Lower the '
                            f'learning rate, or look at the images.'
                        )
                values |= {'learning_rate': float(log.learning_rate(start + i)), 'images_per_second': speed}
                log.write(start + i + 1, values)
            bar.set_postfix(loss=f'{float(np.mean(metrics["loss"])):.4f}', images_per_s=f'{speed:.1f}', refresh=False)
            bar.update(count)

        def settle() -> None:
            # Before a callback gets a state, the steps that led to it must be known to be finite.
            nonlocal pending
            if pending is not None:
                report(pending)
                pending = None

        def call(due: Sequence[Callback]) -> None:
            nonlocal clock
            settle()
            for callback in due:
                if numbers := callback(step, state):
                    log.write(step, numbers)
            clock = time.perf_counter()

        def due_at(step: int, among: Sequence[Callback]) -> list[Callback]:
            due = [callback for callback in among if callback.every and step % callback.every == 0]
            return due if save in due or not any(one in choosers for one in due) else [save, *due]

        def enough() -> bool:
            return step > 0 and any(callback.enough(step) for callback in choosers)

        # A kill may have come after the checkpoint that this goes on from, and before what else was due at its step.
        if 0 < step < steps:
            call([callback for callback in due_at(step, callbacks) if callback.missed(step)])

        # With several hosts, each must ignore its own flag and use the common answer: otherwise they would leave at
        # different steps and wait for each other forever.
        done = []  # what the last state was given to already
        while step < steps and not (stop.requested if alone else stopping):
            if step > first and (due := due_at(step, regular)):
                call(due)
                done = due
            if enough():
                break
            done = []
            count = min([steps_per_dispatch, steps - step] + [other.every - step % other.every for other in regular])
            frozen = program.frozen(step)  # may compute on the device and copy to the host, so outside the guard below
            # Start these steps before reporting the previous ones, so that the device is never idle. A hidden copy to
            # the host would make it wait, so such a copy is an error.
            with jax.transfer_guard_device_to_host('disallow'):
                state, metrics = program.step_for(count)(state, frozen, program.key, program.batch)
            if pending is not None:
                report(pending)
            pending = (step, metrics, stop.requested_anywhere())
            step += count
        finished = step >= steps or enough()
        # The last state is always saved, also after an early stop. Where there was no step to take, as when a finished
        # run is started again, it is given only to those that have not had it.
        last = [callback for callback in ([save, *callbacks] if finished else [save]) if callback not in done]
        call([callback for callback in last if step > first or callback.missed(step)])
    stop.heeded = not finished
    return state, finished
