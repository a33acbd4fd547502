"""The recipes of published base models: what the paper and the models' makers say."""

import pytest

from dreambooth_jax.config import DreamBoothConfig, resolve, to_config_dict
from dreambooth_jax.config.presets import PRESETS


def settings(name):
    config = to_config_dict(DreamBoothConfig())
    config.data.instance_dir, config.data.instance_prompt, config.data.class_prompt = 'photos', 'a sks dog', 'a dog'
    PRESETS[name](config)
    return resolve(DreamBoothConfig, config)


@pytest.mark.parametrize(
    ('name', 'resolution', 'learning_rate', 'steps'),
    [
        ('stable-diffusion-v1-5', 512, 5e-6, 1000),
        ('stable-diffusion-2-1', 768, 5e-6, 1000),
        ('sdxl', 1024, 1e-4, 500),
        ('deepfloyd-if', None, 1e-7, 1000),
        ('sd3.5-medium', 512, 4e-4, 500),
        ('flux1-dev', 512, 1e-4, 500),
        ('flux2-klein', 512, 1e-4, 500),
        ('z-image', 1024, 1e-4, 500),
    ],
)
def test_a_recipe_is_that_of_its_source(name, resolution, learning_rate, steps):
    config = settings(name)
    assert (config.data.resolution, config.base.learning_rate, config.base.steps) == (resolution, learning_rate, steps)
    assert '/' in config.model and config.prior.weight == 1.0


def test_every_recipe_is_one_of_these():
    assert PRESETS.keys() == {
        'stable-diffusion-v1-5',
        'stable-diffusion-2-1',
        'sdxl',
        'deepfloyd-if',
        'sd3.5-medium',
        'flux1-dev',
        'flux2-klein',
        'z-image',
    }
