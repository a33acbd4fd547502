"""Requests for images on disk: what is refused, their order, and what is left by whoever is killed."""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation import request_queue
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.request_queue import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Request, RequestQueue


def request(**changed):
    return Request(**{'prompts': ('a sks dog',), 'models': ('model',), **changed})


@pytest.fixture
def queue(tmp_path):
    return RequestQueue(tmp_path)


@pytest.mark.parametrize(
    ('changed', 'sentence'),
    [
        ({'prompts': ()}, 'prompts has 0 entries but must have 1 to 16'),
        ({'prompts': ('x',) * 17}, 'prompts has 17 entries but must have 1 to 16'),
        ({'models': ()}, 'models has 0 entries but must have 1 to 8'),
        ({'prompts': ('a', 'b' * 1001)}, 'prompts[1] has 1001 characters but may have 1000; shorten it'),
        ({'negative_prompt': 'b' * 1001}, 'negative_prompt has 1001 characters but may have 1000; shorten it'),
        ({'prompts': ('a\nb',)}, "prompts[0] is 'a\\nb', which holds a line break or another control character"),
        ({'models': ('../x',)}, "models holds '../x' but may hold 'model', 'base_model' and steps of checkpoints"),
        ({'models': ('5', '5')}, 'models names a model twice; name each once'),
        ({'num_images': 17}, 'num_images must be in [1, 16], got 17'),
        ({'num_images': 0}, 'num_images must be in [1, 16], got 0'),
        ({'seed': -1}, 'seed must be in [0, 4294967295], got -1'),
        ({'steps': 1001}, 'steps must be in [1, 1000], got 1001'),
        ({'steps': '3'}, "steps must be an int or None, got '3' (str)"),
        ({'guidance_scale': 0.5}, 'guidance_scale must be in [1, 100], got 0.5'),
        ({'guidance_scale': float('nan')}, 'guidance_scale must be a finite number, got nan'),
        ({'noise_level': 1000}, 'noise_level must be in [0, 999], got 1000'),
        ({'batch_size': 65}, 'batch_size must be in [1, 64], got 65'),
        (
            {'prompts': ('x',) * 16, 'models': ('1', '2'), 'num_images': 9},
            '16 prompts x 2 models x 9 images are 288 images but a request may be for 256; ask for fewer',
        ),
    ],
)
def test_what_is_not_allowed_is_refused_in_a_sentence(changed, sentence):
    with pytest.raises(ConfigError) as error:
        request(**changed)
    assert str(error.value) == sentence


def test_prompts_in_every_script_are_taken():
    assert request(prompts=('ein Hund', '一只狗', '👩‍🚀 dog', ''))


def test_fields_are_those_of_sampling_options():
    given = request(steps=3, sampler='ddim', noise_level=0).given
    assert given == {
        'steps': 3,
        'sampler': 'ddim',
        'noise_level': 0,
        'seed': 0,
        'negative_prompt': '',
        'super_resolution': True,
    }
    names = {field.name for field in dataclasses.fields(Request)} - {'prompts', 'models', 'num_images'}
    assert names == {field.name for field in dataclasses.fields(SamplingOptions)}


def test_requests_are_taken_in_their_order_and_once_more_if_they_were_left(queue, tmp_path):
    assert queue.all() == [] and queue.take() is None
    first, second = queue.add(request(seed=1)), queue.add(request(seed=2))
    assert (first.number, second.number, second.status.state) == (1, 2, QUEUED)
    taken = queue.take()
    assert (taken.number, taken.status.state, taken.request.seed) == (1, RUNNING, 1)
    again = RequestQueue(tmp_path).take()  # whoever took it was killed
    assert (again.number, again.status.taken >= taken.status.taken) == (1, True)
    queue.write(again, state=DONE, done=1)
    assert queue.take().number == 2
    assert [one.status.state for one in queue.all()] == [DONE, RUNNING]
    assert [one.number for one in queue.open()] == [2] and queue.find(3) is None


def test_requests_that_are_added_at_once_all_have_a_number(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda seed: RequestQueue(tmp_path).add(request(seed=seed)), range(50)))
    assert sorted(one.number for one in added) == list(range(1, 51))
    assert sorted(one.request.seed for one in RequestQueue(tmp_path).all()) == list(range(50))


def test_a_cancelled_request_is_not_taken(queue):
    asked = queue.add(request())
    assert not queue.is_cancelled(asked)
    queue.cancel(1)
    assert queue.is_cancelled(asked) and queue.find(1).cancel
    assert queue.take() is None and queue.find(1).status.state == CANCELLED


def test_a_removed_request_is_gone_and_its_number_too(queue):
    asked = queue.add(request())
    queue.remove(1)
    assert queue.all() == [] and not asked.folder.exists() and queue.is_cancelled(asked)


def test_whoever_gives_way_takes_what_was_asked_for_before(queue):
    first = queue.add(request())
    queue.give_way(first.asked)
    assert queue.gives_way
    second = queue.add(request())
    assert second.asked > first.asked
    queue.write(queue.take(), state=DONE)
    assert queue.take() is None and queue.find(2).status.state == QUEUED
    queue.give_way(None)
    assert not queue.gives_way and queue.take().number == 2


@pytest.mark.parametrize('text', ['{', '[]', '{"asked": 1}', '{"asked": 1, "prompts": ["a"], "models": ["../x"]}'])
def test_a_damaged_request_says_so_and_is_not_taken(text, queue):
    queue.add(request())
    path = queue.folder / '000001' / 'request.json'
    path.write_text(text)
    (found,) = queue.all()
    assert (found.request, found.status.state) == (None, FAILED)
    assert found.status.message.startswith(f'{path} is damaged: ') and found.images() == {}
    assert queue.take() is None and queue.open() == []


def test_a_damaged_status_is_as_none(queue):
    queue.add(request())
    (queue.folder / '000001' / 'status.json').write_text('{"state": "odd"}')
    assert queue.take().number == 1


def test_images_are_those_files_alone_that_have_such_names(queue):
    asked = queue.add(request(models=('model', '5')))
    (asked.folder / '5').mkdir()
    for name in ('000_00.png', '000_01.png', '.000_02.png.part', 'grid.png', 'x.txt'):
        (asked.folder / '5' / name).touch()
    assert asked.images() == {
        'model': {},
        '5': {'000_00': asked.folder / '5' / '000_00.png', '000_01': asked.folder / '5' / '000_01.png'},
    }


def test_what_is_asked_for_is_on_disk_by_its_names(queue):
    queue.add(request(steps=4))
    written = json.loads((queue.folder / '000001' / 'request.json').read_text())
    assert (written['prompts'], written['steps'], written['sampler']) == (['a sks dog'], 4, None)
    assert queue.folder.name == request_queue.FOLDER


def test_it_needs_no_jax():
    code = "import dreambooth_jax.generation.request_queue, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == 0
