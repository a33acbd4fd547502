"""The API over folders that train has left."""

import dataclasses
import io
import json
import os
import zipfile

import pytest

from dreambooth_jax.web import api, jobs, plans
from dreambooth_jax.web.refused import Refused
from tests.support.served import client, desk, hold, image_bytes, mask_bytes, write_run, write_samples


@pytest.fixture
def served(tmp_path):
    return desk(tmp_path)


@pytest.fixture
def asked(served):
    return client(served)


def error(answer):
    assert set(answer.json()) == {'error'}
    return answer.status_code, answer.json()['error']


def test_runs(asked, tmp_path):
    assert asked.get('/api/runs').json() == []
    write_run(tmp_path / 'dog', 5)
    (found,) = asked.get('/api/runs').json()
    assert found == asked.get('/api/runs/dog').json()
    assert (found['id'], found['state'], found['progress']['step']) == ('dog', 'stopped', 5)
    assert asked.get('/api/runs/dog/settings').json()['base.steps'] == 20
    assert error(asked.get('/api/runs/cat')) == (404, "there is no run 'cat'")


def test_a_new_run(asked, served):
    photos = asked.post('/api/photos', json={}).json()['name']
    assert asked.post(f'/api/photos/{photos}?name=a.png', content=image_bytes()).status_code == 201
    body = {'name': 'rex', 'photos': photos, 'preset': 'sdxl', 'settings': {'base.steps': 7, 'lora.rank': 4}}
    answer = asked.post('/api/runs', json=body)
    assert answer.status_code == 201 and answer.json()['state'] == 'queued'
    (job,) = served.queue.all()
    assert job.arguments[0].endswith('dog.py:sdxl') and '--config.base.steps=7' in job.arguments
    assert f'--config.data.instance_dir={served.photos.folder(photos)}' in job.arguments
    assert error(asked.post('/api/runs', json=body))[0] == 409
    assert asked.post('/api/runs/rex/stop').json()['state'] == 'stopped'


@pytest.mark.parametrize(
    ('body', 'told'),
    [
        ({'name': 'x', 'settings': {'base.stepz': 1}}, 'did you mean config.base.steps?'),
        ({'name': '../x'}, 'cannot name a run'),
        ({'name': 'x', 'preset': 'sdxl'}, 'config.data.instance_dir must be given'),
        ({'name': 'x', 'photos': '../../etc'}, "there are no photos '../../etc'"),
        ({'name': 'x', 'config': '/etc/passwd'}, 'must be one of'),
        ({'name': 'x', 'stepz': 1}, 'stepz'),
        ({}, 'name'),
        ([], 'body'),
    ],
)
def test_wrong_new_runs_are_refused_in_a_sentence(body, told, asked, served):
    status, sentence = error(asked.post('/api/runs', json=body))
    assert status in (404, 422) and told in sentence and '\n' not in sentence
    assert served.queue.all() == []


def test_metrics(asked, tmp_path):
    write_run(tmp_path / 'dog', 5)
    assert [line['step'] for line in asked.get('/api/runs/dog/metrics').json()] == [1, 2, 3, 4, 5]
    assert [line['step'] for line in asked.get('/api/runs/dog/metrics?after=base:3').json()] == [4, 5]
    assert asked.get('/api/runs/dog/metrics?stage=super_resolution').json() == []
    assert error(asked.get('/api/runs/dog/metrics?after=x'))[0] == 422
    assert error(asked.get('/api/runs/dog/metrics?stage=x'))[0] == 422


@pytest.mark.parametrize(
    ('known', 'query', 'told'),
    [
        ({}, '', [1, 2, 3, 4, 5]),
        ({'last-event-id': 'base:3:0'}, '', [4, 5]),
        ({'Last-Event-ID': 'base:5:0'}, '', []),
        ({}, '?after=base:2', [3, 4, 5]),
        ({'last-event-id': 'base:4:0'}, '?after=base:1', [5]),  # a browser comes back to the address it began with
    ],
)
def test_a_stream_goes_on_behind_the_line_that_a_client_knows(known, query, told, served, tmp_path):
    write_run(tmp_path / 'dog', 5)
    stops = [False, True]
    asked = client(served, lambda: stops.pop(0))
    answer = asked.get(f'/api/runs/dog/events{query}', headers=known)
    found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith('data: ')]
    assert [one['step'] for one in found if 'step' in one] == told and found[-1]['id'] == 'dog'
    ids = [line for line in answer.text.splitlines() if line.startswith('id: ')]
    assert ids == [f'id: base:{step}:0' for step in told]


def test_a_line_that_is_none_begins_no_stream(asked, tmp_path):
    write_run(tmp_path / 'dog', 5)
    status, sentence = error(asked.get('/api/runs/dog/events', headers={'last-event-id': 'x'}))
    assert (status, sentence) == (422, "'x' names no line of the metrics; name one as base:120")


