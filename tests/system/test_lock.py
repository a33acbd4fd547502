"""One process at a time in a run's folder, and none that died in the way of the next."""

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time

import pytest

from dreambooth_jax.system import lock
from dreambooth_jax.training import run
from tests.support import script


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
        assert {path.name for path in tmp_path.iterdir()} == {lock.FILE, 'control'}
    assert not (tmp_path / lock.FILE).exists()
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


def test_the_holder_can_be_asked_for_without_touching_the_lock(tmp_path):
    assert lock.holder(tmp_path) is None
    before = time.time()
    with lock.locked(tmp_path, 'wait'):
        found = lock.holder(tmp_path)
        assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
        assert before - 1 <= found.since <= time.time()
    assert lock.holder(tmp_path) is None


@pytest.mark.parametrize('content', [b'', b'process', b'process 1 on x since yesterday', b'\xff'])
def test_a_lock_file_that_is_not_whole_names_nobody(content, tmp_path):
    (tmp_path / lock.FILE).write_bytes(content)
    assert lock.holder(tmp_path) is None
