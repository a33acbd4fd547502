"""More steps for a finished run: from where to where, what goes on after a kill, and every reason against it."""

import dataclasses
import json

import pytest

from dreambooth_jax.config import BaseConfig, ConfigError, DreamBoothConfig, EvaluationConfig, OptimizerConfig, to_dict
from dreambooth_jax.finetune.extension import Extension, extended

CONFIG = DreamBoothConfig(base=BaseConfig(steps=200))


def run(folder, newest, config=CONFIG):
    """A run's folder with a checkpoint of that step."""
    (folder / 'base' / 'checkpoints' / str(newest)).mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(to_dict(config)))
    return folder


def sentence(workdir, more, config=CONFIG):
    with pytest.raises(ConfigError) as error:
        extended(config, workdir, more)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_run_that_is_not_extended_has_the_steps_of_its_settings(tmp_path):
    assert extended(CONFIG, tmp_path / 'new', None) == (CONFIG, Extension())
    Extension().write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_gets_more_steps_and_keeps_them(tmp_path):
    config, extension = extended(CONFIG, run(tmp_path, 200), 100)
    assert config == dataclasses.replace(CONFIG, base=BaseConfig(steps=300)) and extension == Extension(200, 300)
    extension.write(tmp_path)
    run(tmp_path, 250, config)
    for more in (None, 100, 50):  # killed at step 250: any of the commands goes on
        assert extended(CONFIG, tmp_path, more) == (config, extension)
    run(tmp_path, 300, config)
    assert extended(CONFIG, tmp_path, None) == (config, extension)
    assert extended(CONFIG, tmp_path, 50)[1] == Extension(300, 350)


def test_more_steps_in_the_settings_than_by_the_extension_count(tmp_path):
    Extension(200, 300).write(run(tmp_path, 300))
    config = dataclasses.replace(CONFIG, base=BaseConfig(steps=500))
    assert extended(config, tmp_path, None)[0] == config


def test_a_run_that_patience_has_ended_is_finished(tmp_path):
    config = dataclasses.replace(CONFIG, evaluation=EvaluationConfig(every=50, patience=1))
    run(tmp_path, 150, config)
    assert sentence(tmp_path, 100, config) == (
        f'--extend=100 goes on with a finished run, but {tmp_path} has checkpoint 150 of 200 steps; start it without '
        f'--extend until it ends'
    )
    (tmp_path / 'best.json').write_text(json.dumps({'step': 100, 'enough': 150, 'candidates': []}))
    wanted, extension = extended(config, tmp_path, 100)
    assert (wanted.base.steps, extension) == (250, Extension(150, 250))
    extension.write(tmp_path)
    assert extended(config, tmp_path, 100)[1] == extension  # killed before its first evaluation
    run(tmp_path, 200, config)
    (tmp_path / 'best.json').write_text(json.dumps({'step': 100, 'enough': 200, 'candidates': []}))
    assert extended(config, tmp_path, 100)[1] == Extension(200, 300)


def test_what_cannot_be_extended_is_one_sentence(tmp_path):
    assert sentence(tmp_path, 50) == (
        f'--extend=50 goes on with a finished run, but {tmp_path} has no checkpoint of the base stage; train it first'
    )
    run(tmp_path, 200)
    cosine = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(schedule='cosine'))
    assert sentence(tmp_path, 50, cosine) == (
        "--extend=50 goes on with a finished run, but config.optimizer.schedule is 'cosine', which has brought the "
        'learning rate to 0; start another run with --workdir and more config.base.steps'
    )
    for name in ('config.json', 'extended.json'):
        (tmp_path / name).write_text('{')
        assert sentence(tmp_path, 50).startswith(f'{tmp_path / name} is ')
        assert sentence(tmp_path, 50).endswith('damaged; restore it, or start another run with --workdir')
