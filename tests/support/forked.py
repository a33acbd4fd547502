"""Programs in processes of their own that start without importing anything; JAX and the rest take seconds each time.

For each environment one process imports everything once (preloaded.py), and then forks for every program. Programs are
children of the tests' process, as with subprocess: they are waited for, killed and told dead in the same way.
"""

import atexit
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
_servers: dict[frozenset, subprocess.Popen] = {}


class Forked:
    """A program; as subprocess.Popen, in what tests use of it."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ending = os.pidfd_open(self.pid)
            try:
                if not select.select([ending], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired('a forked program', timeout)
            finally:
                os.close(ending)
        return self._wait(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def start(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> Forked | subprocess.Popen:
    """Starts `python -m MODULE ARGUMENTS` with this environment; it prints to the file `log`."""
    if sys.platform != 'linux':
        with open(log, 'wb') as file:
            words = [sys.executable, '-m', module, *arguments]
            return subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT)
    # pytest names the test there, and each test would have a process of its own.
    server = _server({name: value for name, value in environment.items() if name != 'PYTEST_CURRENT_TEST'})
    json.dump({'module': module, 'arguments': list(arguments), 'log': str(log)}, server.stdin)
    print(file=server.stdin, flush=True)
    return Forked(int(server.stdout.readline()))


def _server(environment: Mapping[str, str]) -> subprocess.Popen:
    key = frozenset(environment.items())
    if key not in _servers:
        # Programs whose parent has ended become children of this process.
        assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        # Nothing is executed anew, so the programs cannot ask for huge pages as they do otherwise.
        given = {**environment, 'GLIBC_TUNABLES': environment.get('GLIBC_TUNABLES', '')}
        words = [sys.executable, '-m', 'tests.support.preloaded']
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        _servers[key] = subprocess.Popen(words, env=given, text=True, **pipes)
        atexit.register(_servers[key].kill)
    return _servers[key]
