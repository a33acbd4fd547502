"""A device whose memory is full is one sentence, with the settings that need less and are still free."""

import dataclasses

import jax
import pytest

from dreambooth_jax.config import BaseConfig, DreamBoothConfig, LoraConfig, OptimizerConfig, ParallelConfig
from dreambooth_jax.training import memory
from dreambooth_jax.training.loop import TrainingError

CONFIG = DreamBoothConfig()
REMAT, INT8, LORA = '--config.parallel.remat=True', '--config.optimizer.state_dtype=int8', '--config.lora.rank=16'


def test_other_errors_pass():
    for error in (jax.errors.JaxRuntimeError('INTERNAL: no'), ValueError('RESOURCE_EXHAUSTED')):
        with pytest.raises(type(error)) as caught, memory.explained('samples are generated', []):
            raise error
        assert caught.value is error


def test_without_remedies_a_larger_device_is_left():
    with pytest.raises(TrainingError) as caught, memory.explained('samples are generated', []):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes')
    assert str(caught.value) == (
        "the device's memory is full while samples are generated (RESOURCE_EXHAUSTED: 9 bytes); take a device with "
        'more memory or smaller images, and start again: what is done is kept'
    )


@pytest.mark.parametrize(
    'changes, begun, flags',
    [
        ({}, False, [REMAT, INT8, '--config.base.gradient_accumulation_steps=2', LORA]),
        ({}, True, [REMAT, '--config.base.gradient_accumulation_steps=2']),
        ({'parallel': ParallelConfig(remat=True)}, True, ['--config.base.gradient_accumulation_steps=2']),
        ({'lora': LoraConfig(rank=4)}, False, [REMAT, '--config.base.gradient_accumulation_steps=2']),
        (
            {'optimizer': OptimizerConfig(kind='lion')},
            False,
            [REMAT, '--config.base.gradient_accumulation_steps=2', LORA],
        ),
        (
            {'optimizer': OptimizerConfig(state_dtype='int8')},
            False,
            [REMAT, '--config.base.gradient_accumulation_steps=2', LORA],
        ),
        (
            {'base': BaseConfig(batch_size=3, gradient_accumulation_steps=4)},
            True,
            [REMAT, '--config.base.gradient_accumulation_steps=6'],
        ),
        ({'base': BaseConfig(batch_size=3, gradient_accumulation_steps=6)}, True, [REMAT]),
    ],
)
def test_only_what_helps_and_may_be_changed_is_advised(changes, begun, flags):
    assert memory.remedies(dataclasses.replace(CONFIG, **changes), 'base', begun=begun, devices=1) == flags


def test_several_devices_may_share_the_weights():
    assert memory.remedies(CONFIG, 'base', begun=True, devices=8)[:2] == ['--config.parallel.mode=fsdp', REMAT]
    sharded = dataclasses.replace(CONFIG, parallel=ParallelConfig(mode='fsdp'))
    assert memory.remedies(sharded, 'base', begun=True, devices=8)[0] == REMAT
