"""Serves web pages and an HTTP API over a folder of runs, on this machine alone.

  python -m dreambooth_jax.serve --runs=runs

The program prints the address to open, which holds a token. Runs that are started there are processes of their own:
they go on when this program ends, and are found again when it starts. Runs that are started by hand are shown too. It
needs `pip install -e '.[ui]'`.
"""

import socket
import threading
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError

_ADDRESS = '127.0.0.1'  # never another: whoever reaches the port could run programs as this user

_RUNS = program.DEFINE_path('runs', None, 'Folder that holds the folders of the runs; it is made if it is missing.')
_CONFIGS = program.DEFINE_path('configs', 'configs', 'Folder of the settings files that new runs begin with.')
_PORT = flags.DEFINE_integer('port', 8124, 'Port on 127.0.0.1; 0: any that is free.', lower_bound=0, upper_bound=65535)
_DEVICES = flags.DEFINE_multi_string(
    'devices',
    [],
    'Numbers of accelerators, such as 0,1. Given once for each set: as many trainings run at a time as there are sets, '
    'each on its own. On a TPU a set has 1, 2, 4 or 8 chips that lie beside each other. Default: one set of all.',
)
_PRICE = program.DEFINE_price(
    'price_per_hour', 'What an hour of this machine costs, or of one set of --devices, such as 1.20 USD, for plans.'
)


def main(argv) -> None:
    del argv
    try:
        import uvicorn

        from dreambooth_jax.web import devices, guard
        from dreambooth_jax.web.app import application
        from dreambooth_jax.web.state import FOLDER, Desk
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs the package {error.name}; pip install -e '.[ui]' brings it") from None
    from dreambooth_jax.system import lock

    runs, configs = Path(_RUNS.value), Path(_CONFIGS.value)
    if not configs.is_dir():
        raise ConfigError(f'--configs={configs} is no folder; give one with settings files, such as configs')
    sets = devices.parse(_DEVICES.value)
    with lock.locked(runs / FOLDER, 'open the page of that server, or give another folder with --runs'):
        desk = Desk(runs, configs, _PRICE.value, sets)
        token = guard.token_in(runs / FOLDER)
        try:
            listening = socket.create_server((_ADDRESS, _PORT.value))
        except OSError as error:
            raise ConfigError(f'--port={_PORT.value} cannot be listened on: {error.strerror}; give another') from None
        port = listening.getsockname()[1]
        ends = lambda: server.should_exit  # noqa: E731
        server = uvicorn.Server(
            uvicorn.Config(
                application(desk, token, port, ends),
                log_level='warning',
                lifespan='off',
                server_header=False,
                timeout_graceful_shutdown=3,
            )
        )
        desk.watch()
        threading.Thread(target=desk.all, daemon=True).start()  # so that the first page finds all runs read
        print(f'open http://{_ADDRESS}:{port}/?token={token}')
        server.run(sockets=[listening])
        desk.queue.close()


if __name__ == '__main__':
    program.run(main, required=['runs'])
