"""A run as a stream: nothing is missed and nothing comes twice, whenever a client comes back."""

import asyncio
import json

import pytest

from dreambooth_jax.web import events
from dreambooth_jax.web.numbers import Key
from tests.support.served import add_metrics, desk, hold, write_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(events, '_LOOK_EVERY', 0.01)


def told(served, after=None, change=lambda: None, looks=4):
    """The events as (name, data, id), with a change after the first look."""

    async def collect():
        found, stops = [], [False] * looks + [True]
        async for text in events.stream(served, 'dog', after, lambda: stops.pop(0)):
            if not found:
                change()
            found.append(text)
        return found

    parsed = []
    for text in ''.join(asyncio.run(collect())).split('\n\n'):
        fields = dict(line.partition(': ')[::2] for line in text.splitlines())
        if 'data' in fields:
            parsed.append((fields['event'], json.loads(fields['data']), fields.get('id')))
    return parsed


def test_all_lines_and_the_run_are_told_once(tmp_path):
    write_run(tmp_path / 'dog', 3)
    found = told(desk(tmp_path))
    assert [id for name, _, id in found if name == 'metrics'] == ['base:1:0', 'base:2:0', 'base:3:0']
    ((_, run, id),) = [one for one in found if one[0] == 'run']
    assert (run['id'], run['state'], run['samples'], id) == ('dog', 'stopped', {'base': [3]}, None)


def test_a_client_that_comes_back_misses_nothing_and_hears_nothing_twice(tmp_path):
    folder = write_run(tmp_path / 'dog', 3)
    add_metrics(folder, [3])  # the scores of step 3
    found = told(desk(tmp_path), Key.parsed('base:3:0'), lambda: add_metrics(folder, [4]))
    assert [id for name, _, id in found if name == 'metrics'] == ['base:3:1', 'base:4:0']


def test_a_change_of_the_run_is_told(tmp_path):
    folder = write_run(tmp_path / 'dog', 3)
    found = told(desk(tmp_path), Key.parsed('base:3'), lambda: hold(folder), looks=8)
    assert [data['state'] for _, data, _ in found][-1] == 'running'


def test_a_run_that_is_gone_ends_the_stream(tmp_path):
    assert told(desk(tmp_path)) == []


def test_a_quiet_stream_shows_that_it_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(events, '_ALIVE_EVERY', 0.02)
    write_run(tmp_path / 'dog', 3)

    async def collect():
        stops = [False] * 10 + [True]
        return [text async for text in events.stream(desk(tmp_path), 'dog', None, lambda: stops.pop(0))]

    assert ': alive\n\n' in asyncio.run(collect())
