"""A comparison measures every way of a subject before the next one, and reports after each subject."""

import ast
import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.evaluation import comparison
from dreambooth_jax.evaluation.comparison import Comparison, Way
from dreambooth_jax.evaluation.subject_trials import Trial

EXPERIMENTS = Path(__file__).parents[2] / 'experiments'


class Trials:
    """In place of SubjectTrials: the share of a subject is given by the settings."""

    asked = []

    def __init__(self, trained, config, workdir, **settings):
        assert config.name == 'subject.py' and settings['num_images'] == 2

    def measure(self, subject, settings, called):
        self.asked.append((subject, dict(settings), called))
        scores = {
            'subject_named': settings.get('share', 1.0),
            'context_named': 0.5,
            'accessory_named': None,
            'class_images': {'taken_for_subject': 0.0, 'class_named': 1.0},
            'likeness': {'dino': 0.9, 'dino_masked': 0.8},
            'measured': {'seconds': 3, 'hardware': 'a toaster', 'date': '2026-11-30'},
        }
        images = {prompt: np.zeros((2, 16, 16, 3), np.uint8) for prompt in ('a sks', 'in the snow', 'a class')}
        return Trial(scores, images, images['a sks'][0], ())


@pytest.fixture
def values(monkeypatch):
    """Takes the flags that a Comparison defines, so that several may be made."""
    taken = flags.FlagValues()
    define = lambda given: lambda *args, **settings: given(*args, **settings, flag_values=taken)  # noqa: E731
    for name in ('DEFINE_enum', 'DEFINE_integer', 'DEFINE_list', 'DEFINE_string'):
        monkeypatch.setattr(comparison.flags, name, define(getattr(flags, name)))
    return taken


@pytest.fixture
def compare(tmp_path, monkeypatch, values):
    monkeypatch.setattr(comparison, 'SubjectTrials', Trials)
    Trials.asked.clear()

    def run(arguments, ways):
        made = Comparison(tmp_path, ['vase', 'can'])
        values(['run.py', *arguments])
        made.run(ways)

    aim = {'number': 'subject, all', 'at': ['means', 'all', 'subject named', 'mean'], 'at_least': 0.9}
    (tmp_path / 'expected.json').write_text(json.dumps([aim]))
    return run


def test_it_reports_means_over_subjects_and_images(compare, tmp_path):
    compare([], lambda subject: {'all': Way(), 'less': Way({'share': 0.2 if subject == 'can' else 0.4}, 'sks')})
    assert [asked[0] for asked in Trials.asked] == ['vase', 'vase', 'can', 'can'] and Trials.asked[1][2] == 'sks'
    found = json.loads((tmp_path / 'results.json').read_text())
    assert found['means']['less']['subject named']['mean'] == pytest.approx(0.3) and found['model'] == 'storybook-flow'
    text = (tmp_path / 'README.md').read_text()
    assert '| subject, all | at least 90 % | 100 % | yes |' in text and 'a toaster' in text
    assert '| less | 2 | 30 ± 10 % (20 % to 40 %) |' in text and '| can | less | 20 % | 50 % | 0 % |' in text
    assert (tmp_path / 'chart.png').is_file() and (tmp_path / 'grid.png').is_file()


def test_what_was_measured_before_it_was_stopped_is_reported(compare, tmp_path):
    def ways(subject):
        if subject == 'can':
            raise KeyboardInterrupt
        return {'all': Way()}

    with pytest.raises(KeyboardInterrupt):
        compare([], ways)
    assert list(json.loads((tmp_path / 'results.json').read_text())['results']['all']) == ['vase']


def test_an_unknown_subject_is_refused_before_anything_is_trained(compare):
    with pytest.raises(ConfigError, match="--subjects has 'dog4' but each must be one of backpack, "):
        compare(['--subjects=vase,dog4'], lambda subject: {'all': Way()})
    assert not Trials.asked


RUNS = {path.parent.name: path for path in sorted(EXPERIMENTS.glob('*/run.py'))}
COMPARISONS = [name for name, path in RUNS.items() if 'def ways_of' in path.read_text('utf-8')]


