"""Sets of accelerators: what a process of each sees, and which sets cannot be."""

import re

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.web import devices
from dreambooth_jax.web.devices import ALL, DeviceSet


def test_a_set_is_given_once_for_each_flag():
    assert devices.parse([]) == (ALL,)
    assert devices.parse(['0,1', '2']) == (DeviceSet((0, 1)), DeviceSet((2,)))
    assert [one.name for one in devices.parse(['0,1', '10'])] == ['0,1', '10']


@pytest.mark.parametrize(
    ('texts', 'sentence'),
    [
        (['gpu'], '--devices=gpu must be numbers of accelerators, each once, such as 0,1'),
        (['0,'], '--devices=0, must be numbers of accelerators, each once, such as 0,1'),
        ([''], '--devices= must be numbers of accelerators, each once, such as 0,1'),
        (['1,1'], '--devices=1,1 must be numbers of accelerators, each once, such as 0,1'),
        (
            ['0,1', '2', '1,3'],
            '--devices=0,1 and --devices=1,3 have a device in common; each can be of one set only',
        ),
    ],
)
def test_sets_that_cannot_be_are_one_sentence(texts, sentence):
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}$'):
        devices.parse(texts)


def test_all_devices_overlap_with_any_and_are_what_a_name_that_is_missing_means():
    one, other = devices.parse(['0,1', '2'])
    assert not one.overlaps(other) and one.overlaps(one) and one.overlaps(DeviceSet((1, 5)))
    assert ALL.overlaps(one) and one.overlaps(ALL) and ALL.overlaps(ALL)
    assert devices.named(None) == devices.named('') == ALL and devices.named('0,1') == one
    assert ALL.environment() == {}


def test_a_process_sees_its_devices_alone():
    one, other = (each.environment() for each in devices.parse(['0,1', '4']))
    assert one['CUDA_VISIBLE_DEVICES'] == one['TPU_VISIBLE_CHIPS'] == '0,1'
    assert (one['TPU_CHIPS_PER_PROCESS_BOUNDS'], other['TPU_CHIPS_PER_PROCESS_BOUNDS']) == ('1,2,1', '1,1,1')
    assert one['TPU_PROCESS_BOUNDS'] == '1,1,1'
    assert one['TPU_MESH_CONTROLLER_PORT'] != other['TPU_MESH_CONTROLLER_PORT']
    three = DeviceSet((0, 1, 2)).environment()  # of GPUs; no TPU's chips lie so
    assert three['CUDA_VISIBLE_DEVICES'] == '0,1,2' and 'TPU_PROCESS_BOUNDS' not in three
