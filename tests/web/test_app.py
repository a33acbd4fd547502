"""Errors of every kind are one sentence, as JSON to programs and as a page to people."""

import errno
import os

import pytest

from dreambooth_jax.web.runs import Runs
from tests.support.served import client, desk, write_run


@pytest.fixture
def asked(tmp_path):
    write_run(tmp_path / 'dog')
    return client(desk(tmp_path))


def test_what_is_not_there(asked):
    assert asked.get('/api/x').json() == {'error': 'there is no such page'}
    page = asked.get('/x')
    assert page.status_code == 404 and '<h1>' in page.text and 'there is no such page' in page.text
    assert asked.get('/static/x').status_code == asked.get('/static/').status_code == 404


def test_a_full_disk_is_told(asked, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/x')

    monkeypatch.setattr(Runs, 'all', full)
    answer = asked.get('/api/runs')
    assert answer.status_code == 507 and 'the disk is full' in answer.json()['error']


def test_methods_that_are_not_there(asked):
    assert asked.delete('/api/runs').status_code == 405 and set(asked.delete('/api/runs').json()) == {'error'}
    assert asked.post('/').status_code == 405
