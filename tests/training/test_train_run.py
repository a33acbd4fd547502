"""A stage's whole training with real steps, checkpoints and metrics: interrupted runs end as uninterrupted ones."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from dreambooth_jax.config import CheckpointConfig
from dreambooth_jax.data import pairs
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import loop, train_run
from dreambooth_jax.training.callbacks import ChoosesCheckpoint
from dreambooth_jax.training.checkpoint import CheckpointError, Checkpoints
from tests.support import toy

STEPS = 8


def train(
    workdir, placement='one', data=lambda step: toy.frozen(), *, steps=STEPS, per_dispatch=None, save_every=3, **more
):
    """fit() of the toy stage; `data`: step -> what is frozen."""
    where = toy.placed(placement)
    run = train_run.TrainRun(
        loss=toy.loss,
        params=toy.params(),
        frozen_at=lambda placed, step: where.place_state(lambda data: data, data(step)),
        batch=pairs.pad_examples(toy.batch(), where.devices),
        pick=toy.pick,
        tx=toy.transformation('adamw'),
        learning_rate=lambda step: toy.LEARNING_RATE,
        placement=where,
        budget=train_run.Budget(steps=steps, per_dispatch=per_dispatch),
        seed=0,
        checkpoint=CheckpointConfig(every=save_every),
        **{'name': 'toy', 'ema_decay': toy.EMA, **more},
    )
    return train_run.fit(run, workdir)


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / 'toy' / 'checkpoints').iterdir() if path.name.isdigit())


def steps_written(workdir):
    return [line['step'] for line in metrics.read(workdir, 'toy')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its last state."""
    folder = tmp_path_factory.mktemp('whole')
    state, finished = train(folder)
    assert finished
    return folder, toy.arrays(state)


def losses(workdir):
    return [line['loss'] for line in metrics.read(workdir, 'toy')]


def test_run_leaves_its_checkpoints_and_a_line_a_step(whole):
    folder, state = whole
    assert saved(folder) == [6, 8]
    assert steps_written(folder) == list(range(1, STEPS + 1))
    first = metrics.read(folder, 'toy')[0]
    names = {'loss', 'instance_loss', 'prior_loss', 'gradient_norm', 'learning_rate', 'images_per_second'}
    assert names | {'instance_denoising', 'prior_denoising', 'stage', 'step'} <= first.keys()
    numbers = toy.Run('one').steps(STEPS)  # the same steps without anything around them
    np.testing.assert_array_equal(np.float32(losses(folder)), numbers['loss'])


@pytest.mark.parametrize('at', [3, 4])
def test_run_ended_by_sigterm_goes_on_and_ends_equal_to_an_uninterrupted_one(at, whole, tmp_path):
    def terminate(step):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.frozen()

    state, finished = train(tmp_path, data=terminate)
    assert not finished and int(state.step) == at + 1
    assert saved(tmp_path)[-1] == at + 1

    state, finished = train(tmp_path)
    assert finished and int(state.step) == STEPS
    toy.assert_same(toy.arrays(state), whole[1])
    assert steps_written(tmp_path) == list(range(1, STEPS + 1))
    assert losses(tmp_path) == losses(whole[0])


def test_sigterm_while_the_last_checkpoint_is_on_its_way_waits_for_it_and_is_handed_on(tmp_path, monkeypatch):
    close, heard = train_run.Checkpoints.close, []

    def close_and_end(checkpoints):
        os.kill(os.getpid(), signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(train_run.Checkpoints, 'close', close_and_end)
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(saved(tmp_path)))
    try:
        assert train(tmp_path)[1]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [[6, 8]]


def test_run_that_died_between_checkpoints_repeats_the_lost_steps_and_writes_each_once(whole, tmp_path):
    def die(step):
        if step == 5:
            raise RuntimeError('power failure')
        return toy.frozen()

    with pytest.raises(RuntimeError, match='power failure'):
        train(tmp_path, data=die)
    assert saved(tmp_path) == [3] and steps_written(tmp_path) == [1, 2, 3, 4]
    state, _ = train(tmp_path)
    toy.assert_same(toy.arrays(state), whole[1])
    assert steps_written(tmp_path) == list(range(1, STEPS + 1))


def test_nan_stops_the_run_and_the_checkpoint_before_it_serves_to_go_on(whole, tmp_path):
    def broken(step):
        images = toy.frozen()['images'].astype(np.float32)
        return {'images': np.full_like(images, np.nan) if step == 5 else images}

    with pytest.raises(loop.TrainingError, match='toy: the loss of step 6 is nan'):
        train(tmp_path, data=broken)
    assert saved(tmp_path) == [3]
    checkpoints = Checkpoints(tmp_path / 'toy' / 'checkpoints')
    restored = checkpoints.restore(toy.Run('one').state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(toy.arrays(restored)))
    state, finished = train(tmp_path)
    assert finished
    toy.assert_same(toy.arrays(state), whole[1], atol=1e-5)  # another program, for images of another type, in between


def test_finished_run_is_left_as_it_is(whole):
    before = steps_written(whole[0])
    state, finished = train(whole[0])
    assert finished
    toy.assert_same(toy.arrays(state), whole[1])
    assert steps_written(whole[0]) == before


def test_run_goes_on_with_more_steps(whole, tmp_path):
    train(tmp_path, steps=5)
    state, finished = train(tmp_path, steps=STEPS)
    assert finished
    toy.assert_same(toy.arrays(state), whole[1])


