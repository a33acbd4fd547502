"""Counts of compiled programs: kept in a folder, read where the compiler has only assigned buffers, extrapolated.

The TPU compiler spends most of its time on machine code, after it has assigned buffers, and memory can be counted
without it. `one_at_a_time` runs a script so that the compiler is stopped at that point: a process of its own compiles
one program, notes what the compiler wrote about its buffers, and ends.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dreambooth_jax.evaluation import experiment
from dreambooth_jax.finetune import memory_plan
from dreambooth_jax.generation.cascade import STAGES

FIELDS = ('argument', 'output', 'alias', 'temp')
DUMP = 'PHASES_DUMP'  # environment variable of a process that compiles one program: where the compiler writes
STOPPED = 75  # its exit code once it has noted a count


class Counted:
    """Counts of compiled programs, kept in a folder by the program's text.

    Args:
      folder: where they are kept.
      only: a regular expression of the programs that are compiled.
      compiler: its name and version.
      device_kind: what it compiles for, which a program's text does not say.
      buffers_only: whether it is stopped once it has assigned buffers.
      options: of the compiler.

    Attributes:
      told: the name of every program that was asked for -> how its temporaries were counted.
    """

    def __init__(
        self,
        folder: Path,
        only: str,
        compiler: str,
        *,
        device_kind: str = '',
        buffers_only: bool = False,
        options: Mapping[str, Any] | None = None,
    ):
        self.folder, self.only, self.told, self.options = folder, re.compile(only), {}, options
        self.compiler = f'{compiler} {device_kind} {"buffers" if buffers_only else "whole"}'
        self._calls = 0

    def __call__(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> Any:
        """As `count` of memory_plan.uses; None for programs that are not to be compiled."""
        if not self.only.search(name):
            return None
        # A process that only has the next program to compile asks in the same order as the one before it, and knows
        # without lowering them where their counts are.
        self._calls += 1
        note = Path(os.environ[DUMP], '..', f'{self._calls}').resolve() if DUMP in os.environ else None
        if note is not None and note.is_file():
            path = Path(note.read_text())
        else:
            lowered = lower()
            text = f'{jax.__version__} {self.compiler} {lowered.as_text()}'
            path = self.folder.resolve() / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.json'
            if note is not None:
                note.write_text(str(path))
        if not path.is_file():
            print(f'compiling {name} ...', flush=True)
            started = time.perf_counter()

            def keep(found, how):
                found |= {'program': name, 'seconds': round(time.perf_counter() - started), 'how': how}
                experiment.write_json(path, found)
                print(json.dumps(found), flush=True)

            if DUMP in os.environ:
                threading.Thread(target=_stop_at_buffers, args=(Path(os.environ[DUMP]), keep), daemon=True).start()
            counts, refused = memory_plan.compiled_counts(lowered, self.options)
            found = {field: getattr(counts, f'{field}_size_in_bytes', None) for field in FIELDS}
            keep({**found, 'refused': refused}, 'compiled')
        found = json.loads(path.read_text())
        self.told[name] = f'{found["how"]} in {found["seconds"]} s'
        counts = types.SimpleNamespace(**{f'{field}_size_in_bytes': found[field] for field in FIELDS})
        return counts, found['refused'] and tuple(found['refused'])

    def told_of(self, use: memory_plan.Use) -> str:
        """How the temporaries of a program were counted; '' if they were not."""
        name, stage = use.program.removeprefix('base model, '), stage_of(use)
        return next((self.told[key] for key in (name, f'{name} {stage}', f'{stage} {name}') if key in self.told), '')


def stage_of(use: memory_plan.Use) -> str:
    """The stage whose networks a program runs: a sampler is named after it, whichever is trained in this phase."""
    words = [*use.program.removeprefix('base model, ').split(), *use.phase.split()]
    return next((word for word in words if word in STAGES), 'base')


def _stop_at_buffers(folder: Path, keep: Callable[[dict, str], None]) -> None:
    """Waits until the compiler has written its buffers into an empty folder, keeps the count and ends the process."""
    while True:
        time.sleep(0.2)
        # Written after the buffers, so that these are complete. More would follow, for minutes with large programs.
        for done in folder.glob('*.after_optimizations-buffer-assignment-values.txt'):
            text = Path(str(done).replace('-values.txt', '.txt')).read_text()
            keep({**buffers(text), 'refused': None}, 'buffers assigned')
            os._exit(STOPPED)


def buffers(text: str) -> dict[str, int]:
    """The numbers of `memory_analysis` from what the TPU compiler writes about its buffers (buffer-assignment.txt)."""
    found = dict.fromkeys(FIELDS, 0)
    for line in re.findall(r'^allocation \d+: (.*)$', text, re.MULTILINE):
        size, on_chip = int(re.match(r'size (\d+)', line)[1]), ', color ' in line  # color: a memory other than HBM
        is_parameter, is_output = ', parameter ' in line, ', maybe-live-out' in line
        found['argument'] += size * is_parameter
        found['output'] += size * is_output
        found['alias'] += size * (is_parameter and is_output)
        found['temp'] += size * (', preallocated-temp' in line and not on_chip)
    return found


def one_at_a_time() -> None:
    """Runs this script again and again, each time until one more program is counted, and then to its end."""
    ended = STOPPED
    with tempfile.TemporaryDirectory() as notes:
        while ended == STOPPED:
            with tempfile.TemporaryDirectory(dir=notes) as folder:
                dumped = f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={folder} --xla_dump_hlo_as_text'
                environment = {**os.environ, 'XLA_FLAGS': dumped, DUMP: folder}
                ended = subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    sys.exit(ended)


def extrapolated(
    uses: Sequence[memory_plan.Use], at: Mapping[int, Sequence[memory_plan.Use]], full: Mapping[str, int]
) -> list[tuple[memory_plan.Use, str]]:
    """(use, how its temporaries were counted) of every program of the whole networks.

    Args:
      uses: of the whole networks, whose temporaries were not counted.
      at: depth -> the uses of networks of that depth.
      full: stage -> depth of its whole denoiser.
    """
    rows = []
    for index, use in enumerate(uses):
        counts = {depth: made[index].temporaries for depth, made in at.items() if made[index].complete}
        stage = stage_of(use)
        *third, low, high = [None, None, *sorted(counts)]
        if low is None:
            rows.append((use, ''))
            continue
        slope = (counts[high] - counts[low]) / (high - low)
        line = lambda depth: int(counts[high] + slope * (depth - high))  # noqa: B023, E731
        told = f'extrapolated to depth {full[stage]} from {low} and {high}'
        told += f', where {third[-1]} is {line(third[-1]) / counts[third[-1]] - 1:+.1%} off' if third[-1] else ''
        rows.append((dataclasses.replace(use, temporaries=line(full[stage]), complete=True, limit=None), told))
    return rows
