"""An experiment keeps what it measured, measures again when settings change, and writes only between the marks."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.evaluation import experiment
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training.loop import TrainingError
from tests.support import tiny_pipelines

EXPERIMENTS = Path(__file__).parents[2] / 'experiments'


def test_a_part_is_measured_once_for_the_same_settings(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {'share': 0.5 * len(calls)}, {'a dog': np.full((2, 4, 4, 3), len(calls), np.uint8)}

    first, _ = experiment.kept(tmp_path, 'base', {'levels': (0, 50)}, make)
    again, images = experiment.kept(tmp_path, 'base', {'levels': (0, 50)}, make)
    assert len(calls) == 1 and first == again and first['share'] == 0.5
    assert set(first['measured']) == {'seconds', 'hardware', 'date'}
    np.testing.assert_array_equal(images['a dog'], np.ones((2, 4, 4, 3)))
    other, images = experiment.kept(tmp_path, 'base', {'levels': (0, 60)}, make)
    assert len(calls) == 2 and other['share'] == 1 and images['a dog'].max() == 2


def test_an_interrupted_measurement_leaves_no_part(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.kept(tmp_path, 'base', {}, stopped)
    numbers, _ = experiment.kept(tmp_path, 'base', {}, lambda: ({'share': 1}, {}))
    assert numbers['share'] == 1


def test_fingerprint_changes_with_value_name_and_shape():
    weights = {'a': np.zeros((2, 3)), 'b': np.ones(2)}
    changed = [
        {**weights, 'b': np.full(2, 1.5)},
        {'a': weights['a'], 'c': weights['b']},
        {**weights, 'a': np.zeros((3, 2))},
    ]
    found = {experiment.fingerprint(params) for params in (weights, *changed)}
    assert len(found) == 4
    assert experiment.fingerprint(dict(reversed(weights.items()))) == experiment.fingerprint(weights)


def score(gallery):
    gallery |= {'a dog': np.arange(12).reshape(3, 4), 'a cat': np.zeros((3, 4))}
    return {'share': 0.5}


def test_a_score_gives_its_numbers_and_the_images_that_are_asked_for():
    numbers, images = experiment.scored(score, ['a dog'], 2)
    assert numbers == {'share': 0.5} and images.keys() == {'a dog'}
    np.testing.assert_array_equal(images['a dog'], np.arange(8).reshape(2, 4))
    _, images = experiment.scored(score)
    assert {label: len(shown) for label, shown in images.items()} == {'a dog': 3, 'a cat': 3}


def test_models_are_measured_once_for_their_weights_and_written_in_order(tmp_path, capsys):
    calls = []

    def make():
        calls.append(1)
        return {'share': len(calls)}, {'a dog': np.zeros((1, 2))}

    def measurements(**options):
        return experiment.Measurements(tmp_path / 'work', 'classifier', {'seed': 3, **options})

    first = measurements()
    for title, name, weights in (('before', 'base', 'a'), ('after', 'tuned', 'b')):
        first.add(title, name, weights, make)
    assert capsys.readouterr().out == 'measuring: before\nmeasuring: after\n' and len(calls) == 2
    assert list(first.results) == list(first.images) == ['before', 'after']
    found = first.write(tmp_path / 'out', model='storybook')
    assert list(found) == ['model', 'measured', 'seed', 'results'] and found['results']['after']['share'] == 2
    assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == found
    again = measurements()
    again.add('before', 'base', 'a', make)
    again.add('after', 'tuned', 'c', make)  # other weights
    assert [numbers['share'] for numbers in again.results.values()] == [1, 3]
    other = measurements(steps=9)
    other.add('before', 'base', 'a', make)
    assert other.results['before']['share'] == 4


def test_a_report_has_the_place_what_was_expected_and_the_numbers(tmp_path):
    (tmp_path / 'expected.json').write_text(json.dumps([{'number': 'right', 'at': ['a'], 'at_least': 0.9}]))
    experiment.report(tmp_path, tmp_path / 'expected.json', {'measured': 'Measured here.', 'a': 0.95}, 'a table')
    lines = (tmp_path / 'README.md').read_text().splitlines()
    assert lines[1] == 'Measured here.' and lines[-2] == 'a table'
    assert '| right | at least 90 % | 95 % | yes |' in lines


def test_a_cascade_gets_the_weights_of_a_run_and_is_known_by_them(tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'model').symlink_to(tiny_pipelines.folder())
    (run / 'config.json').write_text('{}')
    before = Cascade(tiny_pipelines.base(1), tiny_pipelines.super_resolution())
    after = experiment.with_base_of(before, run)
    assert after.super_resolution is before.super_resolution and after.programs is before.programs
    marks = [experiment.fingerprint_of(stage) for stage in (before.base, after.base, tiny_pipelines.base())]
    assert marks[1] == marks[2] != marks[0]
    assert experiment.fingerprint_of(after.base, after.super_resolution) != marks[1]


@pytest.mark.parametrize('path', sorted(EXPERIMENTS.glob('*/run.py')), ids=lambda path: path.parent.name)
def test_a_flag_for_the_sampler_lists_all_that_there_are(path):
    defined = re.findall(r"DEFINE_enum\(\s*'sampler',([^)]*)\)", path.read_text('utf-8'))
    assert all(', list(SAMPLERS' in arguments for arguments in defined)


def test_only_the_section_between_the_marks_is_replaced(tmp_path):
    readme = tmp_path / 'README.md'
    readme.write_text('# Title\n<!-- results -->\nold\n<!-- end of results -->\nwhat falls short\n')
    experiment.write_section(readme, 'new')
    expected = '# Title\n<!-- results -->\nnew\n<!-- end of results -->\nwhat falls short\n'
    assert readme.read_text() == expected
    experiment.write_section(readme, 'new')
    assert readme.read_text() == expected


@pytest.mark.parametrize('text', ['no marks', '<!-- results --> no end', '<!-- end of results --> <!-- results -->'])
def test_a_readme_without_its_marks_is_left_alone(tmp_path, text):
    readme = tmp_path / 'README.md'
    readme.write_text(text)
    with pytest.raises(ConfigError, match='README.md must hold'):
        experiment.write_section(readme, 'new')
    assert readme.read_text() == text


@pytest.fixture
def config(tmp_path):
    """A settings file; called with a number of steps, it writes them into it."""

    def write(steps=3):
        (tmp_path / 'dog.py').write_text(
            'from dreambooth_jax.config import DreamBoothConfig, to_config_dict\n'
            'def get_config(steps="1"):\n'
            '    config = to_config_dict(DreamBoothConfig())\n'
            f'    config.base.steps = {steps} + int(steps)\n'
            '    return config\n',
            'utf-8',
        )
        return tmp_path / 'dog.py'

    return write


def test_a_finished_training_is_not_started_again(tmp_path, monkeypatch, config):
    started = []

    def run(command, check):
        started.append(command)
        (tmp_path / 'run' / 'model').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'run' / 'model' / 'model_index.json').write_text('{}')
        return experiment.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(experiment.subprocess, 'run', run)
    for weight in (1, 1, 0):
        experiment.train_once(tmp_path / 'run', config(), {'prior.weight': weight}, weights='a')
    assert [command[-1] for command in started] == ['--config.prior.weight=1', '--config.prior.weight=0']
    with pytest.raises(TrainingError, match='other weights'):
        experiment.train_once(tmp_path / 'run', config(), {'prior.weight': 0}, weights='b')
    assert len(started) == 2 and started[0][:3] == [sys.executable, '-m', 'dreambooth_jax.train']


def test_a_training_runs_again_if_its_settings_file_says_something_else(tmp_path, monkeypatch, config):
    started = []

    def run(command, check):
        started.append(command[-2])
        (tmp_path / 'run' / 'model').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'run' / 'model' / 'model_index.json').write_text('{}')
        return experiment.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(experiment.subprocess, 'run', run)
    for steps, variant in ((3, ''), (3, ''), (4, ''), (4, ':2'), (4, ':2')):
        experiment.train_once(tmp_path / 'run', f'{config(steps)}{variant}', {}, weights='a')
    file = f'--config={tmp_path / "dog.py"}'
    assert started == [file, file, f'{file}:2']


@pytest.mark.parametrize('code', [0, 1])
def test_a_training_that_leaves_no_model_is_an_error(tmp_path, monkeypatch, config, code):
    ended = experiment.subprocess.CompletedProcess([], code)
    monkeypatch.setattr(experiment.subprocess, 'run', lambda command, check: ended)
    with pytest.raises(TrainingError, match=f'exit code {code}'):
        experiment.train_once(tmp_path / 'run', config(), {}, weights='a')
    assert json.loads((tmp_path / 'run' / 'experiment.json').read_text())['finished'] is None


def test_images_are_generated_as_the_config_generates_its_samples(tmp_path):
    config = tmp_path / 'some.py'
    config.write_text(
        'from dreambooth_jax.config import DreamBoothConfig, to_config_dict\ndef get_config():\n    config = '
        'to_config_dict(DreamBoothConfig())\n    config.samples.guidance_scale = 3.5\n    return config\n',
        'utf-8',
    )
    assert experiment.sampling_of(config) == {'steps': 25, 'guidance_scale': 3.5, 'sampler': 'dpmsolver++'}


def test_other_models_are_given_the_reference_images_as_files(tmp_path):
    for model in ('storybook', 'storybook-flow'):
        assert experiment.of_model(model, 'dog', tmp_path / 'reference') == {'model': model}
    assert not (tmp_path / 'reference').exists()
    settings = experiment.of_model('some/model', 'dog', tmp_path / 'reference')
    assert settings == {'model': 'some/model', 'data.instance_dir': str(tmp_path / 'reference')}
    assert 4 <= len(list((tmp_path / 'reference').glob('*.png'))) <= 6


def test_tables_and_percentages_read_as_markdown():
    assert experiment.table(['a', 'b'], [['x', 1]]) == '| a | b |\n| --- | ---: |\n| x | 1 |'
    assert experiment.table(['a'], [['(x|y)']]).endswith('\n| (x\\|y) |')
    assert experiment.percent(0.256) == '26 %' and experiment.percent(None) == '-'


def test_words_of_a_flag_are_settings():
    assert experiment.settings_of(['base.steps=3', "a.b='c=d'"]) == {'base.steps': '3', 'a.b': "'c=d'"}
    with pytest.raises(ConfigError, match='^--set=base.steps must look like base.steps=300$'):
        experiment.settings_of(['base.steps'])


def test_expectations_stand_beside_what_was_measured(tmp_path):
    aims = [
        {'number': 'right', 'at': ['a', 0], 'at_least': 0.9},
        {'number': 'wrong', 'at': ['b'], 'at_most': 0.2},
        {'number': 'better', 'at': ['a', 0], 'more_than': ['b']},
        {'number': 'other flags', 'at': ['c', 1], 'at_least': 0.5},
        {'number': 'near', 'at': ['b'], 'within': 0.6, 'of': ['a', 0]},
        {'number': 'far', 'at': ['b'], 'within': 0.5, 'of': ['a', 0]},
        {'number': 'near what is not there', 'at': ['b'], 'within': 0.5, 'of': ['c']},
        {'number': 'this model', 'model': 'mine', 'at': ['b'], 'at_least': 0.2},
        {'number': 'another model', 'model': 'theirs', 'at': ['b'], 'at_least': 0.2},
    ]
    (tmp_path / 'expected.json').write_text(json.dumps(aims))
    assert experiment.expectations(tmp_path / 'expected.json', {'model': 'mine', 'a': [0.8], 'b': 0.25}).splitlines()[
        2:
    ] == [
        '| right | at least 90 % | 80 % | **no** |',
        '| wrong | at most 20 % | 25 % | **no** |',
        '| better | more than 25 % | 80 % | yes |',
        '| other flags | at least 50 % | - | - |',
        '| near | at least 20 % | 25 % | yes |',
        '| far | at least 30 % | 25 % | **no** |',
        '| near what is not there | at least - | 25 % | - |',
        '| this model | at least 20 % | 25 % | yes |',
    ]


@pytest.mark.parametrize('folder', sorted(EXPERIMENTS.glob('*/expected.json')), ids=lambda path: path.parent.name)
def test_expectations_name_numbers_that_the_experiment_writes(folder):
    results = folder.with_name('results.json')
    if not results.is_file():
        pytest.skip(f'{results.parent.name} has not been measured')
    lines = experiment.expectations(folder, json.loads(results.read_text())).splitlines()[2:]
    assert lines and not [line for line in lines if line.endswith('| - |')]
