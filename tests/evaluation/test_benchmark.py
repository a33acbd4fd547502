"""A benchmark scores many runs: what one depends on, what is kept, what is left out, and the means over subjects."""

import dataclasses
import json

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.evaluation import benchmark, run_scores
from dreambooth_jax.evaluation.protocol import Asked, Subject
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.system import lock
from dreambooth_jax.weights.errors import WeightsError

OPTIONS = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim')
DINO = {'dino': 'storybook-dino'}


def photo(number):
    return np.full((4, 4, 3), number, np.uint8)


def subject(number, *, noun='dog', photos=None):
    kinds = ('context', 'accessory') if noun == 'dog' else ('context', 'property')
    return Subject(
        name=f'sks {noun}',
        instance_prompt=f'a sks {noun}',
        class_prompt=f'a {noun}',
        photos=tuple(photos or (photo(number), photo(number + 1))),
        prompts=tuple(Asked(kind, f'a sks {noun} {kind}', f'a {noun} {kind}') for kind in kinds),
    )


class Runs:
    """Runs that are known by a number each; `broken` ones have a sentence, or an error that is a bug."""

    def __init__(self, subjects, *, chosen=None, broken=None):
        self.subjects, self.chosen, self.broken = subjects, chosen or {}, broken or {}
        self.weights = {}

    def read(self, run):
        return benchmark.Known(self.subjects[run.name], self.chosen.get(run.name, DINO))

    def open(self, run, subjects):
        if error := self.broken.get(run.name):
            raise error
        models = {'run': self.weights.get(run.name, run.name), 'base': 'model'}
        return run_scores.Opened(models=models, subjects=subjects, options=OPTIONS, origins=['base: checkpoint 2'])

    def explained(self, error):
        return str(error) if isinstance(error, ConfigError | WeightsError | OSError) else None


@pytest.fixture
def scored(monkeypatch):
    """The runs that were really scored, each with its look-alikes; the scores are made up."""
    calls = {}

    def score(opened, measures, folders):
        (one,) = opened.subjects
        name = folders['run'].name
        calls.setdefault(name, []).append(sorted(int(image[0, 0, 0]) for image in one.look_alikes))
        assert folders['base'].name == 'base' and folders['base'].parent == folders['run'].parent
        return made_up(one.name, live=one.is_live, value=float(one.photos[0][0, 0, 0]))

    monkeypatch.setattr(benchmark, 'score', score)
    monkeypatch.setattr(benchmark, 'fingerprint', lambda model, options: f'{model} {options}')
    return calls


def told(value, **kinds):
    return {
        'value': value,
        'low': None,
        'high': None,
        'images': 2,
        'kinds': {k: {'value': v} for k, v in kinds.items()},
    }


def made_up(name, *, live=True, value=0.5, ceiling=0.9):
    """Scores in the form of run_scores.score."""
    kinds = {'context': value + 1, ('accessory' if live else 'property'): value - 1}
    models = {title: {name: {'dino': told(value / part, **kinds)}} for title, part in (('run', 1), ('base', 2))}
    return {'models': models, 'ceiling': {'dino': {name: {'others': ceiling}}}, 'subjects': {name: {'live': live}}}


def measures(**changed):
    return run_scores.Measures(
        **{'evaluators': (), 'used': {'dino': 'f00'}, 'num_images': 4, 'class_images': 8, **changed}
    )


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text('{}')
    return benchmark.run_folders(tmp_path)


def of_all(tmp_path, runs, names, loaded=None):
    return benchmark.score_all(
        [tmp_path / name for name in names], tmp_path / 'w', runs, lambda _: loaded or measures()
    )


def test_runs_are_the_folders_with_settings(tmp_path):
    (tmp_path / 'benchmark').mkdir()
    assert [path.name for path in folders(tmp_path, 'dog', 'cat')] == ['cat', 'dog']


def test_a_folder_without_runs_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError) as error:
        benchmark.run_folders(tmp_path)
    assert str(error.value) == (
        f"--benchmark is '{tmp_path}' but no folder in it is a run's (with config.json); give the folder that "
        f'holds the --workdir of every run'
    )


def test_all_other_subjects_photos_are_look_alikes_but_those_that_are_its_own_too(tmp_path, scored):
    subjects = {
        'a': [subject(10)],
        'b': [subject(20)],
        'again': [subject(0, photos=(photo(10), photo(30), photo(20)))],
    }
    of_all(tmp_path, Runs(subjects), subjects)
    assert scored == {'a': [[20, 21, 30]], 'b': [[10, 11, 30]], 'again': [[11, 21]]}


def test_a_finished_run_is_not_scored_again_until_something_changes_that_it_depends_on(tmp_path, scored):
    subjects = {'a': [subject(10)], 'b': [subject(20)]}
    runs = Runs(subjects)
    found = of_all(tmp_path, runs, subjects)
    assert of_all(tmp_path, runs, subjects) == found and [len(scored[name]) for name in 'ab'] == [1, 1]
    runs.weights['a'] = 'trained longer'
    of_all(tmp_path, runs, subjects)
    assert [len(scored[name]) for name in 'ab'] == [2, 1]
    for changed in ({'used': {'dino': 'f11'}}, {'num_images': 2}, {'class_images': 9}, {'evaluators': [object()]}):
        before = len(scored['b'])
        of_all(tmp_path, runs, subjects, measures(**changed))
        assert len(scored['b']) == before + 1, changed
    # Another run's photos are look-alikes of this one, but its masks matter to itself alone.
    before = len(scored['b'])
    runs.subjects['a'] = [subject(15)]
    of_all(tmp_path, runs, subjects)
    runs.subjects['a'] = [dataclasses.replace(subject(15), masks=(None, np.zeros((4, 4), np.uint8)))]
    of_all(tmp_path, runs, subjects)
    assert len(scored['b']) == before + 1 and scored['a'][-1] == scored['a'][-2] == [20, 21]


