"""Requests for images as the server sees them: which models there are, which process answers, what they wait for."""

import dataclasses
import json
import shutil
import time

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation.request_queue import CANCELLED, DONE, RUNNING, RequestQueue
from dreambooth_jax.web import devices, jobs
from dreambooth_jax.web.generations import MOST_OPEN, Generations
from dreambooth_jax.web.refused import Refused
from tests.support.served import desk, hold, write_run


@pytest.fixture
def served(tmp_path):
    write_run(tmp_path / 'rex', 20)
    return desk(tmp_path)


def ask(served, run='rex', **fields):
    return served.generations.add(run, {'prompts': ['a sks dog'], **fields})


def job_of(served, run='rex'):
    return served.jobs_of(run, 'generate')[0]


def change(served, job, **changed):
    """Makes a job as if a process had done something."""
    served.queue._keep(dataclasses.replace(job, **changed))


def works(served, run='rex'):
    """As if the process that generates had started."""
    hold(served.folder / run / 'generated')  # this process, as if it answered
    change(served, job_of(served, run), state=jobs.RUNNING, started=time.time())


def ends(served, code, run='rex'):
    (served.folder / run / 'generated' / '.lock').unlink(missing_ok=True)
    change(served, job_of(served, run), state=jobs.ENDED, code=code, started=time.time())


def names(served, run='rex'):
    return [one.name for one in served.generations.choices(run)]


def test_the_models_of_a_run(served, tmp_path):
    assert names(served) == ['20', 'base_model']
    (tmp_path / 'rex' / 'base' / 'checkpoints' / '10').mkdir()
    (tmp_path / 'rex' / 'best.json').write_text('{"step": 10}')
    assert names(served) == ['10', '20', 'base_model']
    assert [one.is_best for one in served.generations.choices('rex')] == [True, False, False]
    write_run(tmp_path / 'done', 20, finished=True)
    assert names(served, 'done') == ['model', '20', 'base_model']
    write_run(tmp_path / 'new')
    assert names(served, 'new') == ['base_model']
    second = write_run(tmp_path / 'second')
    (second / 'super_resolution' / 'checkpoints' / '7').mkdir(parents=True)
    assert names(served, 'second') == ['7', 'base_model']


def test_without_models_the_first_one_is_taken_and_best_is_a_checkpoint(served, tmp_path):
    assert ask(served).request['models'] == ('20',)
    assert ask(served, models=['best', 'base_model']).request['models'] == ('20', 'base_model')
    with pytest.raises(Refused) as error:
        ask(served, models=['7'])
    assert (str(error.value), error.value.status) == ("the run rex has no model '7'; it has: 20, base_model", 422)
    write_run(tmp_path / 'new')
    with pytest.raises(ConfigError) as error:
        ask(served, 'new', models=['best'])
    assert str(error.value) == "models holds 'best' but may hold 'model', 'base_model' and steps of checkpoints"
    with pytest.raises(ConfigError):
        ask(served, num_images=99)
    assert len(served.generations.all('rex')) == 2


def test_damaged_settings_generate_nothing(served, tmp_path):
    (tmp_path / 'rex' / 'config.json').write_text('{"data": 1}')
    with pytest.raises(ConfigError):
        ask(served)


def test_one_process_answers_all_requests_of_a_run(served, tmp_path):
    ask(served)
    ask(served)
    assert served.generations.one('rex', 1).doing == 'waits for its turn'
    served.generations.tend()
    served.generations.tend()
    (job,) = served.queue.all()
    assert (job.program, job.arguments, job.devices) == (
        'generate',
        [f'--workdir={tmp_path / "rex"}'],
        jobs.ACCELERATORS,
    )
    works(served)
    assert [one.doing for one in served.generations.all('rex')] == ['starts', 'starts']
    requests = RequestQueue(tmp_path / 'rex')
    requests.write(requests.take(), doing='reads the model')
    first, second = reversed(served.generations.all('rex'))
    assert (first.state, first.doing) == ('running', 'reads the model')
    assert (second.state, second.doing) == ('queued', 'waits for request 1')
    served.generations.tend()
    assert len(served.queue.all()) == 1


