"""What the API's description says of refusals, files, uploads and the stream of events."""

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dreambooth_jax.web import answers, events
from tests.support.served import client, desk


@pytest.fixture
def described(tmp_path):
    return client(desk(tmp_path)).get('/api/openapi.json').json()


def operations(described):
    return {(method, path): one for path, of in described['paths'].items() for method, one in of.items()}


def test_every_refusal_has_one_form(described):
    form = {'$ref': '#/components/schemas/Refusal'}
    for where, one in operations(described).items():
        refused = {status: answer for status, answer in one['responses'].items() if int(status) >= 400}
        assert {'401', '403', '413', '421', '422', '500', '507'} <= set(refused), where
        assert all(answer['content'] == {'application/json': {'schema': form}} for answer in refused.values()), where
    assert 'HTTPValidationError' not in described['components']['schemas']
    assert described['components']['schemas']['Refusal']['required'] == ['error']


def test_what_names_something_may_not_find_it(described):
    for (method, path), one in operations(described).items():
        assert ('404' in one['responses']) or '{' not in path, (method, path)


def test_every_route_asks_for_the_token(described):
    assert {str(one['security']) for one in operations(described).values()} == {"[{'HTTPBearer': []}]"}
    assert described['components']['securitySchemes']['HTTPBearer']['scheme'] == 'bearer'


def test_uploads_are_files(described):
    of = operations(described)
    for where, required in {
        ('post', '/api/photos/{folder}'): True,
        ('put', '/api/photos/{folder}/{photo}/mask'): False,
    }.items():
        body = of[where]['requestBody']
        assert body['required'] is required and '64 MB and 100 million pixels' in body['description']
        file = {'schema': {'type': 'string', 'format': 'binary'}}
        assert body['content'] == {'image/*': file, 'application/octet-stream': file}


def test_a_plan_has_fields_of_its_own_each_with_its_meaning(described):
    fields = described['components']['schemas']['Plan']['properties']
    assert {'note', 'devices', 'seconds', 'time', 'cost', 'price', 'peak_bytes', 'memory', 'plan'} < set(fields)
    assert all(one['description'] for one in fields.values())
    assert {kind['type'] for kind in fields['cost']['anyOf']} == {'number', 'null'}
    made = described['paths']['/api/plan']['post']['responses']['200']['content']['application/json']['schema']
    assert made == {'$ref': '#/components/schemas/Plan'}


def test_files_have_their_media_types(described):
    of = operations(described)
    files = {path: set(one['responses']['200']['content']) for (method, path), one in of.items() if method == 'get'}
    assert {path for path, types in files.items() if types == {'image/png'}} == {
        '/api/runs/{run}/samples/{stage}/{step}',
        '/api/runs/{run}/generate/{number}/grid',
        '/api/runs/{run}/generate/{number}/images/{model}/{image}',
        '/api/photos/{folder}/{photo}/crop',
    }
    assert files['/api/runs/{run}/exports/{name}'] == {'application/octet-stream', 'application/zip'}
    assert files['/api/runs/{run}/events'] == {'text/event-stream'}


def test_the_example_of_an_event_is_one(described):
    told = described['paths']['/api/runs/{run}/events']['get']
    example = told['responses']['200']['content']['text/event-stream']['example']
    (data,) = [line.partition(': ')[2] for line in example.splitlines() if line.startswith('data')]
    assert example == events.event('metrics', json.loads(data), 'base:120:0')
    assert {one['name']: one['in'] for one in told['parameters']} == {
        'run': 'path',
        'after': 'query',
        'last-event-id': 'header',
    }


def test_the_token_in_the_description_lets_in_whoever_the_guard_does():
    app = FastAPI()
    app.get('/', dependencies=[answers.TOKEN])(lambda: 'here')
    for headers in ({}, {'authorization': 'x'}, {'authorization': 'Bearer x'}):
        assert TestClient(app).get('/', headers=headers).json() == 'here'
