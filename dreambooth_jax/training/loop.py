"""The loop around the training step. Each turn does this, in this order:

1. It does what it was asked for (requests.py): it saves, samples, waits, or stops, and saves first. Hosts do so
   together, at the same step, after one of them was asked.
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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dreambooth_jax.training import requests
from dreambooth_jax.training.callbacks import Callback, ChoosesCheckpoint, OnRequest
from dreambooth_jax.training.requests import Requests
from dreambooth_jax.training.state import TrainState


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why and, where one step is the cause, at which step."""


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
    asked: Requests,
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
      asked: what the run is asked for while it trains.

    Returns:
      The state, and whether it reached `steps` or had enough. False means that the run was asked to stop; the state is
      saved.

    Raises:
      TrainingError: if a loss or a gradient is not finite; whatever a callback raises.
    """
    first = step = int(state.step)
    regular = [callback for callback in (save, *callbacks) if callback.every]
    choosers = [callback for callback in callbacks if isinstance(callback, ChoosesCheckpoint)]
    pending = None  # (first step, metrics, what the hosts were asked for) of the dispatch that is running
    alone = jax.process_count() == 1
    wanted = requests.named(asked.anywhere())  # what was asked for and is not answered
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
            nonlocal clock, wanted
            start, metrics, asked_meanwhile = dispatched
            metrics = program.fetch(metrics)
            if not alone:
                wanted = requests.named(asked_meanwhile)
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

        def answer(kinds: frozenset[str]) -> frozenset[str]:
            # Returns what must still be done, which is to stop, or nothing.
            nonlocal clock, done
            with contextlib.ExitStack() as waiting:
                while True:
                    calls = kinds | ({requests.SAVE} if requests.PAUSE in kinds else set())
                    due = [one for one in (save, *callbacks) if isinstance(one, OnRequest) and one.request in calls]
                    due = [one for one in due if one not in done and (step > first or one.missed(step))]
                    call(due)
                    done = [*done, *due]
                    asked.answered(kinds - {requests.PAUSE, requests.STOP})
                    if requests.STOP in kinds or requests.PAUSE not in kinds:
                        clock = time.perf_counter()
                        return kinds & {requests.STOP}
                    waiting.enter_context(asked.paused())
                    bar.set_postfix_str('paused')
                    kinds = asked.wait()

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
        while step < steps:
            if alone:
                wanted = asked.here()
            if requests.STOP in wanted:
                break
            if step > first and (due := due_at(step, regular)):
                call(due)
                done = due
            if enough() or (wanted and requests.STOP in (wanted := answer(wanted))):
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
            pending = (step, metrics, None if alone else asked.anywhere())
            step += count
        finished = step >= steps or enough()
        # The last state is always saved, also after an early stop. Where there was no step to take, as when a finished
        # run is started again, it is given only to those that have not had it.
        last = [callback for callback in ([save, *callbacks] if finished else [save]) if callback not in done]
        call([callback for callback in last if step > first or callback.missed(step)])
        asked.heeded = not finished
        if not finished:
            asked.answered([requests.STOP])
    return state, finished