def test_a_server_that_starts_again_finds_what_is_open(served, tmp_path):
    ask(served)
    again = desk(tmp_path)
    again.generations.tend()
    assert [job.program for job in again.queue.all()] == ['generate']
    third = desk(tmp_path)
    third.generations.tend()
    assert len(third.queue.all()) == 1


def test_a_process_that_was_started_by_hand_is_enough(served, tmp_path):
    ask(served)
    hold(tmp_path / 'rex' / 'generated')
    served.generations.tend()
    assert served.queue.all() == []


def test_it_waits_for_a_training_and_says_for_which(served, tmp_path):
    training = served.queue.add('dog', 'train', ['--workdir=dog'])
    change(served, training, state=jobs.RUNNING, pid=1, started=time.time())
    served.queue.add('cat', 'train', ['--workdir=cat'])
    ask(served)
    served.generations.tend()
    assert job_of(served).state == jobs.QUEUED
    told = 'waits for the accelerators until dog, which trains, has ended, and 1 more in the queue before it'
    assert served.generations.one('rex', 1).doing == told


def test_it_waits_for_a_training_that_was_started_by_hand(served, tmp_path):
    hold(write_run(tmp_path / 'dog', 5))
    ask(served)
    served.generations.tend()
    served.queue.look()
    told = 'waits for the accelerators until dog, which was started by hand, has ended'
    assert (job_of(served).state, served.generations.one('rex', 1).doing) == (jobs.QUEUED, told)


def test_it_waits_for_the_images_of_another_run(served, tmp_path):
    write_run(tmp_path / 'dog', 5)
    ask(served, 'dog')
    served.generations.tend()
    works(served, 'dog')
    ask(served)
    served.generations.tend()
    assert served.generations.one('rex', 1).doing == 'waits until images of dog are generated'


def test_it_gives_way_to_whoever_waits_for_the_accelerators(served, tmp_path):
    ask(served)
    served.generations.tend()
    works(served)
    requests = RequestQueue(tmp_path / 'rex')
    requests.write(requests.take(), state=DONE)
    served.generations.tend()
    assert not requests.gives_way
    served.queue.add('dog', 'export', ['--workdir=dog'], jobs.HOST)
    served.generations.tend()
    assert not requests.gives_way  # the CPU is another device
    job = served.queue.add('cat', 'train', ['--workdir=cat'])
    served.generations.tend()
    assert float((requests.folder / 'give_way').read_text()) == job.asked
    served.queue.stop(job)
    served.generations.tend()
    assert not requests.gives_way
    hold(write_run(tmp_path / 'dog', 5))  # a training that was started by hand
    served.generations.tend()
    assert requests.gives_way
    ask(served)
    assert requests.take() is None


def test_beside_an_idle_set_it_gives_way_to_the_training_of_its_own_run_alone(tmp_path):
    write_run(tmp_path / 'rex', 20)
    served, requests = desk(tmp_path, devices.parse(['0', '1'])), RequestQueue(tmp_path / 'rex')
    ask(served)
    served.generations.tend()
    works(served)
    change(served, job_of(served), on='0')
    requests.write(requests.take(), state=DONE)
    served.queue.add('cat', 'train', ['--workdir=cat'])
    served.generations.tend()
    assert not requests.gives_way  # the cat has a set of its own
    job = served.queue.add('rex', 'train', ['--workdir=rex'])
    served.generations.tend()
    assert float((requests.folder / 'give_way').read_text()) == job.asked


def test_the_training_of_its_own_run_by_hand_is_seen_too(served, tmp_path):
    ask(served)
    served.generations.tend()
    works(served)
    hold(tmp_path / 'rex')
    served.generations.tend()
    assert RequestQueue(tmp_path / 'rex').gives_way


