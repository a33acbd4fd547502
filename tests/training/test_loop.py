"""The order of the loop, told by a step function that is only pretended, so that nothing is compiled."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from dreambooth_jax.training import loop
from dreambooth_jax.training.callbacks import OnRequest
from dreambooth_jax.training.requests import PAUSED, Requests
from dreambooth_jax.training.state import TrainState


@dataclasses.dataclass
class Call(OnRequest):
    """A callback that only calls."""

    function: Callable
    every: int
    missing: bool = False
    request: str = 'sample'

    def __call__(self, step, state):
        return self.function(step, state)

    def missed(self, step):
        return self.missing


@dataclasses.dataclass
class Told:
    """Runs the loop over pretended steps and keeps what happened, in order."""

    first: int = 0
    steps: int = 10
    per_dispatch: int = 1
    save_every: int = 0
    sample_every: int = 0
    samples_missing: bool = False
    losses: dict = dataclasses.field(default_factory=dict)  # by the step that they end
    gradients: dict = dataclasses.field(default_factory=dict)
    callbacks: list = dataclasses.field(default_factory=list)
    act: dict = dataclasses.field(default_factory=dict)  # (event, step) -> what else happens then
    events: list = dataclasses.field(default_factory=list)
    lines: list = dataclasses.field(default_factory=list)
    control: Path | None = None  # the folder of requests

    def note(self, event, step, *more):
        self.events.append((event, step, *more))
        self.act.get((event, step), lambda: None)()

    def of(self, event):
        return [step for name, step, *_ in self.events if name == event]

    def step_for(self, count):
        def dispatch(state, frozen, key, batch):
            assert (frozen, key, batch) == (('data of', state.step), 'key', 'batch')
            self.note('dispatch', state.step, count)
            ended = range(state.step + 1, state.step + count + 1)
            metrics = {
                'loss': np.array([self.losses.get(step, 1.0) for step in ended]),
                'gradient_norm': np.array([self.gradients.get(step, 1.0) for step in ended]),
            }
            return dataclasses.replace(state, step=state.step + count), (state.step, metrics)

        return dispatch

    def frozen(self, step):
        self.note('frozen', step)
        return 'data of', step

    def fetch(self, metrics):
        step, numbers = metrics
        self.note('fetch', step)
        return numbers

    def save(self, step, state):
        assert step == state.step
        self.note('save', step)

    def sample(self, step, state):
        assert step == state.step
        self.note('sample', step)

    def write(self, step, values):
        self.lines.append((step, values))

    def run(self):
        program = loop.Program(step_for=self.step_for, frozen=self.frozen, batch='batch', key='key', fetch=self.fetch)
        log = loop.Log(write=self.write, learning_rate=lambda step: step / 100, examples_per_step=4, description='toy')
        with Requests(self.control, look_every=0).listening() as asked:
            state, finished = loop.run(
                TrainState(self.first, None, None, None),
                program,
                Call(self.save, self.save_every, request='save'),
                [Call(self.sample, self.sample_every, self.samples_missing), *self.callbacks],
                steps=self.steps,
                steps_per_dispatch=self.per_dispatch,
                log=log,
                asked=asked,
            )
        return state.step, finished


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_saves_and_samples_fall_on_their_steps_and_on_the_last():
    told = Told(steps=10, save_every=4, sample_every=3)
    assert told.run() == (10, True)
    assert told.of('save') == [4, 8, 10]
    assert told.of('sample') == [3, 6, 9, 10]


def test_without_a_rhythm_only_the_last_step_is_saved_and_sampled():
    told = Told(steps=3)
    told.run()
    assert told.of('save') == told.of('sample') == [3]


def test_last_step_is_saved_and_sampled_once_where_the_rhythm_meets_it():
    told = Told(steps=8, save_every=4, sample_every=4)
    told.run()
    assert told.of('save') == [4, 8]
    assert told.of('sample') == [4, 8]


def test_samples_that_a_kill_came_before_are_made_up_for_and_others_are_not_made_twice():
    told = Told(first=6, steps=8, sample_every=3, samples_missing=True)
    assert told.run() == (8, True)
    assert told.events[0] == ('sample', 6) and told.of('sample') == [6, 8] and told.of('save') == [8]
    told = Told(first=6, steps=8, sample_every=3)
    assert told.run() == (8, True) and told.of('sample') == [8]
    for first, due in ((0, [3, 6, 8]), (5, [6, 8]), (8, [8])):  # no step yet, not due, due at the end anyway
        told = Told(first=first, steps=8, sample_every=3, samples_missing=True)
        told.run()
        assert told.of('sample') == due


def test_dispatches_are_shortened_to_meet_saves_samples_and_the_end():
    told = Told(steps=11, per_dispatch=4, save_every=5, sample_every=3)
    told.run()
    assert [(step, count) for name, step, *more in told.events if name == 'dispatch' for count in more] == [
        (0, 3),
        (3, 2),
        (5, 1),
        (6, 3),
        (9, 1),
        (10, 1),
    ]
    assert told.of('save') == [5, 10, 11] and told.of('sample') == [3, 6, 9, 11]


def test_every_step_is_written_once_in_order_with_its_own_rate():
    told = Told(steps=7, per_dispatch=3, losses={step: step / 2 for step in range(8)})
    told.run()
    assert [step for step, _ in told.lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [values['loss'] for _, values in told.lines] == [step / 2 for step in range(1, 8)]
    assert [values['learning_rate'] for _, values in told.lines] == [step / 100 for step in range(7)]
    assert all(values['images_per_second'] > 0 for _, values in told.lines)


def test_numbers_are_fetched_while_the_next_dispatch_runs():
    told = Told(steps=3)
    told.run()
    order = [(name, step) for name, step, *_ in told.events if name in ('dispatch', 'fetch')]
    assert order == [('dispatch', 0), ('dispatch', 1), ('fetch', 0), ('dispatch', 2), ('fetch', 1), ('fetch', 2)]


def test_what_is_saved_or_sampled_is_known_to_be_sound_before():
    told = Told(steps=4, save_every=2, sample_every=2)
    told.run()
    for event in ('save', 'sample'):
        assert told.events.index(('fetch', 1)) < told.events.index((event, 2))
        assert told.events.index((event, 2)) < told.events.index(('dispatch', 2, 1))


def test_resumed_run_goes_on_without_saving_or_sampling_its_first_state_again():
    told = Told(first=4, steps=10, save_every=4, sample_every=4)
    assert told.run() == (10, True)
    assert told.of('save') == [8, 10] and told.of('sample') == [8, 10]
    assert told.of('dispatch') == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize('first', [10, 12], ids=['at_the_end', 'beyond_it'])
def test_finished_run_takes_no_step_is_finished_and_does_nothing_twice(first):
    for missing, sampled in ((False, []), (True, [first])):
        told = Told(first=first, steps=10, save_every=4, sample_every=4, samples_missing=missing)
        assert told.run() == (first, True)
        assert told.of('dispatch') == [] and told.of('sample') == sampled


@pytest.mark.parametrize('per_dispatch', [1, 4, 100])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_no_number_names_its_step_and_saves_nothing_more(value, per_dispatch):
    told = Told(steps=20, per_dispatch=per_dispatch, save_every=5, losses={7: value, 8: value})
    with pytest.raises(loop.TrainingError, match=f'toy: the loss of step 7 is {value}; .* untouched'):
        told.run()
    assert told.of('save') == [5]
    assert [step for step, _ in told.lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize('bad', [10, 20], ids=['before_a_save', 'last'])
def test_loss_that_is_no_number_right_before_a_save_is_not_saved(bad):
    told = Told(steps=20, save_every=10, losses={bad: float('nan')})
    with pytest.raises(loop.TrainingError, match=f'step {bad} is nan'):
        told.run()
    assert told.of('save') == [step for step in (10, 20) if step < bad]


def test_gradient_that_is_no_number_stops_before_the_ruined_weights_are_saved():
    told = Told(steps=20, save_every=5, gradients={10: float('nan')})  # the loss of step 10 was still sound
    with pytest.raises(loop.TrainingError, match='the gradient norm of step 10 is nan'):
        told.run()
    assert told.of('save') == [5]


def test_sigterm_saves_where_the_run_is_and_ends_unfinished():
    told = Told(steps=20, per_dispatch=2, save_every=10, act={('dispatch', 4): terminate})
    assert told.run() == (6, False)
    assert told.of('save') == [6] and told.of('sample') == []
    assert [step for step, _ in told.lines] == [1, 2, 3, 4, 5, 6]


def test_sigterm_while_sampling_is_heard_too():
    told = Told(steps=20, sample_every=5, act={('sample', 5): terminate})
    assert told.run() == (6, False)
    assert told.of('save') == [6]


@pytest.fixture
def heard():
    """The signals that reach whoever listened before."""
    found = []
    before = {
        number: signal.signal(number, lambda number, frame: found.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_after_the_last_step_leaves_a_finished_run_and_is_handed_on(heard):
    told = Told(steps=3, act={('dispatch', 2): terminate})
    assert told.run() == (3, True)
    assert told.of('save') == told.of('sample') == [3]
    assert heard == [signal.SIGTERM]


def test_sigterm_that_ends_training_early_is_not_handed_on(heard):
    assert Told(steps=20, act={('dispatch', 4): terminate}).run() == (5, False)
    assert heard == []


def test_sigterm_does_not_save_what_is_unsound():
    told = Told(steps=20, losses={5: float('nan')}, act={('dispatch', 4): terminate})
    with pytest.raises(loop.TrainingError, match='step 5'):
        told.run()
    assert told.of('save') == []


def test_what_files_ask_for_is_done_between_dispatches_and_they_are_removed(tmp_path):
    ask = {('dispatch', 3): (tmp_path / 'save').touch, ('dispatch', 5): (tmp_path / 'sample').touch}
    told = Told(steps=8, per_dispatch=1, act=ask, control=tmp_path)
    assert told.run() == (8, True)
    assert told.of('save') == [4, 8] and told.of('sample') == [6, 8]
    assert told.of('fetch')[:4] == [0, 1, 2, 3] and told.events.index(('save', 4)) > told.events.index(('fetch', 3))
    assert list(tmp_path.iterdir()) == []
    assert [step for step, _ in told.lines] == list(range(1, 9))


def test_what_is_due_anyway_is_not_done_twice_when_it_is_asked_for(tmp_path):
    (tmp_path / 'save').touch()
    told = Told(first=2, steps=6, save_every=2, act={('dispatch', 3): (tmp_path / 'save').touch}, control=tmp_path)
    told.run()  # at step 2, from whose checkpoint it goes on, and at step 4
    assert told.of('save') == [4, 6] and list(tmp_path.iterdir()) == []


def test_a_file_asks_to_save_and_end(tmp_path):
    told = Told(steps=20, per_dispatch=4, act={('dispatch', 4): (tmp_path / 'stop').touch}, control=tmp_path)
    assert told.run() == (8, False)
    assert told.of('save') == [8] and told.of('sample') == [] and list(tmp_path.iterdir()) == []
    (tmp_path / 'stop').touch()
    told = Told(first=3, steps=20, control=tmp_path)  # nothing learned since the checkpoint
    assert told.run() == (3, False) and told.events == [] and list(tmp_path.iterdir()) == []


def test_a_paused_training_saves_waits_answers_and_goes_on(tmp_path, monkeypatch):
    seen = []
    # What happens at every moment of waiting, one after the other.
    moments = iter(((tmp_path / 'sample').touch, lambda: None, (tmp_path / 'pause').unlink))

    def sleep(seconds):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        next(moments)()

    monkeypatch.setattr('time.sleep', sleep)
    told = Told(steps=5, act={('dispatch', 1): (tmp_path / 'pause').touch}, control=tmp_path)
    assert told.run() == (5, True)
    assert told.of('save') == [2, 5] and told.of('sample') == [2, 5] and told.of('dispatch') == [0, 1, 2, 3, 4]
    assert seen == [['pause', PAUSED]] * 3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('by_signal', [True, False])
def test_a_paused_training_can_be_stopped(tmp_path, monkeypatch, by_signal):
    monkeypatch.setattr('time.sleep', lambda seconds: terminate() if by_signal else (tmp_path / 'stop').touch())
    (tmp_path / 'pause').touch()
    told = Told(first=2, steps=5, samples_missing=True, control=tmp_path)
    assert told.run() == (2, False)
    assert told.of('dispatch') == told.of('sample') == told.of('save') == []
    assert [path.name for path in tmp_path.iterdir()] == ['pause']


@pytest.fixture
def interrupts():
    """Python's own handler of Ctrl-C, which shells turn off for what they start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_given_back_and_a_second_interrupt_interrupts(interrupts):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with Requests().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
    with contextlib.suppress(RuntimeError), Requests().listening():
        raise RuntimeError
    assert {number: signal.getsignal(number) for number in before} == before


def test_only_the_dispatch_itself_may_not_bring_numbers_to_the_host():
    """The guard does not act on CPU, where device and host are one; that it is set where it should be is seen here."""
    seen = {}

    def look(event):
        return lambda: seen.setdefault(event, jax.config.jax_transfer_guard_device_to_host)

    watched = ('frozen', 'dispatch', 'fetch', 'save', 'sample')
    told = Told(steps=4, save_every=2, sample_every=2, act={(event, 2): look(event) for event in watched})
    told.run()
    assert seen == {event: 'disallow' if event == 'dispatch' else None for event in watched}
