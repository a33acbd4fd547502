"""What a folder says of its run, whoever started it."""

import json
import os
import subprocess
import sys
import time

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.finetune import extension
from dreambooth_jax.training import best_checkpoint, control, requests, run
from dreambooth_jax.web import runs
from dreambooth_jax.web.runs import Runs, working_in
from tests.support.served import add_metrics, hold, write_run, write_samples


def state(folder, name='dog'):
    return Runs(folder).find(name)


def test_names_are_those_of_the_trainer(tmp_path):
    assert (runs.CONFIG, runs.EXTENDED, runs.BEST) == (run.CONFIG, extension.FILE, best_checkpoint.FILE)
    assert (control.FOLDER, control.KINDS, control.PAUSED) == (requests.FOLDER, requests.KINDS, requests.PAUSED)
    (tmp_path / 'base' / 'checkpoints' / '7').mkdir(parents=True)
    assert runs.checkpoints(tmp_path, 'base') == run.checkpoints(tmp_path, 'base') == [7]


def test_a_run_that_has_not_trained(tmp_path):
    write_run(tmp_path / 'dog')
    found = state(tmp_path)
    assert (found.state, found.doing, found.progress.step, found.progress.steps) == ('stopped', '', 0, 20)
    assert (found.model, found.prompt, found.error) == ('storybook', 'a sks dog', None)


def test_a_run_that_trains(tmp_path):
    folder = write_run(tmp_path / 'dog')
    hold(folder)
    os.utime(folder / '.lock')
    assert state(tmp_path).doing == 'generates class images: 0 of 4'
    (folder / 'prior').mkdir()
    for number in range(4):
        (folder / 'prior' / f'{number}.png').touch()
    assert state(tmp_path).doing == 'reads the model and compiles'
    add_metrics(folder, range(1, 6))
    os.utime(folder / 'metrics.jsonl', (time.time() + 5,) * 2)
    found = state(tmp_path)
    assert (found.state, found.doing) == ('running', 'trains the base stage')
    # 15 steps of one instance and one class example, four of which take a second
    assert (found.progress.step, found.progress.share, found.progress.seconds_left) == (5, 0.25, 7.5)
    assert found.progress.loss == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)


def test_the_time_of_the_whole_run_needs_a_measured_next_stage(tmp_path):
    def left(**changed):
        write_run(tmp_path / 'dog', super_resolution__steps=40, **changed)
        return state(tmp_path).progress

    hold(write_run(tmp_path / 'dog', 5, super_resolution__steps=40))
    found = left()
    assert (found.seconds_left, found.is_of_run, found.as_in) == (7.5, False, None)
    other = write_run(tmp_path / 'cat', 20, super_resolution__steps=9)
    add_metrics(other, [1, 2], 'super_resolution')  # 4 images a second as well; another number of steps does not matter
    found = left()
    assert (found.seconds_left, found.is_of_run, found.as_in) == (7.5 + 40 / 4, True, 'cat')
    assert not left(super_resolution__batch_size=2).is_of_run  # there a step takes another time
    assert not left(lora__rank=4).is_of_run
    (tmp_path / 'dog' / 'super_resolution' / 'checkpoints' / '40').mkdir(parents=True)  # trained before, and it stays
    assert (left().seconds_left, left().is_of_run) == (7.5, True)


def test_the_time_in_the_last_stage_is_that_of_the_run(tmp_path):
    folder = write_run(tmp_path / 'dog', 20, super_resolution__steps=40)
    hold(folder)
    add_metrics(folder, range(1, 11), 'super_resolution')
    found = state(tmp_path).progress
    assert (found.stage, found.seconds_left, found.is_of_run, found.as_in) == ('super_resolution', 7.5, True, None)


def test_a_run_that_waits(tmp_path):
    folder = write_run(tmp_path / 'dog', 5)
    hold(folder)
    (folder / 'control').mkdir()
    (folder / 'control' / 'pause').touch()
    assert (state(tmp_path).state, state(tmp_path).asked) == ('running', ['pause'])
    (folder / 'control' / 'paused').touch()
    assert (state(tmp_path).state, state(tmp_path).doing) == ('paused', 'waits')
    (folder / '.lock').unlink()
    assert (state(tmp_path).state, state(tmp_path).asked) == ('stopped', [])  # it was killed while it waited


@pytest.mark.parametrize(
    ('steps', 'changed', 'is_finished'),
    [
        (20, {}, True),
        (19, {}, False),
        (20, {'super_resolution__steps': 5}, False),
        (20, {'super_resolution__steps': 5, 'super_resolution_model': 'none'}, True),
    ],
)
def test_a_run_is_finished_when_every_stage_is(steps, changed, is_finished, tmp_path):
    write_run(tmp_path / 'dog', steps, finished=True, **changed)
    assert state(tmp_path).state == ('finished' if is_finished else 'stopped')


