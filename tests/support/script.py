"""Programs of a few lines, each a process of its own: for what program.run promises of all programs."""

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
    """What starts a program whose main is `body`."""
    return [sys.executable, '-c', _FRAME.format(body='\n    '.join(body.strip().splitlines()))]


def environment(**more: str) -> dict[str, str]:
    # Without the cache of compiled programs, which a process that is killed while it writes would damage.
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false', **more}


def run(body: str, **env: str) -> subprocess.CompletedProcess:
    """Runs it to its end; its output are bytes."""
    return subprocess.run(command(body), env=environment(**env), capture_output=True, timeout=60)


def start(body: str) -> subprocess.Popen:
    """Starts it; a line that it prints can be read, so that it is known how far it is."""
    return subprocess.Popen(
        command(body),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
