"""The program serve as a process: what it listens on, what it survives, and that it never loads JAX."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from dreambooth_jax.client import Client
from tests.support.served import CONFIGS, Server, image_bytes, write_run

WITHOUT_JAX = """
import sys
from pathlib import Path
from tests.support.served import client, desk, hold, image_bytes, write_run
served = desk(Path({runs!r}))
asked = client(served)
asked.post('/api/photos', json={{'name': 'rex'}})
asked.post('/api/photos/rex', content=image_bytes())
asked.post('/api/runs/dog/generate', json={{'prompts': ['a dog']}})
served.generations.tend()
asked.post('/api/runs', json={{'name': 'rex', 'photos': 'rex', 'preset': 'sdxl'}})
for path in ('/', '/new', '/photos', '/photos/rex', '/runs/dog', '/runs/rex', '/api/runs', '/api/runs/dog/metrics',
             '/api/photos/rex/001.png/crop', '/api/settings', '/api/openapi.json', '/api/runs/dog/exports',
             '/runs/dog/try', '/api/runs/dog/models', '/api/runs/dog/generate'):
    answer = asked.get(path)
    assert answer.status_code == 200, (path, answer.text)
import dreambooth_jax.serve, uvicorn
wrong = [name for name in ('jax', 'jaxlib', 'flax', 'torch', 'transformers') if name in sys.modules]
sys.exit(f'{{wrong}} is loaded' if wrong else 0)
"""


def run(*flags, **env):
    command = [sys.executable, '-m', 'dreambooth_jax.serve', *flags]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=CONFIGS.parent, env={**os.environ, **env}, timeout=60
    )


def test_nothing_of_it_loads_jax(tmp_path):
    write_run(tmp_path / 'dog', 20, finished=True)
    code = WITHOUT_JAX.format(runs=str(tmp_path))
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=CONFIGS.parent, timeout=120
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_nothing_else_imports_it():
    """The trainer needs none of the packages of the pages."""
    package = CONFIGS.parent / 'dreambooth_jax'
    words = ('fastapi', 'starlette', 'uvicorn', 'jinja2', 'psutil', 'dreambooth_jax.web')
    named = [
        path.relative_to(package)
        for path in package.rglob('*.py')
        if path.parent.name != 'web'
        and any(f'import {word}' in (text := path.read_text()) or f'from {word}' in text for word in words)
    ]
    assert list(map(str, named)) == ['serve.py']


def test_it_starts_at_once_and_listens_on_this_machine_alone(tmp_path):
    with Server(tmp_path / 'runs') as server:
        used = psutil.Process(server.process.pid).cpu_times()
        assert used.user + used.system < 3  # 0.8 s of an idle machine
        addresses = {one.laddr.ip for one in psutil.Process(server.process.pid).net_connections('inet')}
        assert addresses == {'127.0.0.1'}
        assert Client(server.address).ask('GET', '/api/runs') == []
        assert (
            'DreamBooth-JAX'
            in urllib.request.urlopen(
                urllib.request.Request(
                    server.address.partition('?')[0],
                    headers={'Authorization': f'Bearer {server.address.partition("=")[2]}'},
                )
            )
            .read()
            .decode()
        )
    assert server.process.returncode in (0, -signal.SIGTERM, 143)


def test_a_killed_server_starts_again_with_the_same_token_and_runs(tmp_path):
    write_run(tmp_path / 'dog', 5)
    server = Server(tmp_path)
    before = Client(server.address).ask('GET', '/api/runs')
    server.end(kill=True)
    with Server(tmp_path, port=server.port) as again:
        assert again.address == server.address and Client(again.address).ask('GET', '/api/runs') == before


def test_a_hundred_requests_at_once_are_answered(tmp_path):
    write_run(tmp_path / 'dog', 20, finished=True)
    with Server(tmp_path) as server:
        asked = Client(server.address)
        asked.ask('POST', '/api/photos', {'name': 'rex'})
        asked.ask('POST', '/api/photos/rex', image_bytes())
        streams = [
            urllib.request.urlopen(
                urllib.request.Request(
                    f'http://127.0.0.1:{server.port}/api/runs/dog/events',
                    headers={'Authorization': f'Bearer {asked._token}'},
                ),
                timeout=60,
            )
            for _ in range(20)
        ]
        paths = ['/api/runs', '/api/runs/dog', '/api/runs/dog/metrics', '/api/photos/rex', '/api/settings'] * 20
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            found = list(pool.map(lambda path: asked.ask('GET', path), paths))
        assert len(found) == 100 and all(found)
        for stream in streams:
            assert stream.readline() == b'retry: 1000\n'
            stream.close()


@pytest.mark.slow
def test_plans_have_the_price_that_the_server_was_given(tmp_path):
    body = {'settings': {'base.steps': 2, 'prior.weight': 0.0}}
    with Server(tmp_path, '--price_per_hour=1.20 EUR') as server:
        told = Client(server.address).ask('POST', '/api/plan', body)
    assert told['price'].endswith(' EUR at 1.20 EUR an hour') and told['plan'].endswith(told['price'])
    assert told['cost'] == pytest.approx(1.2 * told['seconds'] / 3600)


def test_a_second_server_of_the_same_runs_is_refused(tmp_path):
    with Server(tmp_path):
        found = run(f'--runs={tmp_path}', '--port=0')
    assert found.returncode == 1 and 'is in use by process' in found.stderr
    assert 'open the page of that server' in found.stderr and len(found.stderr.splitlines()) == 1


def test_what_is_wrong_is_said_in_a_sentence(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        found = run(f'--runs={tmp_path}', f'--port={taken.getsockname()[1]}')
    assert found.returncode == 1 and 'cannot be listened on' in found.stderr and len(found.stderr.splitlines()) == 1
    found = run(f'--runs={tmp_path}', '--configs=nowhere')
    assert found.returncode == 1 and '--configs=nowhere is no folder' in found.stderr
    found = run(f'--runs={tmp_path}', '--price_per_hour=cheap')
    assert found.returncode == 1 and "--price_per_hour is 'cheap' but must be" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    found = run(f'--runs={tmp_path}', '--devices=0,1', '--devices=1')
    assert found.returncode == 1 and '--devices=0,1 and --devices=1 have a device in common' in found.stderr
    assert len(found.stderr.splitlines()) == 1
    found = run()
    assert found.returncode == 1 and '--runs must be given' in found.stderr


@pytest.mark.parametrize('package', ['uvicorn', 'fastapi', 'jinja2', 'psutil'])
def test_a_missing_package_is_named(package, tmp_path):
    (tmp_path / f'{package}.py').write_text(f'raise ModuleNotFoundError("No module", name={package!r})')
    found = run(f'--runs={tmp_path}', PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    assert found.returncode == 1 and f"serve needs the package {package}; pip install -e '.[ui]'" in found.stderr


def test_ctrl_c_ends_it_although_pages_are_open(tmp_path):
    write_run(tmp_path / 'dog')
    server = Server(tmp_path)
    asked = Client(server.address)
    stream = asked._open('GET', '/api/runs/dog/events')
    stream.readline()
    server.process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    server.process.wait(30)
    assert time.monotonic() - begun < 15
    with pytest.raises(urllib.error.URLError):
        asked.ask('GET', '/api/runs')
    stream.close()
    server.process.stdout.close()