def test_a_run_without_its_export_is_not_finished(tmp_path):
    folder = write_run(tmp_path / 'dog', 20)
    assert state(tmp_path).state == 'stopped'
    write_run(folder, export=False)
    assert state(tmp_path).state == 'finished'


def test_an_extended_run_has_more_steps(tmp_path):
    folder = write_run(tmp_path / 'dog', 20, finished=True)
    (folder / 'extended.json').write_text('{"from": 20, "steps": 30}')
    assert (state(tmp_path).state, state(tmp_path).progress.steps) == ('stopped', 30)


def test_a_run_that_patience_has_ended_is_finished(tmp_path):
    folder = write_run(tmp_path / 'dog', 10, finished=True)
    (folder / 'best.json').write_text(json.dumps({'step': 5, 'enough': 10, 'candidates': []}))
    assert state(tmp_path).state == 'finished' and Runs(tmp_path).best('dog')['step'] == 5


def test_damaged_settings_are_told_and_cost_the_others_nothing(tmp_path):
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / 'config.json').write_text('{"data"')
    write_run(tmp_path / 'dog')
    found = {one.id: one.error for one in Runs(tmp_path).all()}
    assert found['dog'] is None and 'is damaged; restore it' in found['bad']
    with pytest.raises(ConfigError, match='is damaged'):
        Runs(tmp_path).settings('bad')


def test_what_is_no_run_of_train_is_left_out(tmp_path):
    (tmp_path / 'pretrained').mkdir()
    (tmp_path / 'pretrained' / 'config.json').write_text('{"unet": {}}')
    (tmp_path / '.hidden').mkdir()
    (tmp_path / '.hidden' / 'config.json').write_text('{"data": {}}')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()
    assert Runs(tmp_path).all() == []


@pytest.mark.parametrize('name', ['..', '.', '', '../dog', 'dog/..', '/etc', 'dog\0'])
def test_a_name_that_is_not_listed_leads_nowhere(name, tmp_path):
    write_run(tmp_path / 'runs' / 'dog')
    write_run(tmp_path / 'dog')
    assert Runs(tmp_path / 'runs').find(name) is None


def test_samples(tmp_path):
    folder = write_run(tmp_path / 'dog', 10)
    write_samples(folder, 5)
    (folder / 'samples' / 'base' / '.000020.png.part').touch()
    found = Runs(tmp_path).samples('dog')
    assert list(found) == ['base'] and list(found['base']) == [5, 10]


def test_a_process_that_was_killed_works_no_more(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    hold(tmp_path, process.pid)
    assert working_in(tmp_path).pid == process.pid
    process.kill()
    process.wait()
    assert working_in(tmp_path) is None


def test_another_process_of_the_same_number_is_not_taken_for_it(tmp_path):
    (tmp_path / '.lock').write_text(f'process {os.getpid()} on {os.uname().nodename} since 2020-01-01 00:00:00')
    assert working_in(tmp_path) is None


def test_a_process_of_another_machine_counts(tmp_path):
    hold(tmp_path, 1, 'elsewhere')
    assert working_in(tmp_path).host == 'elsewhere'


def test_two_hundred_runs_are_listed_at_once(tmp_path):
    for number in range(200):
        write_run(tmp_path / f'run-{number}', 20, finished=True)
        add_metrics(tmp_path / f'run-{number}', range(21, 200))
    found = Runs(tmp_path)
    assert len(found.all()) == 200
    fastest = min(_seconds(found.all) for _ in range(3))
    assert fastest < 0.3  # 0.03 s on an idle machine


def test_a_run_in_which_nobody_works_is_read_again_when_it_has_changed(tmp_path, monkeypatch):
    folder = write_run(tmp_path / 'dog')
    found = Runs(tmp_path)
    assert (found.find('dog').progress.step, found.find('dog').has_weights) == (0, False)
    add_metrics(folder, range(1, 6))
    assert found.find('dog').progress.step == 5
    for step in ('5', '6'):
        (folder / 'base' / 'checkpoints' / step).mkdir(parents=True)
        assert found.find('dog').has_weights
    (folder / 'config.json').write_text('{"data"')
    assert found.find('dog').error is not None
    write_run(tmp_path / 'dog', base__steps=6)
    assert found.find('dog').progress.steps == 6
    monkeypatch.setattr(found, '_read_anew', lambda name, path: pytest.fail('it has not changed'))
    assert [one.progress.steps for one in found.all()] == [6]
    monkeypatch.undo()
    hold(folder)
    assert found.find('dog').works
    (folder / '.lock').unlink()
    assert not found.find('dog').works


def _seconds(call):
    begun = time.process_time()
    call()
    return time.process_time() - begun