def test_samples(asked, tmp_path):
    folder = write_run(tmp_path / 'dog', 5)
    write_samples(folder, 3)
    found = asked.get('/api/runs/dog/samples').json()
    assert [(one['stage'], one['step']) for one in found] == [('base', 3), ('base', 5)]
    answer = asked.get(found[0]['url'])
    assert answer.headers['content-type'] == 'image/png' and answer.content == image_bytes()
    assert error(asked.get('/api/runs/dog/samples/base/4'))[0] == 404
    assert error(asked.get('/api/runs/dog/samples/x/5'))[0] == 422


def test_actions(asked, tmp_path):
    folder = write_run(tmp_path / 'dog', 5)
    hold(folder)
    assert asked.post('/api/runs/dog/pause').json()['asked'] == ['pause']
    assert asked.post('/api/runs/dog/resume').json()['asked'] == []
    assert asked.post('/api/runs/dog/sample').json()['asked'] == ['sample']
    assert error(asked.post('/api/runs/dog/start'))[0] == 409
    assert error(asked.post('/api/runs/dog/delete'))[0] == 422
    assert error(asked.post('/api/runs/dog/extend', json={'steps': 5}))[0] == 409
    assert error(asked.post('/api/runs/dog/extend', json={'steps': 0}))[0] == 422


def test_log(asked, tmp_path):
    folder = write_run(tmp_path / 'dog')
    assert asked.get('/api/runs/dog/log').text == ''
    (folder / 'train.log').write_text('one\n1%\r2%\n<b>\n')
    assert asked.get('/api/runs/dog/log').text == 'one\n2%\n<b>'
    assert asked.get('/api/runs/dog/log').headers['content-type'].startswith('text/plain')
    assert error(asked.get('/api/runs/dog/log?program=../config'))[0] == 422


def test_export_and_download(asked, served, tmp_path):
    folder = write_run(tmp_path / 'dog', 20, finished=True)
    answer = asked.post('/api/runs/dog/export', json={'format': 'single_file', 'dtype': 'float16'})
    assert answer.status_code == 202 and '--format=single_file' in answer.json()['command']
    assert error(asked.post('/api/runs/dog/export', json={'format': 'pickle'}))[0] == 422
    (folder / 'exports' / 'dog.safetensors').write_bytes(b'weights')
    found = asked.get('/api/runs/dog/exports').json()
    assert [one['name'] for one in found['downloads']] == ['model', 'dog.safetensors']
    assert found['jobs'][0]['state'] == 'queued'
    model, file = (asked.get(one['url']) for one in found['downloads'])
    assert zipfile.ZipFile(io.BytesIO(model.content)).namelist() == ['model/model_index.json']
    assert 'filename="dog-model.zip"' in model.headers['content-disposition']
    assert file.content == b'weights' and 'attachment' in file.headers['content-disposition']


@pytest.mark.parametrize('name', ['%2e%2e', '..%2fconfig.json', '%2fetc%2fpasswd', 'config.json', '.hidden', 'x%00'])
def test_no_path_of_a_client_leads_anywhere(name, asked, tmp_path):
    folder = write_run(tmp_path / 'dog', 20, finished=True)
    (folder / 'exports').mkdir()
    (folder / 'exports' / '.hidden').touch()
    for url in (f'/api/runs/dog/exports/{name}', f'/api/runs/{name}', f'/api/photos/{name}', f'/static/{name}'):
        answer = asked.get(url)
        assert answer.status_code in (404, 405, 422), url
        assert 'instance_prompt' not in answer.text and 'root:' not in answer.text
    assert asked.delete(f'/api/photos/{name}').status_code in (404, 405, 422)
    assert folder.exists()


def test_links_out_of_an_export_are_not_followed(asked, tmp_path):
    folder = write_run(tmp_path / 'dog', 20, finished=True)
    os.symlink('/etc/passwd', folder / 'model' / 'link')
    archive = asked.get('/api/runs/dog/exports/model.zip').content
    assert zipfile.ZipFile(io.BytesIO(archive)).namelist() == ['model/model_index.json']


