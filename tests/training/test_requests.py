"""Files that ask a training for something. What the loop makes of them is in test_loop.py."""

import numpy as np
import pytest

from dreambooth_jax.training import requests
from dreambooth_jax.training.requests import KINDS, PAUSED, Requests


def test_files_are_seen_by_their_names_alone_and_only_now_and_then(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    asked = Requests(tmp_path, look_every=0.5)
    assert asked.here() == frozenset()
    for name in ('pause', 'sample', 'resume'):
        (tmp_path / name).write_text('whatever')
    assert asked.here() == frozenset()
    now = 100.6
    assert asked.here() == {'pause', 'sample'}
    asked.answered(['sample'])
    assert asked.here() == {'pause'} and not (tmp_path / 'sample').exists()
    (tmp_path / 'save').touch()
    asked.requested = 15  # of a signal one hears at once
    assert asked.here() == {'pause', 'stop'}


def test_a_folder_that_is_missing_asks_for_nothing(tmp_path):
    asked = Requests(tmp_path / 'control', look_every=0)
    assert asked.here() == frozenset()
    asked.answered(['save'])
    assert Requests().here() == frozenset()


@pytest.mark.parametrize('names', [(), ('save',), ('stop', 'pause'), KINDS])
def test_what_is_asked_anywhere_is_told_in_the_order_of_the_kinds(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    flags = Requests(tmp_path).anywhere()
    np.testing.assert_array_equal(flags, [name in names for name in KINDS])
    assert requests.named(flags) == set(names)


def test_a_run_begins_without_requests_to_an_earlier_process(tmp_path):
    folder = tmp_path / 'run' / requests.FOLDER
    requests.clear(tmp_path / 'run')
    for name in (*KINDS, PAUSED, 'note.txt'):
        (folder / name).touch()
    requests.clear(tmp_path / 'run')
    assert [path.name for path in folder.iterdir()] == ['note.txt']
    with Requests(folder).paused():
        assert (folder / PAUSED).exists()
    assert not (folder / PAUSED).exists()
