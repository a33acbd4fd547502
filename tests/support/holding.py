"""A fixture: another process that holds the lock of a folder."""

import subprocess
import sys

import pytest

from dreambooth_jax.system import lock
from tests.support import script

HOLD = """
import sys, time
from dreambooth_jax.system import lock
with lock.locked(sys.argv[1], 'wait', file=sys.argv[3]):
    print('held', flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """(folder, seconds, file) -> a process that holds the folder's lock for so long."""
    holders = []

    def start(folder, seconds=60.0, file=lock.FILE):
        words = [sys.executable, '-c', HOLD, str(folder), str(seconds), file]
        holders.append(subprocess.Popen(words, env=script.environment(), stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout.readline() == 'held\n'
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.wait()