def test_photos(asked):
    assert asked.post('/api/photos', json={'name': 'rex'}).json() == {'name': 'rex'}
    photo = asked.post('/api/photos/rex?name=IMG.jpg', content=image_bytes(format='JPEG')).json()
    assert photo == {'name': '001.jpg', 'width': 64, 'height': 48, 'caption': None, 'masked': None}
    crop = asked.get('/api/photos/rex/001.jpg/crop?side=32')
    assert crop.headers['content-type'] == 'image/png' and crop.content[:4] == b'\x89PNG'
    assert error(asked.get('/api/photos/rex/001.jpg/crop?side=100000'))[0] == 422
    assert asked.get('/api/photos/rex/001.jpg/crop?side=32&box=0,0,20,20').status_code == 200
    for box in ('0,0,65,20', '0,0,20', '0,0,20,-1', 'x'):
        assert error(asked.get(f'/api/photos/rex/001.jpg/crop?box={box}'))[0] == 422
    found = asked.get('/api/photos/rex/findings?side=128').json()
    assert (found[0]['severity'], found[0]['photo']) == ('error', '001.jpg') and '64 x 48' in found[0]['found']
    assert set(found[0]) == {'severity', 'check', 'photo', 'found', 'advice', 'crop'} and found[0]['crop'] is None
    assert error(asked.get('/api/photos/rex/findings?side=100000'))[0] == 422
    assert error(asked.get('/api/photos/max/findings'))[0] == 404
    assert asked.put('/api/photos/rex/001.jpg/caption', json={'caption': 'a sks dog'}).status_code == 204
    assert asked.get('/api/photos/rex').json()[0]['caption'] == 'a sks dog'
    mask = '/api/photos/rex/001.jpg/mask?name=mine.png'
    assert asked.put(mask, content=mask_bytes(slice(None), 64, 48)).status_code == 204
    assert asked.get('/api/photos/rex').json()[0]['masked'] > 0
    refused = asked.put(mask, content=mask_bytes(slice(None), 48, 64))
    assert refused.status_code == 422 and refused.json()['error'] == (
        'the mask mine.png is 48 x 64 pixels but its image 001.jpg 64 x 48, both as they are shown upright; make the '
        'mask as large as its image'
    )
    assert asked.put(mask).status_code == 204 and asked.get('/api/photos/rex').json()[0]['masked'] is None
    form = asked.post('/api/photos/rex', content=b'--x', headers={'content-type': 'multipart/form-data; boundary=x'})
    assert error(form) == (
        415,
        'the body is a form; send the bytes of the file alone, as curl --data-binary @FILE does',
    )
    assert error(asked.post('/api/photos/rex?name=x.zip', content=b'PK\x03\x04' + b'\0' * 60))[0] == 415
    assert asked.get('/api/photos').json() == {'rex': 1}
    assert asked.delete('/api/photos/rex/001.jpg').status_code == 204
    assert error(asked.delete('/api/photos/rex/001.jpg'))[0] == 404
    assert asked.delete('/api/photos/rex').status_code == 204 and asked.get('/api/photos').json() == {}


def test_plans(asked, tmp_path, monkeypatch):
    seen, stamps = [], []

    async def plan(self, arguments, is_gone, stamp=None):
        seen.append(arguments)
        stamps.append(stamp)
        if '--config.base.steps=13' in arguments:
            raise Refused('too few', 422)
        return plans.Plan(
            **{**dict.fromkeys(plans.Plan.model_fields), 'devices': '1 x cpu', 'plan': 'the plan', 'cost': 0.2}
        )

    monkeypatch.setattr(plans.Plans, 'plan', plan)
    found = asked.post('/api/plan', json={'settings': {'base.steps': 7}}).json()
    assert {name: value for name, value in found.items() if value is not None} == {
        'devices': '1 x cpu',
        'cost': 0.2,
        'plan': 'the plan',
    }
    assert set(found) > {'price', 'seconds', 'time', 'peak_bytes', 'memory', 'about_steps', 'proposed_steps', 'note'}
    assert '--config.base.steps=7' in seen[0]
    assert error(asked.post('/api/plan', json={'settings': {'base.steps': 13}})) == (422, 'too few')
    assert error(asked.post('/api/plan', json={'settings': {'x': 1}}))[0] == 422
    write_run(tmp_path / 'dog')
    assert asked.get('/api/plan?run=dog').json() == found
    assert error(asked.get('/api/plan?run=cat'))[0] == 404 and len(seen) == 3
    asked.post('/api/photos', json={'name': 'rex'})
    asked.post('/api/photos/rex', content=image_bytes())
    assert asked.post('/api/plan', json={'photos': 'rex', 'preset': 'sdxl'}).json() == found
    assert stamps[:-1] == [None] * 3 and [name for name, _ in stamps[-1]] == ['001.png']


def test_settings_and_files(asked):
    found = {one['name']: one for one in asked.get('/api/settings?config=dog&preset=sdxl').json()}
    assert found['lora.rank']['value'] == 16 and found['lora.rank']['default'] is None and found['lora.rank']['doc']
    assert {one['name'] for one in asked.get('/api/configs').json()} == {'dog', 'subject'}
    assert error(asked.get('/api/settings?config=x'))[0] == 422


def test_openapi_describes_every_route(asked):
    described = asked.get('/api/openapi.json').json()
    assert {'/api/runs', '/api/runs/{run}/events', '/api/runs/{run}/{action}', '/api/plan'} <= set(described['paths'])
    for methods in described['paths'].values():
        assert all(one.get('description') for one in methods.values())
    assert not any(path == '/' or path.startswith('/new') for path in described['paths'])
    for path in ('/docs', '/redoc'):
        assert asked.get(path).status_code == 404


def test_sentences_of_errors():
    assert api.sentence(Refused('x')) == (409, 'x') and api.sentence(ValueError('x')) is None


def test_an_export_that_failed_is_told(asked, served, tmp_path):
    write_run(tmp_path / 'dog', 20, finished=True)
    asked.post('/api/runs/dog/export', json={})
    served.queue._keep(dataclasses.replace(served.queue.all()[0], state=jobs.ENDED, code=1))
    assert asked.get('/api/runs/dog/exports').json()['jobs'][0]['code'] == 1
