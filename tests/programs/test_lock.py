"""One process at a time in a run's folder, and none that died in the way of the next."""

import errno
import fcntl
import logging
import os
import subprocess
import sys

import pytest

from dreambooth_jax.generation import class_images
from dreambooth_jax.system import lock
from dreambooth_jax.training import run
from tests.support import script, smallest_pipelines

HOLD = """
import sys, time
from dreambooth_jax.system import lock
with lock.locked(sys.argv[1], 'wait'):
    print('held', flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """(folder, seconds) -> a process that holds the folder's lock for so long."""
    holders = []

    def start(folder, seconds=60.0):
        words = [sys.executable, '-c', HOLD, str(folder), str(seconds)]
        holders.append(subprocess.Popen(words, env=script.environment(), stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout.readline() == 'held\n'
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.wait()


def test_a_second_process_is_refused_in_one_sentence_and_changes_nothing(hold, tmp_path):
    holder = hold(tmp_path / 'run')
    before = (tmp_path / 'run' / lock.FILE).read_text()
    assert before.startswith(f'process {holder.pid} on ')
    sentence = f'{tmp_path / "run"} is in use by process {holder.pid} on .* since 20..-.*; wait for it, or'
    with pytest.raises(lock.LockError, match=sentence), run.alone(tmp_path / 'run'):
        raise AssertionError
    assert (tmp_path / 'run' / lock.FILE).read_text() == before


@pytest.mark.parametrize('end', ['terminate', 'kill'])
def test_any_death_of_the_holder_opens_the_lock(hold, end, tmp_path):
    holder = hold(tmp_path)
    getattr(holder, end)()
    holder.wait()
    with run.alone(tmp_path):
        assert (tmp_path / lock.FILE).read_text().startswith(f'process {os.getpid()} on ')


def test_a_process_may_come_again_and_is_done_with_the_lock_after_the_block(hold, tmp_path):
    with run.alone(tmp_path), run.alone(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path)


def test_processes_that_take_turns_are_never_inside_together(tmp_path):
    """Each removes the file when it is done, while others already wait for it."""
    body = """
import os, sys
from pathlib import Path
from dreambooth_jax.system import lock
for _ in range(60):
    with lock.locked(sys.argv[1], '', wait=True):
        os.close(os.open(Path(sys.argv[1], 'inside'), os.O_CREAT | os.O_EXCL))
        os.unlink(Path(sys.argv[1], 'inside'))
"""
    words = [sys.executable, '-c', body, str(tmp_path)]
    turns = [subprocess.Popen(words, env=script.environment(), stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [one.wait(60) for one in turns] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_different_runs_do_not_disturb_each_other(hold, tmp_path):
    hold(tmp_path / 'one')
    with run.alone(tmp_path / 'other'):
        pass


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP, None])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr(lock, 'fcntl', None)  # Windows
    else:
        monkeypatch.setattr(fcntl, 'flock', refuse)
    with run.alone(tmp_path):
        pass
    assert ('the file system knows no locks' in caplog.text) == (number is not None)


def test_whoever_waits_says_so_and_goes_on_afterwards(hold, tmp_path, caplog):
    holder = hold(tmp_path, 0.5)
    with caplog.at_level(logging.WARNING), lock.locked(tmp_path, '', wait=True):
        assert holder.poll() is not None or holder.wait(5) == 0
    assert f'{tmp_path} is in use by process {holder.pid} on ' in caplog.text and 'waiting for it' in caplog.text


def test_class_images_are_locked_while_some_are_missing(hold, tmp_path, caplog):
    """A folder that holds all of them is only read, so it need not be one that can be written."""
    files = [class_images.ClassImage(tmp_path / 'a.png', 'a dog', None)]
    holder = hold(tmp_path, 0.5)
    with caplog.at_level(logging.WARNING), class_images._alone(tmp_path, files):
        assert f'in use by process {holder.pid}' in caplog.text and holder.wait(5) == 0
    assert list(tmp_path.iterdir()) == []
    files[0].path.touch()
    with class_images._alone(tmp_path, files):
        assert not (tmp_path / lock.FILE).exists()


@pytest.mark.parametrize('name', ['train', 'pretrain'])
def test_a_program_is_refused_while_another_works_in_its_folder(name, program, hold, tmp_path):
    holder = hold(tmp_path / 'run')
    config = 'configs/dog.py' if name == 'train' else 'configs/storybook_base.py'
    ended = program(name, f'--config={script.ROOT / config}', f'--workdir={tmp_path / "run"}')
    assert ended.code == 1 and f'run is in use by process {holder.pid} on ' in ended.error.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == [lock.FILE]


def test_a_run_in_training_can_be_looked_at(program, hold, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'model').symlink_to(smallest_pipelines.folder('pixels'))
    hold(tmp_path / 'run')
    assert program('find_identifier', f'--model={tmp_path / "run"}').code == 0
