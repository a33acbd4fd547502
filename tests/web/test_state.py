"""Runs as they are shown, and what can be asked of them in each state."""

import dataclasses
import os

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.web import devices, jobs
from dreambooth_jax.web.photos import PhotoError
from dreambooth_jax.web.refused import Refused
from tests.support.served import desk, hold, image_bytes, write_run


@pytest.fixture
def served(tmp_path):
    return desk(tmp_path)


def new(served, name='rex', **settings):
    return served.new(name, served.wanted('dog', '', settings, None))


def end(served, code):
    """Ends the last job of the queue as if its process had ended."""
    served.queue._keep(dataclasses.replace(served.queue.all()[-1], state=jobs.ENDED, code=code))


def test_a_new_run_waits_for_its_turn(served, tmp_path):
    view = new(served)
    assert (view.state, view.place, view.doing, view.actions) == ('queued', 1, 'waits for its turn', ['stop'])
    assert f'--workdir={tmp_path / "rex"}' in view.command and '--config=' in view.command
    assert new(served, 'max').place == 2
    assert [one.id for one in served.all()] == ['max', 'rex']
    with pytest.raises(Refused, match='is not begun yet'):
        served.begun('rex')


def test_a_new_run_says_for_which_sets_of_accelerators_it_waits_and_which_one_it_has(tmp_path):
    served = desk(tmp_path, devices.parse(['0,1', '2']))
    assert new(served).doing == 'waits for accelerators 0,1 or 2' and served.view('rex').devices is None
    (job,) = served.queue.all()
    served.queue._keep(dataclasses.replace(job, state=jobs.RUNNING, on='2'))
    assert (served.view('rex').state, served.view('rex').devices) == ('starting', '2')
    end(served, 0)
    assert served.view('rex').devices is None


def test_photos_become_the_setting(served):
    served.photos.create('rex')
    served.photos.add('rex', image_bytes(), 'x')
    wanted = served.wanted('dog', 'sdxl', {}, 'rex')
    assert wanted.settings['data.instance_dir'] == str(served.photos.folder('rex'))
    with pytest.raises(PhotoError):
        served.wanted('dog', 'sdxl', {}, '../rex')
    with pytest.raises(ConfigError):
        served.wanted('dog', 'sdxl', {}, None)


@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', '/a', '.a', 'a\0', 'a b', 'x' * 65, '-a'])
def test_names_that_could_be_paths_are_refused(name, served, tmp_path):
    with pytest.raises(Refused, match='cannot name a run') as error:
        new(served, name)
    assert error.value.status == 422 and served.queue.all() == []


def test_a_name_is_taken_once(served, tmp_path):
    new(served)
    with pytest.raises(Refused, match='take another name'):
        new(served)
    write_run(tmp_path / 'dog')
    with pytest.raises(Refused, match='take another name'):
        new(served, 'dog')
    (tmp_path / 'file').touch()
    with pytest.raises(Refused, match='take another name'):
        new(served, 'file')


def test_a_run_that_failed_at_once_says_why_and_leaves_its_name(served, tmp_path):
    new(served)
    end(served, 1)
    (tmp_path / 'rex').mkdir()
    (tmp_path / 'rex' / 'train.log').write_text('--- a command\na photo is too small\n')
    view = served.view('rex')
    assert (view.state, view.message, view.actions) == ('failed', 'a photo is too small', ['start'])
    assert served.ask('rex', 'start').state == 'queued'
    assert served.queue.all()[0].arguments == served.queue.all()[1].arguments
    end(served, 1)
    assert new(served).state == 'queued'


@pytest.mark.parametrize('code', [0, None, -15, 143])
def test_a_run_that_was_stopped_has_not_failed(code, served, tmp_path):
    new(served)
    write_run(tmp_path / 'rex', 5)
    end(served, code)
    assert (served.view('rex').state, served.view('rex').message) == ('stopped', None)


