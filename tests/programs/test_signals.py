"""Ctrl-C and SIGTERM end a program at any moment, with 130 and 143, in a moment, without a traceback or half a file."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support import script

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MOST_SECONDS = 5.0


def end(process, number):
    """(exit code, stderr) of a process that is sent a signal."""
    process.send_signal(number)
    begun = time.monotonic()
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - begun < MOST_SECONDS
    return process.returncode, error


# Where Python itself would let an exception vanish, wait for the end of a long call, or print it.
MOMENTS = {
    'in_python': 'while True: pass',
    'asleep': 'import time; time.sleep(60)',
    'in_a_long_call': "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    'in_a_callback_of_the_garbage_collector': """
import gc, time
def wait(phase, info): time.sleep(60)
gc.callbacks.append(wait)
gc.collect()""",
    'in_a_finalizer': """
import time
class Last:
    def __del__(self): time.sleep(60)
Last()""",
    'where_all_exceptions_are_caught': """
import time
while True:
    try: time.sleep(60)
    except BaseException: pass""",
    'at_the_very_end': 'import atexit, time; atexit.register(time.sleep, 60)',
}


@pytest.mark.parametrize(
    ('moment', 'number'),
    [*((moment, signal.SIGINT) for moment in MOMENTS), ('asleep', signal.SIGTERM), ('in_a_long_call', signal.SIGTERM)],
)
def test_signals_end_a_program_wherever_it_is(moment, number):
    process = script.start(f"print('here')\n{MOMENTS[moment].strip()}")
    assert process.stdout.readline() == 'here\n'
    time.sleep(0.05)
    name = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[number]
    assert end(process, number) == (CODES[number], f'\nstopped by {name}\n')


def test_what_is_half_written_is_removed_and_what_was_there_stays(tmp_path):
    (tmp_path / 'old').write_text('whole')
    process = script.start(f"""
import time
from pathlib import Path
from dreambooth_jax.system import disk
folder = Path({str(tmp_path)!r})
(folder / 'parts').mkdir()
with disk.writing(folder / 'old') as new, disk.unfinished(folder / 'parts'):
    new.write_text('half')
    print(new.exists())
    time.sleep(60)""")
    assert process.stdout.readline() == 'True\n'
    assert end(process, signal.SIGTERM)[0] == 143
    assert [path.name for path in tmp_path.iterdir()] == ['old'] and (tmp_path / 'old').read_text() == 'whole'


def test_processes_that_help_end_too():
    process = script.start("""
import multiprocessing, time
child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
child.start()
print(child.pid)
time.sleep(60)""")
    child = int(process.stdout.readline())
    assert end(process, signal.SIGTERM)[0] == 143
    until = time.monotonic() + MOST_SECONDS
    while os.path.exists(f'/proc/{child}') and time.monotonic() < until:
        with open(f'/proc/{child}/stat') as stat:
            if stat.read().split(')')[1].split()[0] == 'Z':  # ended; nobody has asked how
                break
        time.sleep(0.01)
    else:
        assert not os.path.exists(f'/proc/{child}')


def test_signals_that_were_to_be_ignored_stay_ignored():
    words = ['bash', '-c', 'trap "" INT; exec "$@"', 'bash', *script.command('print(1)\nimport time; time.sleep(1)')]
    process = subprocess.Popen(words, env=script.environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == '1\n'
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


LISTENING = """
import time
from dreambooth_jax.training.requests import Requests
with Requests().listening() as stop:
    print('listening')
    while not stop.requested: time.sleep(0.01)
    print('asked')
    {then}
    stop.heeded = True
print('saved')"""


def test_training_is_asked_first_and_a_second_ctrl_c_ends_it_even_inside_a_long_call():
    process = script.start(LISTENING.format(then=MOMENTS['in_a_long_call']))
    assert process.stdout.readline() == 'listening\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'asked\n'
    time.sleep(0.2)
    assert process.poll() is None
    assert end(process, signal.SIGINT) == (130, '\nstopped by Ctrl-C\n')


def test_training_that_was_asked_ends_by_itself():
    process = script.start(LISTENING.format(then='time.sleep(0.2)'))
    assert process.stdout.readline() == 'listening\n'
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, 'asked\nsaved\n', '')


def begun(arguments):
    """A real program whose first line has run: before, Python itself is starting and ends in its own way."""
    process = subprocess.Popen(
        [sys.executable, '-m', *arguments],
        env=script.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and len(os.listdir(f'/proc/{process.pid}/task')) < 2:
        time.sleep(0.001)  # the second thread is the one that hears of signals
    return process


@pytest.mark.parametrize('number', CODES)
def test_a_signal_that_came_while_python_started_ends_a_program_as_soon_as_it_can(number, tmp_path):
    def wait_for_it():
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
        os.kill(os.getpid(), number)

    command = [sys.executable, '-m', 'dreambooth_jax.train', f'--config={tmp_path}/none.py', '--workdir=x']
    options = {'env': script.environment(), 'capture_output': True, 'text': True}
    ended = subprocess.run(command, preexec_fn=wait_for_it, **options)
    name = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[number]
    assert (ended.returncode, ended.stderr) == (CODES[number], f'\nstopped by {name}\n')


def check_random_moments(count, seconds, tmp_path, number=signal.SIGINT):
    rng = random.Random(count)
    for turn in range(count):
        process = begun(['dreambooth_jax.train', f'--config={script.ROOT}/configs/dog.py', f'--workdir={tmp_path}/run'])
        moment = (turn + rng.random()) * seconds / count  # one in each part of the time
        time.sleep(moment)
        code, error = end(process, number)
        assert code == CODES[number] and 'Traceback' not in error, (moment, error)
        assert error.endswith(f'\nstopped by {"Ctrl-C" if number == signal.SIGINT else "SIGTERM"}\n')


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='needs /proc')
@pytest.mark.parametrize('number', CODES)
def test_a_run_ends_at_three_random_moments_of_its_start(number, tmp_path):
    check_random_moments(3, 2.0, tmp_path, number)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='needs /proc')
def test_a_run_ends_at_fourteen_random_moments_of_its_start(tmp_path):
    check_random_moments(14, 8.0, tmp_path)
