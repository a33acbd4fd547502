"""Checkpoints: what is saved comes back bit for bit, what was cut short is not read, and nothing is guessed."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.training import optimizer
from dreambooth_jax.training.checkpoint import CheckpointError, Checkpoints
from dreambooth_jax.training.state import init_state
from tests.support import toy


def small_state(value=0.0, width=4, ema=True):
    tx = optimizer.make_optimizer(1e-3, OptimizerConfig())
    params = {'unet': {'conv.kernel': jnp.full((3, width), float(value)), 'conv.bias': jnp.zeros(width)}}
    return init_state(params, tx, ema=ema)


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 64 KiB: writes fail as they do on a full disk, by the operating system's own error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def large_state(seed):
    """4 MB that no compression makes small."""
    return {'noise': np.random.default_rng(seed).integers(0, 2**31, 2**20, np.int32)}


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_three_and_three_steps_equal_six_bit_for_bit(placement, tmp_path):
    whole = toy.Run(placement)
    numbers = whole.steps(6)
    first = toy.Run(placement)
    first.steps(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, first.placement.to_global(first.state))
    checkpoints.close()

    second, checkpoints = toy.Run(placement), Checkpoints(tmp_path)
    second.state = checkpoints.restore(second.state)
    checkpoints.close()
    assert int(second.state.step) == 3
    toy.assert_same(second.steps(3), {name: value[3:] for name, value in numbers.items()})
    toy.assert_same(toy.arrays(second.state), toy.arrays(whole.state))  # step, weights, average and moments


def test_training_on_while_a_save_is_under_way_does_not_change_what_is_saved(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    state = jax.tree.map(jnp.asarray, large_state(0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    for _ in range(3):
        state = overwrite(state)  # donated: writes into the very memory
    checkpoints.close()
    toy.assert_same(Checkpoints(tmp_path).restore(state), large_state(0))


@pytest.mark.parametrize('keep', [1, 2])
def test_newest_checkpoints_are_kept(keep, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for at in (1, 2, 3, 4):
        checkpoints.save(at, small_state(at))
    checkpoints.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4][-keep:]
    assert Checkpoints(tmp_path).latest == 4


def test_the_best_one_is_kept_besides_and_goes_when_another_is_better(tmp_path):
    best = {'step': ()}
    checkpoints = Checkpoints(tmp_path, keep=1, besides=lambda: best['step'])
    for at, then in ((1, ()), (2, {2}), (3, {2}), (4, {4}), (5, {4})):
        checkpoints.save(at, small_state(at), wait=True)
        best['step'] = then
    assert steps_in(tmp_path) == [4, 5]
    best['step'] = {5}
    checkpoints.tidy()
    assert steps_in(tmp_path) == [5] and checkpoints.latest == 5
    checkpoints.save(6, small_state(6))
    checkpoints.close()
    assert steps_in(tmp_path) == [5, 6]
    again = Checkpoints(tmp_path, keep=1, besides=lambda: [5, 9])
    assert steps_in(tmp_path) == [5, 6]
    toy.assert_same(again.restore(small_state(), 5), small_state(5))
    assert Checkpoints(tmp_path, keep=1).latest == 6 and steps_in(tmp_path) == [6]


def test_step_that_is_saved_already_stays_as_it_is(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, small_state(1.0))
    checkpoints.save(1, small_state(2.0), wait=True)
    toy.assert_same(checkpoints.restore(small_state()), small_state(1.0))


def test_step_before_the_newest_is_refused_and_not_silently_left_out(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, small_state(), wait=True)
    with pytest.raises(CheckpointError, match='checkpoint 3 is not written.* holds the later 5'):
        checkpoints.save(3, small_state())


def test_older_step_can_be_restored_by_number(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for at in (1, 2):
        checkpoints.save(at, small_state(at), wait=True)
    toy.assert_same(checkpoints.restore(small_state(), 1), small_state(1))
    toy.assert_same(checkpoints.restore(small_state()), small_state(2))


def test_save_that_was_cut_short_is_not_read(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, small_state(3.0), wait=True)
    checkpoints.close()
    # What a killed process leaves: the folder under its temporary name, not all of it there.
    cut = shutil.copytree(tmp_path / '3', tmp_path / '6.orbax-checkpoint-tmp-1234')
    shutil.rmtree(next(cut.glob('**/d')))
    again = Checkpoints(tmp_path)
    assert again.latest == 3
    toy.assert_same(again.restore(small_state()), small_state(3.0))
    again.save(6, small_state(6.0), wait=True)
    toy.assert_same(Checkpoints(tmp_path).restore(small_state()), small_state(6.0))


def test_what_a_killed_process_left_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for at in (9, 12):
        checkpoints.save(at, small_state(at))
    checkpoints.close()
    shutil.copytree(tmp_path / '9', tmp_path / '15.orbax-checkpoint-tmp')  # a save that no later one repeats
    shutil.copytree(tmp_path / '9', tmp_path / '3')  # it was about to be deleted
    shutil.copytree(tmp_path / '9', tmp_path / '6')
    shutil.rmtree(next((tmp_path / '6').glob('**/d')))  # it was deleted in part
    again = Checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['12', '9']
    toy.assert_same(again.restore(small_state(), 9), small_state(9))


def test_process_killed_while_it_saves_leaves_the_last_good_one(tmp_path):
    """A real kill: the child is gone by SIGKILL the moment the second save's folder appears."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, large_state(3), wait=True)
    checkpoints.close()
    code = f"""
import os, signal, threading, time
from dreambooth_jax.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import large_state
def kill():
    while not any('.orbax-checkpoint-tmp' in name for name in os.listdir({str(tmp_path)!r})):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
Checkpoints({str(tmp_path)!r}).save(6, large_state(6), wait=True)
"""
    done = subprocess.run([sys.executable, '-c', code], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    again = Checkpoints(tmp_path)
    assert again.latest == 3
    toy.assert_same(again.restore(large_state(0)), large_state(3))


def test_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'new')
    assert checkpoints.latest is None
    with pytest.raises(CheckpointError, match='new holds no complete checkpoint'):
        checkpoints.restore(small_state())


