"""Small programs in processes of their own, for tests of what program.run guarantees for all programs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FRAME = """
import sys
sys.argv = ['small', *sys.argv[1:]]
from dreambooth_jax import program
def main(argv):
    {body}
program.run(main)
"""


def command(body: str) -> list[str]:
    """The command that starts a program whose main function has this body."""
    return [sys.executable, '-c', _FRAME.format(body='\n    '.join(body.strip().splitlines()))]


def environment(**more: str) -> dict[str, str]:
    # A process that is killed while it writes would damage the cache of compiled programs.
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false', **more}


def run(body: str, **env: str) -> subprocess.CompletedProcess:
    """Runs a program until it ends; its output is bytes."""
    return subprocess.run(command(body), env=environment(**env), capture_output=True, timeout=60)


def start(body: str) -> subprocess.Popen:
    """Starts a program; its printed lines can be read to know how far it is."""
    return subprocess.Popen(
        command(body),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
