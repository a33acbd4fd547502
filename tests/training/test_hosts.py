"""Several hosts with some of the devices each, as on a TPU pod: processes of their own that share one folder."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from dreambooth_jax.training.checkpoint import Checkpoints
from tests.conftest import XLA_FLAGS
from tests.support import toy
from tests.training import test_train_run

DEVICES_FLAG = '--xla_force_host_platform_device_count'


def run_hosts(placement, folder, hosts=2):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    flags = ' '.join(f'{name}={value}' for name, value in {**XLA_FLAGS, DEVICES_FLAG: str(4 // hosts)}.items())
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                '-m',
                'tests.support.training_host',
                placement,
                port,
                str(number),
                str(hosts),
                str(folder),
            ],
            env={**os.environ, 'XLA_FLAGS': flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(hosts)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * hosts, '\n'.join(outputs)


@pytest.mark.slow
@pytest.mark.parametrize('placement', ['pmap', 'fsdp'])
def test_two_hosts_take_the_steps_of_one_stop_and_resume_together_and_write_each_step_once(placement, tmp_path):
    run_hosts(placement, tmp_path / 'hosts')
    state, _ = test_train_run.train(tmp_path / 'one', steps=6)
    assert test_train_run.saved(tmp_path / 'hosts') == [4, 6]
    assert test_train_run.steps_written(tmp_path / 'hosts') == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(
        test_train_run.losses(tmp_path / 'hosts'), test_train_run.losses(tmp_path / 'one'), rtol=1e-5
    )
    together = Checkpoints(tmp_path / 'hosts' / 'toy' / 'checkpoints').restore(toy.Run('one').state)
    toy.assert_same(toy.arrays(together.params), toy.arrays(state.params), atol=1e-5)
