"""The API about images: fields, limits and sentences, and that no path of a client leads anywhere."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import provenance
from dreambooth_jax.generation.request_queue import DONE, RequestQueue
from tests.support import image_metadata
from tests.support.served import client, desk, write_run
from tests.web.test_api import error

ASKED = {'prompts': ['a sks dog', 'a dog'], 'models': ['20', 'base_model'], 'num_images': 2, 'seed': 7, 'steps': 5}


@pytest.fixture
def asked(tmp_path):
    write_run(tmp_path / 'rex', 20)
    return client(desk(tmp_path))


def answer(run, prompt='a sks dog, "so"'):
    """Writes an image of the first request as the process that generates would."""
    requests = RequestQueue(run)
    taken = requests.take()
    facts = provenance.Facts(
        prompt=prompt, steps=5, sampler='ddim', guidance_scale=2.5, seed=7, model='rex, really', model_hash='ab12'
    )
    path = taken.folder / '20' / '000_01.png'
    path.parent.mkdir()
    provenance.save(np.zeros((16, 8, 3), np.uint8), path, facts)
    provenance.save(np.zeros((8, 8, 3), np.uint8), taken.folder / 'grid.png')
    requests.write(taken, state=DONE, done=1, options={'steps': 5}, origins={'20': ['base: checkpoint 20']})


def test_from_the_request_to_an_image_and_its_metadata(asked, tmp_path):
    assert [one['name'] for one in asked.get('/api/runs/rex/models').json()] == ['20', 'base_model']
    response = asked.post('/api/runs/rex/generate', json=ASKED)
    assert response.status_code == 202
    found = response.json()
    assert (found['number'], found['state'], found['done'], found['total']) == (1, 'queued', 0, 8)
    assert found['request'] | ASKED == found['request'] and found['request']['sampler'] is None
    answer(tmp_path / 'rex')
    (found,) = asked.get('/api/runs/rex/generate').json()
    assert found == asked.get('/api/runs/rex/generate/1').json()
    assert (found['state'], found['options'], found['origins']) == (
        'done',
        {'steps': 5},
        {'20': ['base: checkpoint 20']},
    )
    url = found['images']['20']['000_01']
    assert url == '/api/runs/rex/generate/1/images/20/000_01' and found['images']['base_model'] == {}
    image = asked.get(url)
    assert image.headers['content-type'] == 'image/png' and image.content[:4] == b'\x89PNG'
    assert image_metadata.iptc(image.content)['DigitalSourceType'] == provenance.GENERATED
    assert asked.get(f'{url}/metadata').json() == {
        'source': 'trainedAlgorithmicMedia',
        'prompt': 'a sks dog, "so"',
        'negative_prompt': '',
        'values': {
            'Steps': '5',
            'Sampler': 'ddim',
            'CFG scale': '2.5',
            'Seed': '7',
            'Size': '8x16',
            'Model hash': 'ab12',
            'Model': 'rex, really',
            'Version': 'dreambooth-jax 0.1.0',
        },
        'width': 8,
        'height': 16,
    }
    assert asked.get(found['grid']).content[:4] == b'\x89PNG'
    assert asked.delete('/api/runs/rex/generate/1').status_code == 204
    assert error(asked.get(url)) == (404, 'the run rex has no request 1 for images')


def test_a_file_without_metadata_says_nothing(asked, tmp_path):
    asked.post('/api/runs/rex/generate', json=ASKED)
    answer(tmp_path / 'rex')
    Image.new('RGB', (4, 4)).save(tmp_path / 'rex' / 'generated' / '000001' / '20' / '000_00.png')
    told = asked.get('/api/runs/rex/generate/1/images/20/000_00/metadata').json()
    assert told == {'source': None, 'prompt': None, 'negative_prompt': None, 'values': {}, 'width': 4, 'height': 4}


@pytest.mark.parametrize(
    ('changed', 'sentence'),
    [
        ({'num_images': 99}, 'num_images must be in [1, 16], got 99'),
        ({'steps': 0}, 'steps must be in [1, 1000], got 0'),
        ({'guidance_scale': 1000}, 'guidance_scale must be in [1, 100], got 1000.0'),
        ({'seed': 2**32}, 'seed must be in [0, 4294967295], got 4294967296'),
        ({'prompts': []}, 'prompts has 0 entries but must have 1 to 16'),
        ({'prompts': ['x' * 1001]}, 'prompts[0] has 1001 characters but may have 1000; shorten it'),
        ({'models': ['../x']}, "models holds '../x' but may hold 'model', 'base_model' and steps of checkpoints"),
        ({'models': ['3']}, "the run rex has no model '3'; it has: 20, base_model"),
        ({'num_images': '2'}, 'body.num_images: Input should be a valid integer'),
        ({'stepz': 2}, 'body.stepz: Extra inputs are not permitted'),
        (
            {'sampler': 'x'},
            "body.sampler: Input should be 'ddpm', 'ddim', 'dpmsolver++', 'euler', 'euler_ancestral', "
            "'heun' or 'unipc'",
        ),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(changed, sentence, asked, tmp_path):
    assert error(asked.post('/api/runs/rex/generate', json={**ASKED, **changed})) == (422, sentence)
    assert not (tmp_path / 'rex' / 'generated').exists()


def test_what_is_not_there(asked):
    assert error(asked.post('/api/runs/cat/generate', json=ASKED)) == (404, "there is no run 'cat'")
    assert error(asked.get('/api/runs/rex/generate/1')) == (404, 'the run rex has no request 1 for images')
    assert error(asked.get('/api/runs/rex/generate/x'))[0] == 422
    assert error(asked.post('/api/runs/rex/generate/1/cancel'))[0] == 404
    asked.post('/api/runs/rex/generate', json=ASKED)
    assert error(asked.get('/api/runs/rex/generate/1/grid')) == (404, 'request 1 of rex has no sheet yet')
    assert error(asked.delete('/api/runs/rex/generate/1')) == (
        409,
        'request 1 of rex is not answered yet; cancel it first',
    )
    assert asked.post('/api/runs/rex/generate/1/cancel').json()['doing'] == 'stops after the images at hand'


@pytest.mark.parametrize('name', ['..%2f..%2fconfig', '%2e%2e', 'grid', '000_01.png', '..', '000_99'])
def test_no_path_of_a_client_leads_anywhere(name, asked, tmp_path):
    asked.post('/api/runs/rex/generate', json=ASKED)
    answer(tmp_path / 'rex')
    for url in (f'20/{name}', f'{name}/000_01', f'20/{name}/metadata'):
        response = asked.get(f'/api/runs/rex/generate/1/images/{url}')
        assert response.status_code in (404, 405) and 'instance_prompt' not in response.text


def test_the_guard_stands_before_it(asked, tmp_path):
    for headers, status in (
        ({'authorization': 'Bearer no'}, 401),
        ({'host': 'evil.example'}, 421),
        ({'origin': 'http://evil.example'}, 403),
    ):
        assert error(asked.post('/api/runs/rex/generate', json=ASKED, headers=headers))[0] == status
    body = {**ASKED, 'negative_prompt': 'x' * 2**20}
    assert error(asked.post('/api/runs/rex/generate', json=body))[0] == 413
    assert not (tmp_path / 'rex' / 'generated').exists()


def test_openapi_has_fields_and_limits(asked):
    described = asked.get('/api/openapi.json').json()
    fields = described['components']['schemas']['Generate']['properties']
    assert (fields['num_images']['minimum'], fields['num_images']['maximum']) == (1, 16)
    assert all(one.get('description') or name == 'sampler' for name, one in fields.items())
    assert '/api/runs/{run}/generate/{number}/images/{model}/{image}/metadata' in described['paths']
