"""A run as a stream of server-sent events: each line of its metrics, and itself whenever it changes.

id: base:120:0         which line it is; a client that comes back names the last one (Last-Event-ID), and misses none
event: metrics
data: {"stage": "base", "step": 120, "loss": ...}

event: run
data: {"id": "dog", "state": "running", ...}
"""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from dreambooth_jax.web.numbers import Key
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.state import Desk

_LOOK_EVERY = 0.5  # seconds
_ALIVE_EVERY = 15.0  # seconds between signs of life, by which both sides notice a broken connection


async def stream(desk: Desk, run: str, after: Key | None, stopped: Callable[[], bool]) -> AsyncIterator[str]:
    """Yields the events of a run as text, until the run's folder is gone or the server ends.

    Args:
      after: the last line that the client has; None: it has none.
      stopped: whether the server ends.
    """
    before, silent = None, 0.0
    yield 'retry: 1000\n\n'
    while not stopped():
        try:
            view, lines = await run_in_threadpool(_look, desk, run, after)
        except Refused:
            return
        told = ''
        for line in lines:
            told += event('metrics', line.values, str(line.key))
            after = line.key
        if view != before:
            told += event('run', view)
            before = view
        if told:
            yield told
            silent = 0.0
        elif silent >= _ALIVE_EVERY:
            yield ': alive\n\n'
            silent = 0.0
        silent += _LOOK_EVERY
        await asyncio.sleep(_LOOK_EVERY)


def event(name: str, data: Any, id: str | None = None) -> str:
    """Returns one event as text."""
    lines = [*([] if id is None else [f'id: {id}']), f'event: {name}', f'data: {json.dumps(data)}']
    return '\n'.join(lines) + '\n\n'


def _look(desk: Desk, run: str, after: Key | None) -> tuple[dict, list]:
    view = dataclasses.asdict(desk.view(run))
    view['samples'] = {}
    if desk.runs.folder_of(run) is None:
        return view, []
    view['samples'] = {stage: list(grids) for stage, grids in desk.runs.samples(run).items()}
    view['downloads'] = list(desk.downloads(run))
    view['exports'] = [job.state for job in desk.jobs_of(run, 'export')]
    return view, desk.runs.numbers(run).lines(after)
