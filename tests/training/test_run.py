"""A run's folder goes on under the settings that it was begun with."""

import dataclasses
import json

import pytest

from dreambooth_jax.config import DataConfig, DreamBoothConfig, SettingsError, to_dict
from dreambooth_jax.pretrain_config import PretrainConfig
from dreambooth_jax.training import run


def changed(config, path, value):
    """A copy of frozen settings with one of them changed."""
    first, _, rest = path.partition('.')
    return dataclasses.replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


CONFIG = DreamBoothConfig()


def test_settings_are_written_down(tmp_path):
    folder = tmp_path / 'runs' / 'dog'
    run.begin(CONFIG, folder)
    assert json.loads((folder / 'config.json').read_text()) == json.loads(json.dumps(to_dict(CONFIG)))
    assert [path.name for path in folder.iterdir()] == ['config.json']


def test_run_goes_on_with_the_same_settings(tmp_path):
    run.begin(CONFIG, tmp_path)
    run.begin(CONFIG, tmp_path)


@pytest.mark.parametrize(
    'path, value', [('base.learning_rate', 1.0), ('prior.weight', 0.0), ('seed', 3), ('data.subject', 'dog')]
)
def test_setting_that_changes_what_is_learned_is_refused_with_both_values(path, value, tmp_path):
    run.begin(CONFIG, tmp_path)
    before = (tmp_path / 'config.json').read_text()
    with pytest.raises(SettingsError) as caught:
        run.begin(changed(CONFIG, path, value), tmp_path)
    old = CONFIG
    for name in path.split('.'):
        old = getattr(old, name)
    assert f'config.{path} is {value!r} but {tmp_path} was begun with {old!r}' in str(caught.value)
    assert (tmp_path / 'config.json').read_text() == before


@pytest.mark.parametrize('path, value', [('base.steps', 7), ('checkpoint.every', 7), ('parallel.mode', 'fsdp')])
def test_setting_that_only_says_how_long_how_often_or_where_may_change(path, value, tmp_path):
    run.begin(CONFIG, tmp_path)
    run.begin(changed(CONFIG, path, value), tmp_path)
    written = json.loads((tmp_path / 'config.json').read_text())
    group, name = path.split('.')
    assert written[group][name] == value


def test_settings_younger_than_the_run_have_their_defaults(tmp_path):
    data = DataConfig(subject='dog', instance_prompt='a sks dog', class_prompt='a dog')
    config = dataclasses.replace(CONFIG, data=data)
    run.begin(config, tmp_path)
    path = tmp_path / 'config.json'
    written = json.loads(path.read_text())
    del written['lora'], written['optimizer']['moments']
    path.write_text(json.dumps(written))
    run.begin(config, tmp_path)
    path.write_text(json.dumps(written))
    with pytest.raises(SettingsError, match="config.optimizer.moments is 'int8' but .* was begun with 'float32'"):
        run.begin(changed(config, 'optimizer.moments', 'int8'), tmp_path)


def test_name_that_begins_like_a_free_one_is_not_free(tmp_path):
    run.begin(CONFIG, tmp_path)
    with pytest.raises(SettingsError, match='prior.steps'):
        run.begin(changed(CONFIG, 'prior.steps', 7), tmp_path)


def test_folder_of_another_program_is_refused(tmp_path):
    run.begin(CONFIG, tmp_path)
    with pytest.raises(SettingsError, match='was begun with'):
        run.begin(PretrainConfig(), tmp_path)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / 'a_file').write_text('')
    with pytest.raises(SettingsError, match='--workdir=.*a_file/run cannot be written'):
        run.begin(CONFIG, tmp_path / 'a_file' / 'run')
