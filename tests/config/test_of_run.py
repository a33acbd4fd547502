"""The settings of a run are a settings file: they say what the run was begun with."""

import json

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_dict
from dreambooth_jax.config.of_run import get_config, settings


def config(**changed):
    data = {'instance_dir': 'photos', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    return resolve(DreamBoothConfig, {'data': data, **changed})


def test_the_settings_come_back(tmp_path):
    begun = config(seed=3, samples={'prompts': ['a', 'b']})
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(begun)))
    assert settings(tmp_path) == begun == resolve(DreamBoothConfig, get_config(str(tmp_path)))


def test_former_names_are_read(tmp_path):
    written = to_dict(config())
    written['base']['accumulation'] = written['base'].pop('gradient_accumulation_steps')
    (tmp_path / 'config.json').write_text(json.dumps(written))
    assert settings(tmp_path) == config()


@pytest.mark.parametrize(
    ('content', 'told'),
    [(None, 'is not there, so'), ('{', 'is damaged'), ('[]', 'is damaged'), ('{"x": 1}', 'config.x is not a known')],
)
def test_what_is_wrong_is_said_in_a_sentence(content, told, tmp_path):
    if content is not None:
        (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ConfigError, match=told):
        get_config(str(tmp_path))


def test_the_run_must_be_given():
    with pytest.raises(ConfigError, match="must be given a run's folder"):
        get_config()
