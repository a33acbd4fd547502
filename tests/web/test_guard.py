"""Only whoever knows the token is answered, and only on this machine from the server's own pages."""

import stat

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.web import guard
from tests.support.served import BEARER, PORT, TOKEN, client, desk, image_bytes, write_run

HOST = f'127.0.0.1:{PORT}'
COOKIE = f'dreambooth_jax_{PORT}'


@pytest.fixture
def asked(tmp_path):
    write_run(tmp_path / 'dog', 3)
    found = client(desk(tmp_path))
    found.headers.pop('authorization')
    return found


def test_the_token_makes_a_cookie_and_leaves_the_address(asked):
    answer = asked.get(f'/runs/dog?part=all&token={TOKEN}', follow_redirects=False)
    assert answer.status_code == 303 and answer.headers['location'] == '/runs/dog?part=all'
    cookie = answer.headers['set-cookie'].lower()
    assert 'httponly' in cookie and 'samesite=strict' in cookie and 'path=/' in cookie
    assert asked.get('/').status_code == 200  # with the cookie


def test_the_redirect_leads_to_this_server(asked):
    answer = asked.get(f'//other.site/?token={TOKEN}', follow_redirects=False)
    assert answer.headers['location'].startswith('/') and not answer.headers['location'].startswith('//')


@pytest.mark.parametrize(
    'headers',
    [
        {},
        {'authorization': 'Bearer wrong'},
        {'authorization': TOKEN},
        {'authorization': f'Basic {TOKEN}'},
        {'authorization': 'Bearer '},
        {'authorization': 'Bearer ü'.encode()},
        {'cookie': f'{COOKIE}=wrong'},
        {'cookie': f'other={TOKEN}'},
        {'cookie': 'broken"; ='},
    ],
)
@pytest.mark.parametrize('path', ['/', '/api/runs', '/static/app.js', '/api/openapi.json', '/runs/dog', '/x'])
def test_nothing_is_served_without_it(headers, path, asked):
    answer = asked.get(path, headers=headers)
    assert answer.status_code == 401 and 'the token' in answer.text
    assert 'dog' not in answer.text


def test_a_wrong_token_in_the_address_makes_no_cookie(asked):
    answer = asked.get('/?token=wrong')
    assert answer.status_code == 401 and 'set-cookie' not in answer.headers


@pytest.mark.parametrize(
    'headers', [BEARER, {'authorization': f'bearer {TOKEN}'}, {'cookie': f'a=b; {COOKIE}={TOKEN}'}]
)
def test_header_and_cookie(headers, asked):
    assert asked.get('/api/runs', headers=headers).status_code == 200


@pytest.mark.parametrize(
    'host',
    ['evil.example', f'evil.example:{PORT}', '127.0.0.1', '127.0.0.1:1', f'localhost.evil:{PORT}', f'[::]:{PORT}', ''],
)
def test_a_foreign_name_that_leads_here_is_not_served(host, asked):
    """DNS rebinding: the page of evil.example asks evil.example, which has become 127.0.0.1."""
    answer = asked.get('/api/runs', headers={**BEARER, 'host': host})
    assert answer.status_code == 421


def test_localhost_is_this_server(asked):
    assert asked.get('/api/runs', headers={**BEARER, 'host': f'localhost:{PORT}'}).status_code == 200


@pytest.mark.parametrize('method', ['GET', 'POST', 'DELETE', 'PUT'])
@pytest.mark.parametrize('origin', ['http://evil.example', 'null', 'http://127.0.0.1:1', f'https://{HOST}', 'file://'])
def test_a_page_of_another_site_may_not_ask(method, origin, asked, tmp_path):
    headers = {'cookie': f'{COOKIE}={TOKEN}', 'origin': origin}
    assert asked.request(method, '/api/runs/dog/start', headers=headers).status_code == 403
    assert list((tmp_path / '.serve' / 'jobs').iterdir()) == []


@pytest.mark.parametrize(
    ('site', 'status'), [('cross-site', 403), ('same-site', 403), ('same-origin', 201), ('none', 201)]
)
def test_a_browser_that_sends_no_origin_says_the_site(site, status, asked):
    headers = {'cookie': f'{COOKIE}={TOKEN}', 'sec-fetch-site': site}
    assert asked.post('/api/photos', json={}, headers=headers).status_code == status


def test_the_own_page_may_ask(asked):
    headers = {'cookie': f'{COOKIE}={TOKEN}', 'origin': f'http://{HOST}'}
    assert asked.post('/api/photos', json={}, headers=headers).status_code == 201


@pytest.mark.parametrize('path', ['/', '/api/runs', '/x', '/static/app.js', '/api/runs/dog/samples/base/3'])
def test_every_answer_forbids_what_pages_do_not_need(path, asked):
    for headers in (BEARER, {}):
        answer = asked.get(path, headers=headers)
        policy = answer.headers['content-security-policy']
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and 'unsafe' not in policy
        assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert answer.headers['x-content-type-options'] == 'nosniff'
        assert answer.headers['referrer-policy'] == 'no-referrer'
        assert 'access-control-allow-origin' not in answer.headers


def test_long_bodies_are_refused_by_what_they_say_and_by_what_they_are(asked, monkeypatch):
    monkeypatch.setattr(guard, '_MOST_JSON', 1000)
    assert asked.post('/api/runs', json={'name': 'x' * 2000}, headers=BEARER).status_code == 413
    pieces = (b'x' * 100 for _ in range(50))  # without a content-length
    assert asked.post('/api/runs', content=pieces, headers=BEARER).status_code == 413
    asked.post('/api/photos', json={'name': 'rex'}, headers=BEARER)
    assert asked.post('/api/photos/rex', content=image_bytes(), headers=BEARER).status_code == 201
    monkeypatch.setattr(guard, 'MOST_BYTES', 1000)
    pieces = (image_bytes() for _ in range(2))
    assert asked.post('/api/photos/rex', content=pieces, headers=BEARER).status_code == 413
    assert asked.get('/api/photos', headers=BEARER).json() == {'rex': 1}


def test_web_sockets_are_not_there(asked):
    with pytest.raises(Exception), asked.websocket_connect('/', headers=BEARER):  # noqa: B017
        pass


def test_the_token_is_kept_and_only_its_owner_reads_it(tmp_path):
    token = guard.token_in(tmp_path)
    assert len(token) >= 43 and guard.token_in(tmp_path) == token
    assert stat.S_IMODE((tmp_path / guard.TOKEN_FILE).stat().st_mode) == 0o600
    (tmp_path / guard.TOKEN_FILE).write_text('')
    with pytest.raises(ConfigError, match='is damaged; delete it'):
        guard.token_in(tmp_path)
