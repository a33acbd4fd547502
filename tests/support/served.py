"""Folders of runs as train leaves them, without training, and a server's parts over them."""

import datetime
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_jax.config import DreamBoothConfig, to_config_dict, to_dict
from dreambooth_jax.config.schema import resolve
from dreambooth_jax.web.app import application
from dreambooth_jax.web.devices import ALL, DeviceSet
from dreambooth_jax.web.state import Desk

CONFIGS = Path(__file__).parents[2] / 'configs'
TOKEN, PORT = 'a-token-of-the-tests-that-is-long-enough', 8124
BEARER = {'authorization': f'Bearer {TOKEN}'}


def settings(**changed):
    """Settings of a run of 20 steps; dotted names with __ for the dots."""
    config = to_config_dict(DreamBoothConfig())
    config.data.subject = 'dog'
    config.data.instance_prompt, config.data.class_prompt = 'a sks dog', 'a dog'
    config.base.steps, config.prior.num_images = 20, 4
    for name, value in changed.items():
        group, _, last = name.rpartition('__')
        (config[group] if group else config)[last] = value
    return resolve(DreamBoothConfig, config)


def write_run(folder: Path, steps: int = 0, *, finished: bool = False, **changed) -> Path:
    """Writes a run's folder with metrics of the base stage's first steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(to_dict(settings(**changed))))
    if steps:
        add_metrics(folder, range(1, steps + 1))
        (folder / 'base' / 'checkpoints' / str(steps)).mkdir(parents=True)
        write_samples(folder, steps)
    if finished:
        (folder / 'model').mkdir()
        (folder / 'model' / 'model_index.json').write_text('{}')
    return folder


def add_metrics(folder: Path, steps, stage: str = 'base') -> None:
    with (folder / 'metrics.jsonl').open('a') as file:
        for step in steps:
            numbers = {'loss': 1 / step, 'instance_loss': 1 / step, 'prior_loss': 0.5, 'images_per_second': 4.0}
            file.write(json.dumps({'stage': stage, 'step': step, **numbers}) + '\n')


def write_samples(folder: Path, step: int, stage: str = 'base') -> None:
    path = folder / 'samples' / stage / f'{step:06d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes())


def hold(folder: Path, pid: int | None = None, host: str | None = None) -> None:
    """Writes the lock file of a process that works in a folder; None: of this one."""
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    text = f'process {pid or os.getpid()} on {host or socket.gethostname()} since {now}'
    (folder / '.lock').write_text(text)


class Server:
    """The program serve in a process of its own.

    Attributes:
      address: what it has printed, with the token.
      process: the process.
    """

    def __init__(self, runs: Path, *flags: str, port: int = 0, configs: Path = CONFIGS, folder: Path = CONFIGS.parent):
        command = [sys.executable, '-m', 'dreambooth_jax.serve', f'--runs={runs}', f'--configs={configs}']
        self.process = subprocess.Popen(
            [*command, f'--port={port}', *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        line = self.process.stdout.readline()
        assert line.startswith('open http://127.0.0.1:'), line + self.process.stdout.read()
        self.address = line.removeprefix('open ').strip()

    @property
    def port(self) -> int:
        return urllib.parse.urlsplit(self.address).port

    def __enter__(self) -> 'Server':
        return self

    def __exit__(self, *error) -> None:
        self.end()

    def end(self, kill: bool = False) -> int:
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


def image_bytes(width: int = 64, height: int = 48, format: str = 'PNG', seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def mask_bytes(white: slice, width: int = 60, height: int = 40, format: str = 'PNG') -> bytes:
    """A black image that is white in the columns `white`."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, white] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def desk(runs: Path, sets: Sequence[DeviceSet] = (ALL,)) -> Desk:
    return Desk(runs, CONFIGS, sets=sets)


def client(desk: Desk, stopped=lambda: False, **headers: str):
    """A client that knows the token, without a server process; every answer must be as the API's description says.

    Args:
      stopped: whether the server ends, which ends the streams.
    """
    from tests.support.described_api import DescribedClient

    address = f'http://127.0.0.1:{PORT}'
    return DescribedClient(application(desk, TOKEN, PORT, stopped), base_url=address, headers={**BEARER, **headers})
