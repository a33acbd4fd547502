"""A process that has imported what training needs, and becomes a program whenever it is asked (forked.py).

It reads requests as lines of JSON, and answers each with the process id of the program. Nothing here may ask JAX for
devices: the programs choose them.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
from typing import Any

PACKAGES = (
    'config data datasets diffusion evaluation families finetune generation losses models monitoring system text '
    'training weights'
)


def load() -> None:
    """Imports all packages but the programs themselves, which define flags, and what they import late."""
    for name in PACKAGES.split():
        package = importlib.import_module(f'dreambooth_jax.{name}')
        for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
            importlib.import_module(module.name)
    for name in ('orbax.checkpoint', 'tensorboardX', 'transformers.tokenization_utils_tokenizers', 'tqdm'):
        importlib.import_module(name)


def serve() -> dict[str, Any] | None:
    """Starts a process for each request; returns the request in that process, and None at the end in this one."""
    for line in iter(sys.stdin.readline, ''):
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            # The process in between ends at once, so that the program is a child of the one that asks.
            child = os.fork()
            if child == 0:
                return json.loads(line)
            os.write(tell, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        print(os.read(told, 32).decode(), flush=True)
        for end in (told, tell):
            os.close(end)
    return None


def become(module: str, arguments: list[str], log: str) -> None:
    """Runs `python -m MODULE ARGUMENTS` in this process, as if it had just been started."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream, file in enumerate((nothing, output, output)):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    load()
    asked = serve()
    if asked is not None:
        become(**asked)
