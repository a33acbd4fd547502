"""Requests become the images that sample would write, whatever happens meanwhile."""

import dataclasses
import time

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config.dreambooth import RunSamplesConfig
from dreambooth_jax.finetune import answering
from dreambooth_jax.finetune.run_models import RunModels
from dreambooth_jax.generation import request_queue
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.request_queue import CANCELLED, DONE, FAILED, QUEUED, Request, RequestQueue
from dreambooth_jax.program import explained
from tests.support import image_metadata, made_certificates, smallest_pipelines
from tests.support.written_runs import begun, save

MODEL = smallest_pipelines.folder('pixels')
PROMPTS = ('a sks dog', 'a dog')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    samples = RunSamplesConfig(steps=2, sampler='ddim', guidance_scale=1.0, batch_size=4)
    folder = begun(tmp_path_factory.mktemp('runs') / 'rex', MODEL, samples=samples)
    save(folder, 'base', [1, 3], {'unet': Cascade.load(MODEL).base.denoiser.params})
    return folder


@pytest.fixture(scope='module')
def models(run):
    return RunModels(run)


@pytest.fixture
def queue(tmp_path):
    """Requests in a folder of their own, so that each test begins with none."""
    return RequestQueue(tmp_path)


def answered(queue, models):
    answering.answer_all(queue, models, 0, explained)


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.slow
def test_images_of_several_models_are_those_that_sample_generates(queue, models):
    queue.add(Request(prompts=PROMPTS, models=('3', 'base_model'), num_images=2, seed=5))
    answered(queue, models)
    (found,) = queue.all()
    assert (found.status.state, found.status.done, found.status.doing) == (DONE, 8, '')
    assert found.status.options['sampler'] == 'ddim' and found.status.options['seed'] == 5
    assert found.status.origins['3'][0] == 'base: checkpoint 3'
    options = models.settings.options(models.get('base_model').cascade, found.request.given)
    for name in ('3', 'base_model'):
        expected = models.get(name).cascade.generate(PROMPTS, options, num_images=2)
        files = found.images()[name]
        assert list(files) == ['000_00', '000_01', '001_00', '001_01']
        for index, path in enumerate(files.values()):
            assert np.array_equal(pixels(path), expected.super_resolution[index])
            assert np.array_equal(pixels(path.parent / 'base' / path.name), expected.base[index])
            assert image_metadata.is_marked(path)
            told = image_metadata.parameters(path)
            assert (told['Prompt'], told['Seed'], told['Image number']) == (PROMPTS[index // 2], '5', str(index % 2))
            assert told['Model hash'] == models.get(name).cascade.base.weights_hash
            assert (told['Model'], told.get('Training step')) == (('rex', '3') if name == '3' else ('pixels', None))
    assert image_metadata.is_marked(found.folder / request_queue.GRID)
    assert not np.array_equal(pixels(found.images()['3']['000_00']), pixels(found.images()['base_model']['000_00']))


def test_what_is_there_of_a_killed_process_stays(queue, models):
    queue.add(Request(prompts=PROMPTS, models=('base_model',), num_images=2))
    answered(queue, models)
    (whole,) = queue.all()
    files = whole.images()['base_model']
    before = {name: path.read_bytes() for name, path in files.items()}
    for name in ('000_01', '001_00', '001_01'):
        files[name].unlink()
    written = files['000_00'].stat().st_mtime_ns
    queue.write(whole, state=request_queue.RUNNING, taken=time.time())
    answered(queue, models)
    assert {name: path.read_bytes() for name, path in queue.all()[0].images()['base_model'].items()} == before
    assert files['000_00'].stat().st_mtime_ns == written and queue.all()[0].status.done == 4


def test_a_request_that_is_cancelled_in_the_middle_stops_and_keeps_its_images(queue, models, monkeypatch):
    asked = queue.add(Request(prompts=PROMPTS, models=('base_model',), num_images=4))
    write = RequestQueue.write

    def written(self, asked, **changed):
        if changed.get('done') == 4:
            self.cancel(asked.number)
        return write(self, asked, **changed)

    monkeypatch.setattr(RequestQueue, 'write', written)
    answered(queue, models)
    (found,) = queue.all()
    assert (found.status.state, found.status.done, asked.images()['base_model'].keys()) == (
        CANCELLED,
        4,
        {'000_00', '000_01', '000_02', '000_03'},
    )


def test_a_request_that_is_removed_in_the_middle_leaves_nothing(queue, models, monkeypatch):
    queue.add(Request(prompts=PROMPTS, models=('base_model',)))
    monkeypatch.setattr(models, 'get', lambda name: queue.remove(1))
    answered(queue, models)
    assert queue.all() == []


def test_an_error_is_its_message_and_the_next_request_is_answered(queue, models):
    queue.add(Request(prompts=PROMPTS, models=('7',)))
    queue.add(Request(prompts=('a dog',), models=('base_model',)))
    answered(queue, models)
    failed, other = queue.all()
    assert failed.status.state == FAILED and failed.status.message.endswith(
        'rex has no checkpoint 7: the newest of base is 3; leave --step out to take the newest'
    )
    assert other.status.state == DONE


def test_an_error_that_nobody_foresaw_is_kept_too(queue, models, monkeypatch):
    queue.add(Request(prompts=PROMPTS, models=('base_model',)))
    monkeypatch.setattr(models, 'get', lambda name: 1 / 0)
    answered(queue, models)
    assert queue.all()[0].status.message == 'ZeroDivisionError: division by zero'


def test_it_waits_for_more_and_gives_way(queue, models, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            queue.add(Request(prompts=('a dog',), models=('base_model',)))
        if len(looks) == 5:
            queue.give_way(time.time())

    monkeypatch.setattr(answering.time, 'sleep', sleep)
    answering.answer_all(queue, models, 3600, explained)
    assert len(looks) == 5 and [one.status.state for one in queue.all()] == [DONE]
    queue.add(Request(prompts=('a dog',), models=('base_model',)))
    answering.answer_all(queue, models, 3600, explained)  # asked for later than whoever waits
    assert queue.find(2).status.state == QUEUED


def test_with_the_mark_alone_files_say_no_more(queue, models, monkeypatch):
    monkeypatch.setattr(models, 'metadata', 'mark')
    queue.add(Request(prompts=('a dog',), models=('3',)))
    answered(queue, models)
    path = queue.all()[0].images()['3']['000_00']
    assert image_metadata.is_marked(path) and image_metadata.parameters(path) == {}
    assert dataclasses.asdict(queue.all()[0].request)['prompts'] == ('a dog',)


def test_images_and_the_sheet_are_signed_or_the_request_fails(queue, models, tmp_path, monkeypatch):
    c2pa = pytest.importorskip('c2pa')
    made = made_certificates.make(tmp_path)
    samples = made_certificates.settings(made, steps=2, sampler='ddim', guidance_scale=1.0, batch_size=4)
    monkeypatch.setattr(models, 'settings', models.settings._replace(samples=samples))
    queue.add(Request(prompts=('a dog',), models=('base_model',)))
    answered(queue, models)
    (found,) = queue.all()
    files = sorted(found.folder.rglob('*.png'))
    assert found.status.state == DONE and {path.name for path in files} == {'000_00.png', request_queue.GRID}
    assert len(files) == 3  # of both stages, and the sheet
    assert [c2pa.Reader(str(path)).get_validation_state() for path in files] == ['Valid'] * 3
    made.key.unlink()  # or it has expired, while the process waits for the next request
    queue.add(Request(prompts=('a dog',), models=('base_model',)))
    answered(queue, models)
    failed = queue.find(2)
    assert failed.status.state == FAILED and not list(failed.folder.rglob('*.png'))
    assert failed.status.message == (
        f'config.samples.c2pa_certificate and config.samples.c2pa_key: {made.key} cannot be read: No such file or '
        f'directory; give a PEM file that can, or start train again with both set to None'
    )
