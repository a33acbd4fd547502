"""Settings of pretraining: every error sentence, and what the stages may leave out."""

import pytest

from dreambooth_jax.config import ConfigError, PretrainConfig, resolve
from tests.config.test_dreambooth import UNET, nest

PRETRAIN = [
    ('unet', {}, 'config.unet must describe the network unless config.init names a folder that has one'),
    ('text_encoder', {}, 'config.text_encoder must describe the text encoder of the model'),
    ('crop', 16, "config.crop is 16 but the stage 'base' trains on whole images; leave it None"),
    ('base', 'x', "config.base is 'x' but only stage 'super_resolution' builds on a base"),
    ('stage', 'super_resolution', "config.base must name the base stage's folder: its text encoder is used"),
    ('noise_level', [9, 3], 'config.noise_level must be (low, high) with low <= high, got (9, 3)'),
    ('time_range', [0.9, 0.1], 'config.time_range must be (low, high) with low < high, got (0.9, 0.1)'),
    (
        'schedule',
        'constant',
        (
            "config.warmup_steps is 500 but config.schedule is 'constant', which has no warm-up; set the schedule to "
            "'warmup' or 'cosine'"
        ),
    ),
    (
        'kind',
        'prodigy',
        (
            "config.learning_rate is 0.0003 but the optimizer's kind is 'prodigy', which finds the learning rate and "
            'multiplies it '
            'by this; set it to 1.0 (at least 0.01)'
        ),
    ),
    ('unet', 3, 'config.unet must be a dict, got 3 (int)'),
    (
        'scheduler.x',
        object,
        ("config.scheduler.x must be a number, string, bool or None, or tuples or dicts of them, got <class 'object'>"),
    ),
]


@pytest.mark.parametrize(('name', 'value', 'sentence'), PRETRAIN)
def test_resolve_checks_pretraining_settings(name, value, sentence):
    with pytest.raises(ConfigError) as error:
        resolve(PretrainConfig, nest(name, value, UNET))
    assert str(error.value) == sentence


def test_super_resolution_takes_its_text_encoder_from_the_base_stage():
    with pytest.raises(ConfigError) as error:
        resolve(PretrainConfig, {**UNET, 'stage': 'super_resolution', 'base': 'runs/b'})
    assert str(error.value) == "config.text_encoder must stay empty: it comes from config.base, 'runs/b'"
