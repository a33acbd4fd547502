"""generate from the command line: it answers what is asked for in a run's folder, also after it was killed."""

import signal
import subprocess
import sys
import time

import pytest

from dreambooth_jax.config.dreambooth import RunSamplesConfig
from dreambooth_jax.generation.request_queue import DONE, RUNNING, Request, RequestQueue
from dreambooth_jax.system import lock
from tests.support import smallest_pipelines
from tests.support.served import CONFIGS
from tests.support.written_runs import begun

SAMPLES = RunSamplesConfig(steps=2, sampler='ddim', guidance_scale=1.0, batch_size=1)


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / 'rex', smallest_pipelines.folder('pixels'), samples=SAMPLES)


def test_it_answers_what_is_asked_for_and_ends(program, run):
    queue = RequestQueue(run)
    queue.folder.mkdir()
    queue.give_way(0.0)  # what an earlier server has left
    queue.add(Request(prompts=('a dog',), models=('base_model',)))
    assert program('generate', f'--workdir={run}', '--idle_minutes=0')[0] == 0
    (found,) = queue.all()
    assert found.status.state == DONE and list(found.images()['base_model']) == ['000_00']
    assert not queue.gives_way and not (queue.folder / '.lock').exists()


def test_one_process_answers_in_a_run(program, run):
    with lock.locked(run / 'generated', ''):
        command = [sys.executable, '-m', 'dreambooth_jax.generate', f'--workdir={run}', '--idle_minutes=0']
        ended = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent, timeout=600)
    assert ended.returncode == 1
    told = ended.stderr.strip().splitlines()[-1]
    assert told.startswith(f'{run}/generated is in use by process ')
    assert told.endswith('; what is asked for is answered there')


def test_a_folder_without_a_run(program, tmp_path):
    code, _, told = program('generate', f'--workdir={tmp_path}')
    path = tmp_path / 'config.json'
    assert (code, told) == (1, f"{tmp_path} is no run's folder: {path} is missing; give the --workdir of train")


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_goes_on_where_it_was(number, run):
    queue = RequestQueue(run)
    queue.add(Request(prompts=('a dog', 'a cat'), models=('base_model',), num_images=16))
    command = [sys.executable, '-m', 'dreambooth_jax.generate', f'--workdir={run}', '--idle_minutes=0']
    process = subprocess.Popen(command, cwd=CONFIGS.parent, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not (before := queue.find(1).images()['base_model']):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) in (-9, 143)
    assert queue.find(1).status.state == RUNNING
    kept = {name: path.stat().st_mtime_ns for name, path in before.items()}
    assert subprocess.run(command, cwd=CONFIGS.parent, timeout=600).returncode == 0
    found = queue.find(1)
    assert (found.status.state, found.status.done) == (DONE, 32)
    assert {
        name: path.stat().st_mtime_ns for name, path in found.images()['base_model'].items() if name in kept
    } == kept
