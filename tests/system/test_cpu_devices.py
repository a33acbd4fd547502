"""The CPU counts as the devices that the settings ask for, unless XLA_FLAGS says otherwise; one of them trains."""

import os
import subprocess
import sys
import types

import jax
import pytest

from dreambooth_jax.system import cpu_devices
from tests.support import script

COUNT = '--xla_force_host_platform_device_count'
PROGRAM = """
from dreambooth_jax.system import cpu_devices
cpu_devices.use(3)
import jax
print(len(jax.devices()), cpu_devices.training() == jax.devices()[:1])
"""


@pytest.fixture
def flags(monkeypatch):
    """(the flags before, devices) -> the flags after."""
    monkeypatch.setattr(cpu_devices, '_split', False)

    def after(before, count):
        monkeypatch.setenv('XLA_FLAGS', before)
        cpu_devices.use(count)
        return os.environ['XLA_FLAGS']

    return after


def test_jax_sees_so_many_devices_and_the_first_one_trains():
    env = script.environment(XLA_FLAGS='--xla_cpu_enable_fast_math=false')
    run = subprocess.run([sys.executable, '-c', PROGRAM], env=env, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ('3 True\n', '')


@pytest.mark.parametrize(('given', 'count'), [('--a=1', None), ('', None), (f'--a=1 {COUNT}=4', 2)])
def test_nothing_changes_where_none_are_asked_for_or_the_user_has_said_how_many(flags, given, count):
    assert flags(given, count) == given
    assert cpu_devices.training() is None


def test_one_call_more_changes_nothing(flags):
    assert flags(flags('--a=1', 2), 3) == f'--a=1 {COUNT}=2'


def test_one_device_of_each_process_trains_but_every_accelerator(flags, monkeypatch):
    flags('', 2)
    devices = [types.SimpleNamespace(process_index=index // 2, id=index) for index in range(4)]
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    assert [device.id for device in cpu_devices.training()] == [0, 2]
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert cpu_devices.training() is None
