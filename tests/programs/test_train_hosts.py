"""A whole run of train on two processes with two devices each, as on two hosts, and how they find each other."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import hosts
from dreambooth_jax.training.hosts import Address
from dreambooth_jax.weights import files
from tests.conftest import XLA_FLAGS
from tests.programs.test_train import CONFIG, WEIGHTS
from tests.support import script, smallest_pipelines

DEVICES_FLAG = '--xla_force_host_platform_device_count'


@pytest.mark.parametrize(
    ('distributed', 'address', 'sentence'),
    [
        (False, Address(num_processes=2), '--num_processes is given but --distributed is not; give both or neither'),
        (
            True,
            Address('localhost:1', 2),
            '--coordinator_address is given but --process_id is not; give all three, or none where a cluster tells',
        ),
        (True, Address('localhost:1', 2, 2), '--process_id is 2 but --num_processes is 2; count from 0'),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(distributed, address, sentence):
    with pytest.raises(ConfigError) as error:
        hosts.join(distributed, address)
    assert str(error.value) == sentence


def test_processes_meet_where_they_are_told_or_where_the_cluster_says(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: calls.append(given))
    hosts.join(True, Address('localhost:1', 2, 1))
    hosts.join(True)
    hosts.join(False)
    nothing = {'coordinator_address': None, 'num_processes': None, 'process_id': None}
    assert calls == [{'coordinator_address': 'localhost:1', 'num_processes': 2, 'process_id': 1}, nothing]


def test_no_cluster_is_one_sentence(monkeypatch):
    def initialize(**_):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(ConfigError) as error:
        hosts.join(True)
    assert str(error.value) == (
        '--distributed finds no cluster that tells where the processes meet (coordinator_address should be defined.); '
        'give --coordinator_address, --num_processes and --process_id'
    )


def start(config, run, devices, *arguments):
    flags = ' '.join(f'{name}={value}' for name, value in {**XLA_FLAGS, DEVICES_FLAG: str(devices)}.items())
    command = [sys.executable, '-m', 'dreambooth_jax.train', f'--config={config}', f'--workdir={run}', *arguments]
    environment = script.environment(XLA_FLAGS=flags)
    return subprocess.Popen(
        command, env=environment, cwd=run.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    photos = tmp_path / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ('1.png', '2.png', '3.png'):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(photos / name)
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(photos)))
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    together = [
        start(
            config,
            tmp_path / 'two',
            2,
            '--distributed',
            f'--coordinator_address={address}',
            '--num_processes=2',
            f'--process_id={number}',
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in together]
        assert [process.returncode for process in together] == [0, 0], '\n'.join(said)
        alone = start(config, tmp_path / 'one', 4)
        assert (alone.communicate(timeout=600), alone.returncode)[1] == 0
    finally:
        for process in together:
            process.kill()
    one, two = tmp_path / 'one', tmp_path / 'two'
    for image in (one / 'prior').glob('*.png'):
        ours, theirs = (np.asarray(Image.open(run / 'prior' / image.name), int) for run in (two, one))
        assert np.abs(ours - theirs).max() <= 2
    for stage in ('base', 'super_resolution'):
        ours, theirs = ([line['loss'] for line in metrics.read(run, stage)] for run in (two, one))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for name in WEIGHTS:
        ours, theirs = (files.read_tensors(run / 'model' / name) for run in (two, one))
        assert ours.keys() == theirs.keys()
        assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) < 1e-3
