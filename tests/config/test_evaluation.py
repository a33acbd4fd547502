"""The settings of the evaluation during training: what goes together."""

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from tests.config.test_dreambooth import DOG


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (
            {'patience': 3},
            'config.evaluation.patience is 3 but config.evaluation.every is 0, so nothing is evaluated; set every to a '
            'number of steps, or patience to None',
        ),
        (
            {'dino': 'my/dino'},
            "config.evaluation.dino is 'my/dino' but config.evaluation.every is 0, so nothing is evaluated; set every "
            'to a number of steps, or dino to None',
        ),
        ({'every': -1}, 'config.evaluation.every must be >= 0, got -1'),
        ({'every': 1, 'num_prompts': 26}, 'config.evaluation.num_prompts must be in [1, 25], got 26'),
        ({'every': 1, 'num_images': 0}, 'config.evaluation.num_images must be > 0, got 0'),
        ({'every': 1, 'patience': 0}, 'config.evaluation.patience must be > 0, got 0'),
        ({'every': 1, 'max_drift': -0.1}, 'config.evaluation.max_drift must be >= 0, got -0.1'),
        ({'every': 1, 'clip': ''}, "config.evaluation.clip is '', which is no path; give one"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(settings, sentence):
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, {**DOG, 'evaluation': settings})
    assert str(error.value).startswith(sentence) and '\n' not in str(error.value)


def test_it_is_off_unless_asked_for():
    assert resolve(DreamBoothConfig, DOG).evaluation.every == 0