@pytest.mark.parametrize('code', [0, None, 143, -15])
def test_what_a_process_leaves_open_is_taken_by_the_next(code, served, tmp_path):
    ask(served)
    served.generations.tend()
    works(served)
    RequestQueue(tmp_path / 'rex').take()
    ends(served, code)
    assert served.generations.one('rex', 1).state == 'queued'
    served.generations.tend()
    assert [job.state for job in served.jobs_of('rex', 'generate')] == [jobs.QUEUED, jobs.ENDED]


def test_a_request_whose_processes_are_killed_is_tried_three_times(served, tmp_path):
    ask(served)
    other = ask(served)
    for _ in range(3):
        served.generations.tend()
        assert job_of(served).state == jobs.QUEUED
        works(served)
        assert RequestQueue(tmp_path / 'rex').take().number == 1
        ends(served, -9)
    served.generations.tend()
    found = served.generations.one('rex', 1)
    told = 'the process that generates was ended by signal 9 3 times while it waited'
    assert (found.state, found.message) == ('failed', told)
    assert served.generations.one('rex', other.number).state == 'queued'


def test_a_process_that_cannot_start_says_why(served, tmp_path):
    ask(served)
    served.generations.tend()
    works(served)
    (tmp_path / 'rex' / 'generate.log').write_text('--- the command\nthe disk is full\n')
    ends(served, 1)
    served.generations.tend()
    assert served.generations.one('rex', 1).message == 'the disk is full'
    served.generations.tend()
    assert job_of(served).state == jobs.ENDED


def test_cancel_and_remove(served, tmp_path):
    ask(served)
    served.generations.tend()
    with pytest.raises(Refused, match='request 1 of rex is not answered yet; cancel it first'):
        served.generations.remove('rex', 1)
    assert served.generations.cancel('rex', 1).doing == 'stops after the images at hand'
    served.generations.tend()  # nobody answers, so that nobody else would see it
    assert served.generations.one('rex', 1).state == CANCELLED
    served.generations.tend()
    assert job_of(served).state == jobs.ENDED
    with pytest.raises(Refused, match='request 1 of rex is cancelled, so there is nothing to cancel'):
        served.generations.cancel('rex', 1)
    served.generations.remove('rex', 1)
    for wrong in (served.generations.one, served.generations.remove, served.generations.grid):
        with pytest.raises(Refused, match='the run rex has no request 1 for images') as error:
            wrong('rex', 1)
        assert error.value.status == 404


def test_a_cancelled_request_that_is_answered_is_left_to_its_process(served, tmp_path):
    ask(served)
    served.generations.tend()
    works(served)
    RequestQueue(tmp_path / 'rex').take()
    served.generations.cancel('rex', 1)
    served.generations.tend()
    found = served.generations.one('rex', 1)
    assert (found.state, found.doing) == (RUNNING, 'stops after the images at hand')


def test_there_is_a_limit_to_what_is_open(served):
    for _ in range(MOST_OPEN):
        ask(served)
    with pytest.raises(Refused) as error:
        ask(served)
    assert str(error.value) == '32 requests for images of rex are open already; wait for one or cancel one'


def test_a_damaged_request_can_be_seen_and_removed(served, tmp_path):
    ask(served)
    (tmp_path / 'rex' / 'generated' / '000001' / 'request.json').write_text('{')
    (found,) = served.generations.all('rex')
    assert found.state == 'failed' and 'is damaged' in found.message and found.request == {}
    served.generations.remove('rex', 1)


def test_a_run_that_is_gone_is_forgotten(served, tmp_path):
    ask(served)
    served.generations.tend()
    shutil.rmtree(tmp_path / 'rex')
    served.generations.tend()
    assert job_of(served).state == jobs.ENDED
    assert not (tmp_path / 'rex').exists()


def test_defaults_are_those_of_the_run(served, tmp_path):
    settings = json.loads((tmp_path / 'rex' / 'config.json').read_text())['samples']
    assert served.generations.defaults('rex').steps == settings['steps']
    write_run(tmp_path / 'other', samples__model='storybook', lora__rank=4)
    assert served.generations.defaults('other') is None
    assert isinstance(served.generations, Generations)
