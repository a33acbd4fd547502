"""A full disk is one last sentence, whoever meets it, and the same command goes on when there is room again."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.programs.test_train import CONFIG
from tests.support import script, smallest_pipelines

MEETS = {
    'a_thread': """
import threading
def write():
    with open('/dev/full', 'w') as full: full.write('x')
thread = threading.Thread(target=write); thread.start(); thread.join()""",
    'a_finalizer': """
class Last:
    def __del__(self): raise OSError(28, 'No space left on device')
Last()""",
    'a_loop_that_was_closed': """
class Last:
    def __del__(self): raise RuntimeError('Event loop is closed')
Last()""",
    'a_task_that_nobody_waits_for': """
import asyncio, gc
async def write(): raise ValueError('RESOURCE_EXHAUSTED: No space left on device')
async def start():
    task = asyncio.create_task(write())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
asyncio.run(start())
gc.collect()""",
}
LAST = "\nraise OSError(28, 'No space left on device', '/mnt/run/metrics.jsonl')"
FULL = 'the disk is full; make room there and start the same command again'


@pytest.mark.parametrize('name', MEETS)
def test_only_the_main_thread_tells_of_a_full_disk(name):
    ended = script.run(MEETS[name] + LAST)
    assert (ended.returncode, ended.stderr.decode()) == (1, f'metrics.jsonl could not be written to /mnt/run: {FULL}\n')


def test_threads_still_tell_of_bugs():
    ended = script.run('import threading\ndef bug(): 1 / 0\nthreading.Thread(target=bug).start()')
    assert b'ZeroDivisionError' in ended.stderr


NO_CACHE = {'JAX_COMPILATION_CACHE_DIR': ''}  # its files would be too large as well
OPTIONS = ('prior.weight=0', 'super_resolution_model=none', 'base.steps=6', 'samples.steps=1', 'samples.num_images=1')


def train(config, run, most_bytes=None):
    """train as a process of its own, in which no file may grow beyond `most_bytes`."""
    limit = None if most_bytes is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    words = [sys.executable, '-m', 'dreambooth_jax.train', f'--config={config}', f'--workdir={run}']
    return subprocess.run(
        words + [f'--config.{option}' for option in OPTIONS],
        env=script.environment(**(NO_CACHE if limit else {})),
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=limit,
    )


def losses(run):
    return [json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text('utf-8').splitlines()]


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_goes_on_as_if_it_had_not_been(tmp_path):
    (tmp_path / 'photos').mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)):
        Image.fromarray(image).save(tmp_path / 'photos' / f'{i}.png')
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(tmp_path / 'photos')))
    full = train(config, tmp_path / 'run', most_bytes=64 * 1024)
    assert full.returncode == 1 and 'Traceback' not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith('checkpoint ')
    assert last.endswith(f' could not be written to {tmp_path}/run/base/checkpoints: File too large')
    assert train(config, tmp_path / 'run').returncode == 0
    assert not list((tmp_path / 'run' / 'base' / 'checkpoints').glob('*tmp*'))
    assert train(config, tmp_path / 'whole').returncode == 0
    assert losses(tmp_path / 'run') == losses(tmp_path / 'whole')
