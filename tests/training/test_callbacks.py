"""Callbacks of a training: their order, their steps, and what becomes of the numbers that they return."""

import contextlib
import dataclasses
import logging

import jax
import numpy as np
import pytest

from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.sample_grid import SampleGrid, SaveSamples
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training.callbacks import ChoosesCheckpoint, Profile
from tests.support import toy
from tests.training.test_loop import Told, terminate
from tests.training.test_train_run import STEPS, saved, steps_written, train


@dataclasses.dataclass
class Score:
    """As an evaluator would be one: it is called with a state and returns numbers."""

    name: str
    every: int
    seen: list
    numbers: dict | None = None

    def __call__(self, step, state):
        self.seen.append((self.name, step))
        return self.numbers

    def missed(self, step):
        return False


def told(*rhythms, **options):
    """A pretended training with callbacks 'a', 'b', ... of these rhythms, and (name, step) of their calls."""
    seen = []
    callbacks = [Score(name, every, seen, {name: float(every)}) for name, every in zip('abc', rhythms, strict=False)]
    return Told(callbacks=callbacks, **options), seen


def test_callbacks_due_at_one_step_are_called_in_the_order_given_after_the_state_is_saved():
    training, seen = told(2, 3, 2, steps=7, save_every=6)
    training.act = {('save', 6): lambda: seen.append(('save', 6))}
    assert training.run() == (7, True)
    assert seen == [
        *[('a', 2), ('c', 2), ('b', 3), ('a', 4), ('c', 4)],
        *[('save', 6), ('a', 6), ('b', 6), ('c', 6)],
        *[('a', 7), ('b', 7), ('c', 7)],
    ]


def test_a_callback_without_a_rhythm_is_called_only_at_the_end_and_shortens_no_dispatch():
    training, seen = told(0, steps=10, per_dispatch=4)
    training.run()
    assert seen == [('a', 10)]
    assert training.of('dispatch') == [0, 4, 8]


def test_dispatches_are_shortened_to_meet_every_callback():
    training, seen = told(5, 3, steps=9, per_dispatch=4)
    training.run()
    assert training.of('dispatch') == [0, 3, 5, 6]
    assert seen == [('b', 3), ('a', 5), ('b', 6), ('a', 9), ('b', 9)]


def test_after_an_early_stop_only_the_state_is_saved():
    training, seen = told(0, 2, steps=20, act={('dispatch', 4): terminate})
    assert training.run() == (5, False)
    assert training.of('save') == [5] and seen == [('b', 2), ('b', 4)]


def test_numbers_of_a_callback_are_written_for_its_step_after_those_of_the_step():
    training, _ = told(2, 4, steps=4, per_dispatch=3)
    training.run()
    steps = [(step, 'loss' in values) for step, values in training.lines]
    assert steps == [(1, True), (2, True), (2, False), (3, True), (4, True), (4, False), (4, False)]
    assert [values for step, values in training.lines if 'loss' not in values] == [{'a': 2}, {'a': 2}, {'b': 4}]


@pytest.mark.parametrize('numbers', [None, {}])
def test_without_numbers_nothing_is_written(numbers):
    training = Told(steps=2, callbacks=[Score('a', 1, [], numbers)])
    training.run()
    assert [step for step, _ in training.lines] == [1, 2]


def test_a_callback_sees_no_state_that_a_loss_has_ruined():
    training, seen = told(5, steps=20, losses={10: float('nan')})
    with pytest.raises(RuntimeError, match='step 10 is nan'):
        training.run()
    assert seen == [('a', 5)]


def test_an_error_of_a_callback_ends_the_training_after_its_state_was_saved():
    def fail(step, state):
        raise ZeroDivisionError

    training = Told(steps=9, save_every=3)
    training.sample, training.sample_every = fail, 3
    with pytest.raises(ZeroDivisionError):
        training.run()
    assert training.of('save') == [3]