def test_step_that_was_never_saved_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, small_state(), wait=True)
    with pytest.raises(CheckpointError, match='checkpoint 2 in .* could not be read'):
        checkpoints.restore(small_state(), 2)


@pytest.mark.parametrize(
    'other, sentence',
    [
        (small_state(width=5), r'params\.unet\.conv\.bias is float32\[4\] there but float32\[5\] here \(7 more'),
        (small_state(ema=False), r'ema\.unet\.conv\.bias is float32\[4\] there but absent here'),
        ({'step': jnp.int32(0)}, r'is .* there but absent here'),
        (jax.tree.map(jnp.float16, small_state()), r'step is int32\[\] there but float16\[\] here'),
    ],
    ids=['shape', 'no_average', 'structure', 'dtype'],
)
def test_checkpoint_that_does_not_fit_is_named_and_nothing_is_loaded(other, sentence, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for at in (1, 2):
        checkpoints.save(at, small_state(at), wait=True)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoints.restore(other)
    assert '\n' not in str(caught.value) and 'checkpoint 2 in' in str(caught.value)
    assert steps_in(tmp_path) == [1, 2]
    toy.assert_same(checkpoints.restore(small_state()), small_state(2))


def test_damaged_checkpoint_is_an_error_and_no_older_one_takes_its_place(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for at in (1, 2):
        checkpoints.save(at, small_state(at), wait=True)
    checkpoints.close()
    for folder in (tmp_path / '2').glob('**/d'):
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match='checkpoint 2 in .* could not be read'):
        Checkpoints(tmp_path).restore(small_state())


# Orbax's own threads complain about the loop that the failed write has closed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('wait', [True, False])
def test_full_disk_is_one_sentence_and_the_last_checkpoint_stays(wait, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)  # the old one would go as soon as the new one counted as written
    checkpoints.save(3, large_state(3), wait=True)
    sentence = 'could not be written to .*: File too large; checkpoint 3 is complete, go on from it'
    with full_disk(), pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoints.save(6, large_state(6), wait=wait)
        checkpoints.close()
    assert '\n' not in str(caught.value)
    again = Checkpoints(tmp_path, keep=1)
    assert again.latest == 3
    toy.assert_same(again.restore(large_state(0)), large_state(3))
    again.save(6, large_state(6), wait=True)  # with room again
    assert steps_in(tmp_path) == [6]


def test_failed_save_is_told_at_the_next_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with full_disk():
        checkpoints.save(3, large_state(3))
        with pytest.raises(CheckpointError):
            checkpoints.save(6, large_state(6))


@pytest.mark.parametrize('path', ['a_file', 'a_file/checkpoints'])
def test_folder_that_cannot_be_made_is_one_sentence(path, tmp_path):
    (tmp_path / 'a_file').write_text('')
    with pytest.raises(CheckpointError, match='cannot be used') as caught:
        Checkpoints(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_folder_without_permission_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match='cannot be used'):
        Checkpoints(tmp_path / 'checkpoints')