@pytest.mark.parametrize('left', ['', '{"key": "x"', '[]', '{"key": 3}'])
def test_what_a_kill_or_a_person_left_in_a_runs_file_is_measured_again(left, tmp_path, scored):
    subjects = {'a': [subject(10)]}
    found = of_all(tmp_path, Runs(subjects), subjects)
    (tmp_path / 'w' / 'a.json').write_text(left)
    assert of_all(tmp_path, Runs(subjects), subjects) == found and len(scored['a']) == 2


def test_a_run_that_cannot_be_scored_is_left_out_and_named(tmp_path, scored, caplog):
    subjects = {'a': [subject(10)], 'half': [subject(20)], 'several': [subject(30), subject(40)], 'b': [subject(50)]}
    found = of_all(tmp_path, Runs(subjects, broken={'half': WeightsError('half a file')}), subjects)
    several = f'{tmp_path}/several has 2 subjects but a benchmark compares runs of one; score it with --model'
    assert list(found['subjects']) == ['a', 'b'] and found['missing'] == {'several': several, 'half': 'half a file'}
    assert [record.getMessage() for record in caplog.records] == [
        f'several is left out: {several}',
        'half is left out: half a file',
    ]
    # The half run's photos are another subject's all the same: nothing changes for others when it is repaired.
    assert scored['a'] == [[20, 21, 50, 51]]
    assert found['means']['run']['dino']['subjects'] == 2


def test_bugs_and_a_full_disk_are_not_left_out(tmp_path, scored):
    subjects = {'a': [subject(10)], 'b': [subject(20)]}
    with pytest.raises(ZeroDivisionError):
        of_all(tmp_path, Runs(subjects, broken={'a': ZeroDivisionError()}), subjects)
    with pytest.raises(OSError, match='No space'):
        of_all(tmp_path, Runs(subjects, broken={'a': OSError(28, 'No space left on device')}), subjects)


def test_it_is_an_error_only_if_no_run_could_be_scored(tmp_path, scored):
    subjects = {'a': [subject(10)], 'b': [subject(20)]}
    broken = dict.fromkeys(subjects, ConfigError('no'))
    with pytest.raises(ConfigError) as error:
        of_all(tmp_path, Runs(subjects, broken=broken), subjects)
    assert str(error.value) == f'none of the 2 runs in {tmp_path} could be scored'


def test_means_of_what_was_measured_differently_are_refused(tmp_path, scored):
    subjects = {'a': [subject(10)], 'b': [subject(20)]}
    with pytest.raises(ConfigError) as error:
        of_all(tmp_path, Runs(subjects, chosen={'b': {'dino': 'facebook/dino-vits16'}}), subjects)
    assert scored == {} and str(error.value) == (
        'a would be measured with storybook-dino and b with facebook/dino-vits16, so that no mean of both says '
        'anything; give --metrics, --dino and --clip for all'
    )


def test_one_process_at_a_time_works_on_a_benchmark(tmp_path, scored, monkeypatch):
    subjects = {'a': [subject(10)]}
    runs, seen = Runs(subjects), []
    read = runs.read
    monkeypatch.setattr(runs, 'read', lambda run: seen.append((tmp_path / 'w' / lock.FILE).exists()) or read(run))
    of_all(tmp_path, runs, subjects)
    assert seen == [True] and not (tmp_path / 'w' / lock.FILE).exists()


def test_means_are_over_subjects_of_means_over_prompts():
    found = {
        'dog': made_up('sks dog', value=0.2, ceiling=0.8),
        'cat': made_up('sks cat', value=0.4, ceiling=None),
        'vase': made_up('sks vase', live=False, value=0.9, ceiling=0.6),
    }
    means = benchmark.means(found)
    dino = means['run']['dino']
    assert dino['value'] == pytest.approx(0.5) and dino['subjects'] == 3
    assert means['base']['dino']['value'] == pytest.approx(0.25) and means['ceiling']['dino'] == pytest.approx(0.7)
    assert (dino['live']['value'], dino['live']['subjects']) == (pytest.approx(0.3), 2)
    assert (dino['objects']['value'], dino['objects']['low']) == (0.9, None)
    values = {kind: (part['value'], part['subjects']) for kind, part in dino['kinds'].items()}
    assert values == {
        'context': (pytest.approx(1.5), 3),
        'accessory': (pytest.approx(-0.7), 2),
        'property': (pytest.approx(-0.1), 1),
    }
    # The interval is that of the bootstrap over subjects.
    drawn = np.random.default_rng(0).integers(0, 3, (1000, 3))
    low, high = np.quantile(np.array([0.2, 0.4, 0.9])[drawn].mean(axis=1), [0.025, 0.975])
    assert (dino['low'], dino['high']) == (pytest.approx(low), pytest.approx(high))
    json.dumps(means)