@dataclasses.dataclass
class Norm:
    """The norm of the present weights, as a score."""

    every: int = 4

    def __call__(self, step, state):
        return {'norm': float(sum(np.square(x).sum() for x in jax.tree.leaves(state.params)))}

    def missed(self, step):
        return False


def test_numbers_land_in_the_metrics_of_their_step_also_after_a_resume(tmp_path):
    plain, scored = train(tmp_path / 'plain'), train(tmp_path / 'scored', callbacks=[Norm()])
    toy.assert_same(toy.arrays(scored[0]), toy.arrays(plain[0]))  # a score changes nothing
    lines = metrics.read(tmp_path / 'scored', 'toy')
    norms = {line['step']: line['norm'] for line in lines if 'norm' in line}
    assert norms.keys() == {4, STEPS}
    assert steps_written(tmp_path / 'scored') == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [line['step'] for line in lines if 'loss' in line] == list(range(1, STEPS + 1))

    train(tmp_path / 'parts', steps=5, callbacks=[Norm(every=4)])
    train(tmp_path / 'parts', callbacks=[Norm(every=4)])
    again = {line['step']: line['norm'] for line in metrics.read(tmp_path / 'parts', 'toy') if 'norm' in line}
    assert {step: again[step] for step in norms} == norms


@pytest.mark.parametrize(('every', 'traced'), [(2, True), (STEPS, False)])
def test_a_profile_holds_some_steps_of_a_training_that_is_long_enough(every, traced, tmp_path):
    train(tmp_path / 'run', callbacks=[Profile(tmp_path / 'profile', every, STEPS)])
    found = list((tmp_path / 'profile').rglob('*.xplane.pb'))
    assert len(found) == traced and all(path.stat().st_size for path in found)


@pytest.mark.parametrize(
    ('every', 'ends', 'traced'),
    [
        (2, 'enough', [(2, 4)]),
        (3, 'enough', [(3, 4)]),
        (4, 'enough', [(4, 4)]),
        (5, 'enough', []),
        (3, 'fails', [(3, 4)]),
    ],
)
def test_a_profile_is_closed_where_the_training_ends_early(every, ends, traced, tmp_path, monkeypatch):
    """At step 4: by patience, where no other step follows, or by an error."""
    at, found = [0], []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: found.append([at[0]]))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: found[-1].append(at[0]))

    class Watch(ChoosesCheckpoint):
        every, best = 1, None

        def __call__(self, step, state):
            at[0] = step
            if ends == 'fails' and step == 4:
                raise ZeroDivisionError

        def missed(self, step):
            return False

        def enough(self, step):
            return step == 4

    profile = Profile(tmp_path / 'profile', every, STEPS)
    with pytest.raises(ZeroDivisionError) if ends == 'fails' else contextlib.nullcontext():
        train(tmp_path / 'run', callbacks=[Watch(), profile])
    assert found == [list(steps) for steps in traced]


class Broken:
    """In a cascade's place: a device whose memory is full."""

    usual_batch_size = 1

    def generate(self, *arguments, **options):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes')

    def release(self):
        pass


def test_samples_that_cannot_be_generated_are_a_warning_and_the_training_goes_on(tmp_path, caplog):
    options = SamplingOptions(steps=1, guidance_scale=1.0, sampler='ddim')
    samples = SaveSamples(
        grid=SampleGrid(None, [], ['a dog'], options, num_images=1),
        cascade_of=lambda state: Broken(),
        folder=tmp_path / 'samples',
        title='toy',
        every=4,
    )
    with caplog.at_level(logging.WARNING):
        _, finished = train(tmp_path, callbacks=[samples, Norm(every=0)])
    assert finished and saved(tmp_path)[-1] == STEPS
    found = [record.getMessage().partition(', training goes on')[0] for record in caplog.records]
    assert [text for text in found if text.startswith('no samples')] == [
        'no samples of toy, step 4',
        f'no samples of toy, step {STEPS}',
    ]
    assert 'norm' in metrics.read(tmp_path, 'toy')[-1]  # the callbacks after it are called