def test_what_can_be_asked_of_a_run_that_was_started_by_hand(served, tmp_path):
    folder = write_run(tmp_path / 'dog', 5)
    assert served.view('dog').actions == ['start', 'export'] and served.view('dog').command is None
    hold(folder)
    assert served.view('dog').actions == ['pause', 'sample', 'save', 'stop', 'export']
    for what in ('sample', 'save', 'pause'):
        assert what in served.ask('dog', what).asked
    (folder / 'control' / 'paused').touch()
    view = served.view('dog')
    assert (view.state, view.actions) == ('paused', ['resume', 'sample', 'save', 'stop', 'export'])
    served.ask('dog', 'resume')
    assert not (folder / 'control' / 'pause').exists()
    (folder / 'control' / 'paused').unlink()
    served.ask('dog', 'stop')
    assert (folder / 'control' / 'stop').exists()
    with pytest.raises(Refused, match='is running, so it cannot start; it can be asked for: pause, sample'):
        served.ask('dog', 'start')


def test_a_pause_that_was_not_heard_yet_can_be_taken_back(served, tmp_path):
    hold(write_run(tmp_path / 'dog', 5))
    assert served.ask('dog', 'pause').actions[0] == 'resume'
    assert served.ask('dog', 'resume').asked == []


def test_a_stopped_run_is_started_by_its_own_settings(served, tmp_path):
    write_run(tmp_path / 'dog', 5)
    assert served.ask('dog', 'start').state == 'queued'
    assert served.queue.all()[0].arguments[0].endswith(f'of_run.py:{tmp_path / "dog"}')
    with pytest.raises(Refused):
        served.ask('dog', 'start')
    assert served.ask('dog', 'stop').state == 'stopped'


def test_only_a_finished_run_is_extended(served, tmp_path):
    write_run(tmp_path / 'dog', 5)
    with pytest.raises(Refused, match='only a finished one'):
        served.extend('dog', 7)
    write_run(tmp_path / 'rex', 20, finished=True)
    assert served.view('rex').actions == ['extend', 'export']
    served.extend('rex', 7)
    assert served.queue.all()[0].arguments[-1] == '--extend=7'


def test_export_and_download(served, tmp_path):
    write_run(tmp_path / 'new')
    with pytest.raises(Refused, match='nothing to export'):
        served.export('new', 'diffusers', 'float32', None)
    write_run(tmp_path / 'dog', 20, finished=True)
    job = served.export('dog', 'single_file', 'float16', 10)
    output = tmp_path / 'dog' / 'exports' / 'dog-single_file-10-float16.safetensors'
    assert job.program == 'export' and f'--output={output}' in job.arguments and job.devices == jobs.HOST
    with pytest.raises(Refused, match='is being exported already'):
        served.export('dog', 'single_file', 'float16', 10)
    assert list(served.downloads('dog')) == ['model']
    output.touch()
    served.queue._keep(dataclasses.replace(job, state=jobs.RUNNING, pid=os.getpid(), started=0.0))
    assert list(served.downloads('dog')) == ['model']  # it is being written
    end(served, 0)
    assert served.downloads('dog') == {'model': tmp_path / 'dog' / 'model', output.name: output}


def test_a_run_that_works_by_hand_holds_the_queue(served, tmp_path):
    folder = write_run(tmp_path / 'dog', 5)
    hold(folder)
    new(served)
    served.queue.look()
    assert served.view('rex').doing == 'waits for dog'
    (folder / '.lock').unlink()
    served.queue.stop(served.queue.all()[0])


def test_damaged_settings_can_be_looked_at_and_no_more(served, tmp_path):
    write_run(tmp_path / 'dog')
    (tmp_path / 'dog' / 'config.json').write_text('{"data": 1}')
    view = served.view('dog')
    assert view.error and view.actions == []
    with pytest.raises(Refused):
        served.ask('dog', 'start')


def test_what_is_not_there(served):
    with pytest.raises(Refused, match="there is no run 'x'") as error:
        served.view('x')
    assert error.value.status == 404