def test_run_with_other_shapes_is_refused_and_its_checkpoint_stays(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match='ema.unet.* is .* there but absent here'):
        train(tmp_path, ema_decay=None)
    assert saved(tmp_path) == [2]
    assert steps_written(tmp_path) == [1, 2]


@pytest.mark.parametrize('placement', ['pmap', pytest.param('fsdp', marks=pytest.mark.slow)])
def test_run_begun_on_four_devices_goes_on_on_one(placement, whole, tmp_path, caplog):
    train(tmp_path, placement=placement, steps=4, per_dispatch=2)
    used = int((toy.batch()['weight'] > 0).sum())
    told = f'because {used} do not fill 4 devices; --dry_run says which batch size does'
    assert any(told in line for line in caplog.messages) == bool(used % 4)
    caplog.clear()
    state, finished = train(tmp_path)
    assert not any('teach nothing' in line for line in caplog.messages)
    assert finished
    toy.assert_same(toy.arrays(state.params), whole[1].params, atol=1e-5)


@dataclasses.dataclass
class Choice(ChoosesCheckpoint):
    """Chooses by given scores; `seen` is what a process that goes on knows, as best.json would hold it."""

    every: int
    scores: dict
    seen: dict = dataclasses.field(default_factory=dict)
    last: int | None = None  # the step after which it is enough
    fails_at: int | None = None

    @property
    def best(self):
        return max(self.seen, key=self.seen.get, default=None)

    def enough(self, step):
        return self.last is not None and step >= self.last and self.last in self.seen

    def __call__(self, step, state):
        if step == self.fails_at:
            raise RuntimeError('power failure')
        if not self.missed(step):
            return None
        assert step == int(state.step)
        self.seen[step] = self.scores[step]
        return {'score': self.seen[step]}

    def missed(self, step):
        return step not in self.seen


SCORES = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.2}


def test_the_best_state_is_given_and_its_checkpoint_kept_beside_the_newest(whole, tmp_path):
    choice = Choice(2, SCORES)
    state, finished = train(tmp_path, callbacks=[choice], save_every=1)
    assert finished and int(state.step) == 4
    assert saved(tmp_path) == [4, 7, 8]
    short, _ = train(tmp_path / 'short', steps=4)
    toy.assert_same(toy.arrays(state), toy.arrays(short))
    again, finished = train(tmp_path, callbacks=[Choice(2, SCORES, dict(SCORES))], save_every=1)
    assert finished and saved(tmp_path) == [4, 7, 8]
    toy.assert_same(toy.arrays(again), toy.arrays(short))
    assert steps_written(tmp_path) == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]


def test_what_was_the_best_before_the_last_step_is_not_kept(whole, tmp_path):
    state, _ = train(tmp_path, callbacks=[Choice(2, {**SCORES, 8: 1.0})])
    assert saved(tmp_path) == [6, 8]
    toy.assert_same(toy.arrays(state), whole[1])


@pytest.mark.parametrize('save_every', [0, 3])
def test_a_step_at_which_is_chosen_is_saved(save_every, tmp_path):
    state, _ = train(tmp_path, callbacks=[Choice(4, SCORES)], save_every=save_every)
    assert int(state.step) == 4 and 4 in saved(tmp_path)


def test_enough_ends_the_training_as_its_last_step_and_for_good(tmp_path):
    choice = Choice(2, SCORES, last=6)
    state, finished = train(tmp_path, callbacks=[choice])
    assert finished and int(state.step) == 4 and saved(tmp_path) == [4, 6]
    state, finished = train(tmp_path, callbacks=[dataclasses.replace(choice)])
    assert finished and int(state.step) == 4 and saved(tmp_path) == [4, 6]
    assert steps_written(tmp_path) == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    state, finished = train(tmp_path, callbacks=[dataclasses.replace(choice, last=None)])  # with more patience
    assert finished and int(state.step) == 4 and saved(tmp_path) == [4, 6, 8]


@pytest.mark.parametrize('at', [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_that_dies_while_it_chooses_goes_on_and_chooses_as_an_undisturbed_one(at, tmp_path):
    whole, died = (Choice(2, SCORES, last=6) for _ in range(2))
    expected, _ = train(tmp_path / 'whole', callbacks=[whole])
    with pytest.raises(RuntimeError, match='power failure'):
        train(tmp_path / 'died', callbacks=[dataclasses.replace(died, fails_at=at)])
    assert saved(tmp_path / 'died')[-1] == at
    state, finished = train(tmp_path / 'died', callbacks=[died])
    assert finished and died.seen == whole.seen
    toy.assert_same(toy.arrays(state), toy.arrays(expected))
    assert saved(tmp_path / 'died') == saved(tmp_path / 'whole')
    assert steps_written(tmp_path / 'died') == steps_written(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('placement', ['pmap', 'fsdp'])
def test_the_best_state_comes_back_as_it_lay_on_four_devices(placement, tmp_path):
    state, _ = train(tmp_path, placement=placement, callbacks=[Choice(2, SCORES)])
    short, _ = train(tmp_path / 'short', placement=placement, steps=4)
    toy.assert_same(toy.arrays(state), toy.arrays(short))
    shardings = [[leaf.sharding for leaf in jax.tree.leaves(one)] for one in (state, short)]
    assert shardings[0] == shardings[1]
