"""The queue: one process at a time, in order, on disk, and found again by a server that starts later."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from dreambooth_jax.web import devices, jobs
from dreambooth_jax.web.jobs import ENDED, HOST, QUEUED, RUNNING, Queue

# Stands in for a program: does what its flags say.
PROGRAM = """
import os, sys, time
from pathlib import Path
flags = dict(argument[2:].partition('=')[::2] for argument in sys.argv[1:])
seen = [os.environ.get(name) for name in ('CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS')]
print('begins', flags, 'sees', seen[0], 'on', seen[1], flush=True)
while not Path(flags['until']).exists():
    time.sleep(0.02)
print('bar 1\\rbar 2')
sys.exit(int(flags.get('code', 0)))
"""


@pytest.fixture
def queue_of(tmp_path, monkeypatch):
    """A queue whose jobs run PROGRAM; a new one each time, as after a restart."""
    (tmp_path / 'program.py').write_text(PROGRAM)
    monkeypatch.setattr(
        jobs.Job, 'command', property(lambda job: [sys.executable, str(tmp_path / 'program.py'), *job.arguments])
    )
    yield lambda **options: Queue(tmp_path / 'jobs', lambda run: tmp_path / run, **options)
    for run in 'abc':
        (tmp_path / run).mkdir(exist_ok=True)
        (tmp_path / run / 'end').touch()


def add(queue, tmp_path, run, *more, devices=jobs.ACCELERATORS):
    return queue.add(run, 'train', [f'--until={tmp_path / run / "end"}', *more], devices)


def states(queue):
    return [job.state for job in queue.all()]


def until(condition, queue):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, states(queue)
        time.sleep(0.05)
        queue.look()


def test_one_at_a_time_and_in_order(queue_of, tmp_path):
    queue = queue_of()
    for run in 'abc':
        add(queue, tmp_path, run)
    queue.look()
    queue.look()
    assert states(queue) == [RUNNING, QUEUED, QUEUED]
    (tmp_path / 'a' / 'end').touch()
    until(lambda: states(queue) == [ENDED, RUNNING, QUEUED], queue)
    assert queue.all()[0].code == 0
    assert queue.active('a') is None and queue.active('b').state == RUNNING and queue.active('c').state == QUEUED


def test_the_cpu_is_another_device(queue_of, tmp_path, monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    queue = queue_of()
    add(queue, tmp_path, 'a')
    add(queue, tmp_path, 'b', devices=HOST)
    add(queue, tmp_path, 'c', devices=HOST)
    queue.look()
    assert states(queue) == [RUNNING, RUNNING, QUEUED]
    for run, platform in (('a', 'None'), ('b', 'cpu')):  # a process on the CPU leaves the accelerators alone
        until(lambda: jobs.log_tail(tmp_path / run, 'train')[-1].endswith(f'on {platform}'), queue)  # noqa: B023


def test_as_many_run_as_there_are_sets_of_accelerators_each_on_its_own(queue_of, tmp_path):
    sets = devices.parse(['0,1', '2'])
    queue = queue_of(sets=sets)
    for run in 'abc':
        add(queue, tmp_path, run)
    queue.look()
    assert [(job.state, job.on) for job in queue.all()] == [(RUNNING, '0,1'), (RUNNING, '2'), (QUEUED, None)]
    for run, seen in (('a', '0,1'), ('b', '2')):
        until(lambda: f'sees {seen} on' in jobs.log_tail(tmp_path / run, 'train')[-1], queue)  # noqa: B023
    # A server that starts later finds them on their sets; one without sets has no room beside either.
    assert queue.free_set() is queue_of().free_set() is queue.idle_set() is None
    (tmp_path / 'b' / 'end').touch()
    again = queue_of(sets=sets)
    until(lambda: states(again) == [RUNNING, ENDED, RUNNING], again)
    assert again.all()[2].on == '2'
    (tmp_path / 'a' / 'end').touch()
    until(lambda: states(again) == [ENDED, ENDED, RUNNING], again)
    assert again.free_set() == again.idle_set() == sets[0]
    # A process that is not of the queue may have any of them.
    assert queue_of(sets=sets, busy=lambda: 'by-hand').idle_set() is None


def test_two_processes_of_one_run_have_no_accelerators_at_the_same_time(queue_of, tmp_path):
    queue = queue_of(sets=devices.parse(['0', '1']))
    for run in 'aab':
        add(queue, tmp_path, run)
    queue.look()
    assert states(queue) == [RUNNING, QUEUED, RUNNING]


def test_a_job_of_before_there_were_sets_has_all_devices(queue_of, tmp_path):
    first = queue_of()
    add(first, tmp_path, 'a')
    first.look()
    path = tmp_path / 'jobs' / '000001.json'
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != 'on'}))
    again = queue_of(sets=devices.parse(['0', '1']))
    add(again, tmp_path, 'b')
    again.look()
    assert states(again) == [RUNNING, QUEUED]


def test_a_job_goes_on_without_the_server_and_is_found_again(queue_of, tmp_path):
    first = queue_of()
    add(first, tmp_path, 'a')
    add(first, tmp_path, 'b')
    first.look()
    second = queue_of()
    second.look()
    assert [(job.state, job.pid) for job in second.all()] == [(job.state, job.pid) for job in first.all()]
    (tmp_path / 'a' / 'end').touch()
    until(lambda: first.look() or states(second) == [ENDED, RUNNING], second)
    assert second.all()[0].code is None  # nobody was there to see it


def test_a_process_that_just_begins_has_no_command_line_and_is_taken_for_its_job(queue_of, tmp_path, monkeypatch):
    first = queue_of()
    add(first, tmp_path, 'a')
    first.look()
    monkeypatch.setattr(jobs.psutil.Process, 'cmdline', lambda _: [])
    second = queue_of()
    second.look()
    assert states(second) == [RUNNING]


def test_another_process_of_the_same_number_is_not_taken_for_a_job(queue_of, tmp_path):
    queue = queue_of()
    job = add(queue, tmp_path, 'a')
    queue._keep(dataclasses.replace(job, state=RUNNING, pid=os.getpid(), started=time.time()))
    again = queue_of()
    again.stop(again.all()[0])  # it would end this test
    again.look()
    assert states(again) == [ENDED]


def test_a_process_of_the_same_command_that_began_at_another_time_is_another(queue_of, tmp_path):
    queue = queue_of()
    job = add(queue, tmp_path, 'a')
    (tmp_path / 'a').mkdir()
    process = subprocess.Popen(job.command, stdout=subprocess.DEVNULL)
    queue._keep(dataclasses.replace(job, state=RUNNING, pid=process.pid, started=time.time() - 3600))
    again = queue_of()
    again.look()
    assert states(again) == [ENDED]
    (tmp_path / 'a' / 'end').touch()
    process.wait()


def test_stop(queue_of, tmp_path):
    queue = queue_of()
    running, queued = add(queue, tmp_path, 'a'), add(queue, tmp_path, 'b')
    queue.look()
    queue.stop(queued)
    assert states(queue) == [RUNNING, ENDED]
    queue.stop(running)
    until(lambda: states(queue) == [ENDED, ENDED], queue)
    assert queue.all()[0].code == -15


def test_a_failure_is_kept_and_what_was_printed_is_in_the_log(queue_of, tmp_path):
    queue = queue_of()
    add(queue, tmp_path, 'a', '--code=1')
    queue.look()
    (tmp_path / 'a' / 'end').touch()
    until(lambda: states(queue) == [ENDED], queue)
    assert queue.all()[0].code == 1 and queue_of().all()[0].code == 1
    command, begins, bar = jobs.log_tail(tmp_path / 'a', 'train')
    assert command.startswith('--- ') and command.endswith('--code=1') and begins.startswith('begins')
    assert bar == 'bar 2'
    assert jobs.log_tail(tmp_path / 'b', 'train') == []


def test_jobs_wait_for_a_run_that_was_started_by_hand(queue_of, tmp_path):
    working = ['by-hand']
    queue = queue_of(busy=lambda: working[0])
    add(queue, tmp_path, 'a')
    add(queue, tmp_path, 'b', devices=HOST)
    queue.look()
    assert states(queue) == [QUEUED, RUNNING] and queue.waits_for == 'by-hand'
    working[0] = None
    queue.look()
    assert states(queue) == [RUNNING, RUNNING] and queue.waits_for is None


def test_the_watching_thread_survives_errors(queue_of, tmp_path, monkeypatch, caplog):
    queue = queue_of()
    monkeypatch.setattr(jobs, '_LOOK_EVERY', 0.01)
    monkeypatch.setattr(queue, 'look', lambda: 1 / 0)
    thread = queue.watch()
    time.sleep(0.1)
    assert thread.is_alive() and 'the queue could not be read or written' in caplog.text
    queue.close()
    thread.join(5)
    assert not thread.is_alive()


def test_something_else_is_looked_after_before_each_look(queue_of, tmp_path, monkeypatch):
    queue, seen = queue_of(), []
    monkeypatch.setattr(jobs, '_LOOK_EVERY', 0.01)
    monkeypatch.setattr(queue, 'look', lambda: seen.append('look'))
    thread = queue.watch(lambda: seen.append('before'))
    while len(seen) < 4:
        time.sleep(0.01)
    queue.close()
    thread.join(5)
    assert seen[:4] == ['before', 'look'] * 2


def test_a_damaged_file_is_left_out(queue_of, tmp_path, caplog):
    add(queue_of(), tmp_path, 'a')
    (tmp_path / 'jobs' / '000007.json').write_text('{')
    assert [job.number for job in queue_of().all()] == [1]
    assert '000007.json is damaged' in caplog.text


def test_a_command_can_be_typed():
    typed = jobs.typed_command('train', ['--workdir=runs/x', "--config.data.instance_prompt=a 'sks' dog", '--flag'])
    found = subprocess.run(['sh', '-c', f'printf "%s\\n" {typed}'], capture_output=True, text=True).stdout.splitlines()
    assert found == [
        'python',
        '-m',
        'dreambooth_jax.train',
        '--workdir=runs/x',
        "--config.data.instance_prompt=a 'sks' dog",
        '--flag',
    ]
