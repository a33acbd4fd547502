"""What a training loses while serve shows it: its speed with the page open and without, in turns, within one run.

  python experiments/speed/serving.py

A run of Storybook's base stage trains in a folder beside 200 others. In every other turn the server answers what two
open pages ask it, as web/static/app.js does: the page of the run has a stream of events and looks again every 2.5
seconds, the list of runs every 5 seconds. In the turns between, the server is halted (SIGSTOP). The processor time that
the server uses says the same with less noise.
README.md says what was measured so far.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from absl import flags

from dreambooth_jax import program
from dreambooth_jax.client import Client

ROOT = Path(__file__).parents[2]
RUN = 'measured'
PAGES = {'/': 5.0, f'/runs/{RUN}': 2.5}  # seconds between two looks
FIRST_STEPS = 10  # that do not count: the compiler's, and what follows from it

_TURN = flags.DEFINE_float('turn', 15, 'Seconds of one turn.', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 20, 'Turns, half of them with the server.', lower_bound=2)
_RUNS = flags.DEFINE_integer('runs', 200, 'Finished runs in the folder.', lower_bound=0)
_SETTINGS = flags.DEFINE_multi_string('set', [], 'NAME=VALUE of the training run, such as base.batch_size=1.')


def start_training(folder: Path) -> subprocess.Popen:
    """Starts a run that goes on until it is stopped; returns its process."""
    settings = [
        'prior.num_images=4',
        'prior.steps=4',
        'base.steps=100000',
        'samples.every=0',
        'evaluation.every=0',
        'checkpoint.every=100000',
    ]
    settings += ['super_resolution_model=none', *_SETTINGS.value]
    command = [sys.executable, '-m', 'dreambooth_jax.train', f'--config={ROOT / "configs" / "dog.py"}']
    command += [f'--workdir={folder}', *(f'--config.{setting}' for setting in settings)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def speeds(folder: Path) -> list[float]:
    """Images per second of every step so far."""
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)['images_per_second'] for line in lines if line.endswith('}')]


def write_finished(runs: Path, config: Path) -> None:
    """Writes the folders of finished runs, with the numbers of 100 steps each."""
    for number in range(_RUNS.value):
        folder = runs / f'run_{number:03d}'
        (folder / 'model').mkdir(parents=True)
        shutil.copy(config, folder / 'config.json')
        (folder / 'model' / 'model_index.json').write_text('{}')
        lines = [{'stage': 'base', 'step': step, 'loss': 1 / step, 'images_per_second': 4.0} for step in range(1, 101)]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def processor_seconds(process: int) -> float:
    """Of a process and its threads, since it started."""
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def look(client: Client, path: str, file: Path, looking: threading.Event, waits: list[float]) -> None:
    """Asks for a page while it may, writes it to a file, and notes how long it took, in seconds."""
    while True:
        looking.wait()
        began = time.perf_counter()
        client.download(f'{path}?part=all', file)
        waits.append(time.perf_counter() - began)
        time.sleep(PAGES[path])


def main(argv) -> None:
    del argv
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place)
        training = start_training(runs / RUN)
        server = None
        try:
            while len(speeds(runs / RUN)) < FIRST_STEPS:
                if training.poll() is not None:
                    raise SystemExit('the training has ended before its first steps')
                time.sleep(1)
            write_finished(runs, runs / RUN / 'config.json')
            command = [sys.executable, '-m', 'dreambooth_jax.serve', f'--runs={runs}', '--port=0']
            server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            address = next(found[0] for line in server.stdout if (found := re.search(r'http://\S+', line)))
            client, looking, waits = Client(address), threading.Event(), []
            threading.Thread(target=lambda: list(client.events(RUN)), daemon=True).start()
            for number, path in enumerate(PAGES):
                shown = client, path, runs / f'{number}.html', looking, waits
                threading.Thread(target=look, args=shown, daemon=True).start()
            looking.set()
            time.sleep(_TURN.value)  # the server reads all runs once
            found, used = {True: [], False: []}, 0.0
            for turn in range(_TURNS.value):
                shown = turn % 2 == 1
                looking.set() if shown else looking.clear()
                server.send_signal(signal.SIGCONT if shown else signal.SIGSTOP)
                before, seen = processor_seconds(server.pid), len(speeds(runs / RUN))
                time.sleep(_TURN.value)
                used += (processor_seconds(server.pid) - before) * shown
                found[shown] += speeds(runs / RUN)[seen + 1 :]  # the first had begun in the turn before
        finally:
            for process in filter(None, (server, training)):
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        without, with_ = np.array(found[False]), np.array(found[True])
        loss = 100 * (1 - with_.mean() / without.mean())
        # The interval of each mean, as of independent steps; that of their ratio adds the squares.
        error = 196 * np.hypot(*(each.std() / np.sqrt(len(each)) / each.mean() for each in (without, with_)))
        busy, cores = used / (_TURN.value * (_TURNS.value // 2)), os.cpu_count()
        print(f'images per second: {without.mean():.2f} in {len(without)} steps without the server')
        print(f'                   {with_.mean():.2f} in {len(with_)} steps with it')
        print(f'the training loses {loss:.1f} % of its speed (95 % interval {loss - error:.1f} to {loss + error:.1f})')
        print(f'the server uses {busy:.4f} of a core, {100 * busy / cores:.2f} % of the {cores} of this machine')
        print(f'a page takes {1000 * statistics.median(waits):.0f} ms (median), {1000 * max(waits):.0f} ms at most')


if __name__ == '__main__':
    program.run(main)