@pytest.fixture
def load(values, tmp_path):
    """Returns the module of an experiment, with its flags."""

    def made(name):
        spec = importlib.util.spec_from_file_location('experiment', RUNS[name])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        values(['run.py', f'--workdir={tmp_path}'])
        return module

    return made


def check_trains(subject, model, settings):
    """Resolves configs/subject.py with what differs, given as `train` reads it from the command line."""
    config = runpy.run_path(str(EXPERIMENTS.parent / 'configs' / 'subject.py'))['get_config'](f'{subject},{model}')
    for name, value in settings.items():
        *groups, last = name.split('.')
        group = config
        for each in groups:
            group = group[each]
        is_literal = isinstance(value, str) and value[:1] in tuple('0123456789(')
        group[last] = ast.literal_eval(value) if is_literal else str(value) if isinstance(value, Path) else value
    return resolve(DreamBoothConfig, config)


@pytest.mark.parametrize('name', COMPARISONS)
def test_the_experiments_compare_ways_that_train_knows(name, values, load):
    module, titles = load(name), set()
    for subject in values.subjects:
        ways = module.ways_of(subject)
        titles.add(tuple(ways))
        for way in ways.values():
            check_trains(subject, values.model, way.settings or {})
    assert len(titles) == 1 and len(titles.pop()) > 1


def test_textual_inversion_is_a_way_only_of_a_model_that_learns_words(values, load):
    module = load('subject_fidelity')
    assert list(module.ways_of('can')) == ['full', 'LoRA', 'untrained']
    values.model = 'storybook'
    assert 'textual inversion' in module.ways_of('can')


def test_a_pair_is_trained_in_one_run(values, load):
    module = load('two_subjects')
    for pair in module.PAIRS:
        alone = check_trains(pair[0], values.model, {})
        config = check_trains(pair[0], values.model, module.together(pair, alone))
        assert config.base.steps == 2 * alone.base.steps
        assert all(one.subject_captions == alone.data.subject_captions for one in config.subjects())
        assert [one.subject for one in config.subjects()] == list(pair) and set(pair) <= set(values.subjects)
        assert [one.instance_prompt for one in config.subjects()] == [f'a {words}' for words in module.words_of(pair)]


def test_every_application_is_asked_of_the_subject_by_its_words(load):
    for name, prompts in load('applications').APPLICATIONS.items():
        assert len(prompts) == 3 and all(prompt.count('{}') == 1 for prompt in prompts), name


def test_fine_marks_are_reported_of_the_subjects_chosen_on_and_of_the_others_apart(values, load, tmp_path):
    module = load('fine_marks')
    stages = (module.ORIGINAL, module.TUNED)

    def numbers(share, class_images=0.0):
        level = {'held_out': share, 'generated': share / 2, 'class_images': class_images, 'held_out_error': 12.5}
        measured = {'seconds': 3, 'hardware': 'a toaster', 'date': '2026-12-01'}
        return {'noise_levels': [level], 'real': {'with_mark': 1.0}, 'measured': measured}

    # The clock is one that the recipe was chosen on.
    shares = {'clock': (0.0, 0.9), 'can': (0.0, 0.6), 'dog6': (0.0, 0.8)}
    found = {subject: dict(zip(stages, map(numbers, of), strict=True)) for subject, of in shares.items()}
    black = {label: np.zeros((1, 16, 16, 3), np.uint8) for label in (*module.SHOWN, *module.ENLARGED)}
    module.report(tmp_path, found, {subject: dict.fromkeys(stages, black) for subject in found})
    text = (tmp_path / 'README.md').read_text()
    assert '| the ten that the recipe was chosen on | 1 | 100 % | 0 % | 90 % | 0 % | 45 % | 0 % | 12.5 | 12.5 |' in text
    assert '| the other twenty | 2 | 100 % | 0 % | 70 % | 0 % | 35 % | 0 % | 12.5 | 12.5 |' in text
    assert '| can | dots | 100 % | 0 % | 60 % |' in text
    assert '| fine mark in true images enlarged, twenty subjects, fine-tuned | at least 75 % | 70 % | **no** |' in text
