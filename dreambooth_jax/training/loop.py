"""The loop around the step. Its order, each turn:

1. stop here if asked to (SIGTERM), saving first; hosts stop together, at the same step, once one of them was asked;
2. save and sample, where due, from the state as it is;
3. dispatch the next steps;
4. fetch the numbers of the dispatch before, while this one runs: the device never waits for the host;
5. a loss or gradient that is no number stops the run, names the step, and leaves the last good checkpoint as it is.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dreambooth_jax.training.state import TrainState


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class Stop:
    """Whether the run was asked to end. `requested` turns true on SIGTERM within `listening`."""

    requested: int | bool = False  # the signal's number
    heeded = False  # by an early end, or by whom a second Ctrl-C was handed to

    @contextlib.contextmanager
    def listening(self) -> Iterator['Stop']:
        """Takes SIGTERM (and Ctrl-C once) as a request to save and end, and gives the old handlers back after.

        A second Ctrl-C, and a request that came too late to end the training early, are for the old handlers.
        """

        def ask(number, frame):
            if self.requested and number == signal.SIGINT:
                self.heeded = True
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self.requested = number

        # None: a handler of another language's, which Python cannot give back.
        before = {number: signal.signal(number, ask) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.requested and not self.heeded:
            signal.raise_signal(self.requested)

    def requested_anywhere(self) -> jax.Array | bool:
        """Whether any host was asked by now; with several hosts the devices work it out, after the last dispatch."""
        if jax.process_count() == 1:
            return bool(self.requested)
        every_device = NamedSharding(Mesh(np.array(jax.devices()), ('hosts',)), PartitionSpec('hosts'))
        asked = np.full(jax.local_device_count(), bool(self.requested))
        return jnp.any(jax.make_array_from_process_local_data(every_device, asked))


@dataclasses.dataclass(kw_only=True)
class Hooks:
    """What a program does around the steps; each takes (step, state) and runs before the step is taken.

    Attributes:
      save: writes a checkpoint.
      sample: generates samples.
      save_every, sample_every: in steps; 0 only at the end.
      write: (step, {name: float}) of every step.
      frozen: step -> the frozen data of the dispatch that starts there.
    """

    save: Callable[[int, TrainState], None]
    frozen: Callable[[int], Any]
    write: Callable[[int, dict[str, float]], None]
    sample: Callable[[int, TrainState], None] = lambda step, state: None
    save_every: int = 0
    sample_every: int = 0


def run(
    state: TrainState,
    step_for: Callable[[int], Callable],
    batch: Any,
    key: jax.Array,
    hooks: Hooks,
    *,
    steps: int,
    steps_per_dispatch: int,
    examples_per_step: int,
    learning_rate: Callable[[int], float],
    fetch: Callable[[Any], Any],
    stop: Stop,
    description: str,
) -> tuple[TrainState, bool]:
    """Trains to step `steps`.

    Args:
      state: at whatever step; a resumed one goes on from there.
      step_for: n -> the compiled function of n steps in one dispatch (training/step.py).
      batch, key: placed on the devices.
      hooks: see `Hooks`. Saves and samples fall between dispatches, which are shortened to meet them.
      examples_per_step: images a step sees, for images/s.
      learning_rate: by step.
      fetch: brings the numbers of a dispatch to the host.
    Returns: the state, and whether it reached `steps` (False: it was asked to stop, and saved).
    Raises: TrainingError for a loss or a gradient that is no number.
    """
    first = step = int(state.step)
    pending = None  # (first step, metrics, whether a host was asked to stop) of the dispatch under way
    alone = jax.process_count() == 1
    stopping = False
    clock = time.perf_counter()
    sampled = saved = step
    bar = tqdm(
        total=steps,
        initial=step,
        desc=description,
        unit='step',
        smoothing=0.1,
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
    )
    with bar:

        def report(dispatched) -> None:
            nonlocal clock, stopping
            start, metrics, asked = dispatched
            metrics = fetch(metrics)
            stopping = bool(asked)
            now = time.perf_counter()
            count = len(metrics['loss'])
            speed = examples_per_step * count / (now - clock)
            clock = now
            for i in range(count):
                values = {name: float(value[i]) for name, value in metrics.items()}
                # A gradient that is no number ruins the weights before any loss shows it.
                for what in ('loss', 'gradient_norm'):
                    if not math.isfinite(values[what]):
                        raise TrainingError(
                            f'{description}: the {what.replace("_", " ")} of step {start + i + 1} is {values[what]}; '
                            f'training stopped and the last good checkpoint is untouched. Lower the learning rate, or '
                            f'look at the images.'
                        )
                values |= {'learning_rate': float(learning_rate(start + i)), 'images_per_second': speed}
                hooks.write(start + i + 1, values)
            bar.set_postfix(loss=f'{float(np.mean(metrics["loss"])):.4f}', images_per_s=f'{speed:.1f}', refresh=False)
            bar.update(count)

        def settle() -> None:
            # What is saved or sampled must be known to be sound first.
            nonlocal pending, clock
            if pending is not None:
                report(pending)
                pending = None

        # Hosts may not trust their own flags: they would leave at different steps, and wait for each other forever.
        while step < steps and not (stop.requested if alone else stopping):
            if hooks.save_every and step % hooks.save_every == 0 and step > saved:
                settle()
                hooks.save(step, state)
                saved, clock = step, time.perf_counter()
            if hooks.sample_every and step % hooks.sample_every == 0 and step > sampled:
                settle()
                hooks.sample(step, state)
                sampled, clock = step, time.perf_counter()
            count = min([steps_per_dispatch, steps - step] + [every - step % every for every in _due(hooks)])
            frozen = hooks.frozen(step)  # may compute, and bring to the host, what it places
            with jax.transfer_guard_device_to_host('disallow'):
                state, metrics = step_for(count)(state, frozen, key, batch)
            if pending is not None:
                report(pending)
            pending = (step, metrics, stop.requested_anywhere())
            step += count
        settle()
        if step > saved or step == first:
            hooks.save(step, state)
        if step >= steps:
            hooks.sample(step, state)
    stop.heeded = step < steps
    return state, step >= steps


def _due(hooks: Hooks) -> list[int]:
    return [every for every in (hooks.save_every, hooks.sample_every) if every]
