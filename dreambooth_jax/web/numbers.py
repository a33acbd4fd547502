"""Reads metrics.jsonl while a run writes it: its end for an overview, or all of it, of which only what is new is read.

A line is identified by its stage, its step and its number among the lines of that step, because scores of a step are
in a line of their own. A run that goes on from a checkpoint writes the file anew without the lines after it.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.monitoring.metrics import FILE

STAGES = ('base', 'super_resolution')
_TAIL = 32_768  # bytes; a line has about 250


class Key(NamedTuple):
    """Which line it is; keys are in the order in which a run writes them."""

    stage: int
    step: int
    number: int = 0

    def __str__(self) -> str:
        return f'{STAGES[self.stage]}:{self.step}:{self.number}'

    @classmethod
    def parsed(cls, text: str) -> 'Key | None':
        """Returns the key that a text names: base:120:0, base:120, or 120 alone, which is one of the base stage."""
        stage, _, rest = text.rpartition(':') if text.count(':') < 2 else text.partition(':')
        step, _, number = rest.partition(':')
        known = (stage or STAGES[0]) in STAGES and step.isascii() and step.isdigit() and len(step) < 12
        if not known or not (number or '0').isdigit() or len(number) > 9:
            return None
        # Without a number all lines of the step are meant.
        return cls(STAGES.index(stage or STAGES[0]), int(step), int(number) if number else 10**9)


class Line(NamedTuple):
    """One line of the file."""

    key: Key
    values: dict[str, Any]


def tail(folder: Path) -> list[dict[str, Any]]:
    """Returns the last lines of a run's metrics, about a hundred; empty if there are none."""
    try:
        with open(folder / FILE, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    if size > _TAIL:
        lines = lines[1:]  # the first one begins before
    return list(_parsed(lines))


class Numbers:
    """All lines of one run's metrics.

    Args:
      folder: the run's folder.
    """

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._lines: list[Line] = []
        self._counts: dict[tuple[int, int], int] = {}
        self._read, self._file = 0, None
        self._reading = threading.Lock()  # several requests may ask for the same run

    def lines(self, after: Key | None = None) -> list[Line]:
        """Returns the lines after a key, as far as they are written; None: from the first on."""
        return [line for line in self._all() if after is None or line.key > after]

    def curves(self, names: Sequence[str], stage: str) -> dict[str, tuple[list[int], list[float]]]:
        """Returns name -> (steps, values) of the numbers of a stage that are there."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for line in self._all():
            if STAGES[line.key.stage] == stage:
                for name in names:
                    if isinstance(value := line.values.get(name), int | float):
                        steps, values = found.setdefault(name, ([], []))
                        steps.append(line.key.step)
                        values.append(value)
        return {name: found[name] for name in names if name in found}

    def _all(self) -> list[Line]:
        with self._reading:
            self._read_on()
            return list(self._lines)

    def _read_on(self) -> None:
        try:
            with open(self._path, 'rb') as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._read:
                    self._lines, self._counts, self._read, self._file = [], {}, 0, status.st_ino
                file.seek(self._read)
                new = file.read()
        except OSError:
            self._lines, self._counts, self._read, self._file = [], {}, 0, None
            return
        whole = new.rfind(b'\n') + 1  # what comes after may be half a line
        self._read += whole
        for values in _parsed(new[:whole].splitlines()):
            stage, step = STAGES.index(values['stage']), values['step']
            number = self._counts[stage, step] = self._counts.get((stage, step), -1) + 1
            self._lines.append(Line(Key(stage, step, number), values))


def _parsed(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, Mapping) and values.get('stage') in STAGES and isinstance(values.get('step'), int):
                yield dict(values)
