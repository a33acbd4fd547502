"""The client, against a server."""

import subprocess
import sys
import threading

import pytest

from dreambooth_jax.client import Client, ServerError
from dreambooth_jax.generation.request_queue import RequestQueue
from tests.support.served import CONFIGS, Server, add_metrics, hold, image_bytes, write_run


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp('served') / 'runs') as found:
        found.runs = next(path for path in tmp_path_factory.getbasetemp().glob('served*/runs'))
        yield found


@pytest.fixture
def client(server):
    return Client(server.address)


def test_photos_and_errors(client, tmp_path):
    for number in range(2):
        (tmp_path / f'IMG {number}.jpg').write_bytes(image_bytes(format='JPEG'))
    assert client.upload(sorted(tmp_path.iterdir()), 'rex') == 'rex'
    assert [one['name'] for one in client.ask('GET', '/api/photos/rex')] == ['001.jpg', '002.jpg']
    (tmp_path / 'x.jpg').write_text('no photo')
    with pytest.raises(ServerError, match='x.jpg is text, no photo') as error:
        client.upload([tmp_path / 'x.jpg'])
    assert error.value.status == 415
    with pytest.raises(ServerError, match='config.base.stepz is not a known setting'):
        client.start('rex', settings={'base.stepz': 1})


def test_a_wrong_token(server):
    with pytest.raises(ServerError, match='the token') as error:
        Client(server.address[:-1]).ask('GET', '/api/runs')
    assert error.value.status == 401


def test_events_go_on_until_the_run_has_ended(client, server):
    folder = write_run(server.runs / 'dog', 3)
    hold(folder, 1, 'elsewhere')
    found = []

    def listen():
        found.extend(client.events('dog'))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    add_metrics(folder, [4, 5])
    (folder / '.lock').unlink()
    thread.join(60)
    assert not thread.is_alive()
    assert [data['step'] for name, data in found if name == 'metrics'] == [1, 2, 3, 4, 5]
    assert found[-1][0] == 'run' and found[-1][1]['state'] == 'stopped'


def test_downloads(client, server, tmp_path):
    write_run(server.runs / 'done', 20, finished=True)
    (one,) = client.ask('GET', '/api/runs/done/exports')['downloads']
    client.download(one['url'], tmp_path / 'model.zip')
    assert (tmp_path / 'model.zip').read_bytes()[:2] == b'PK'


def test_images_are_asked_for_until_they_are_there(client, server, tmp_path):
    folder = write_run(server.runs / 'rex', 3)
    hold(write_run(server.runs / 'trains', 3))  # it has the devices, so that no process is started
    asked = client.generate('rex', ['a sks dog'], models=['best', 'base_model'], seed=3)
    first = next(asked)
    assert (first['number'], first['state'], first['request']['models']) == (1, 'queued', ['3', 'base_model'])
    requests = RequestQueue(folder)
    taken = requests.take()
    (taken.folder / 'grid.png').write_bytes(image_bytes())
    requests.write(taken, state='done', done=2)
    *_, last = asked
    assert (last['state'], last['grid']) == ('done', '/api/runs/rex/generate/1/grid')
    client.download(last['grid'], tmp_path / 'grid.png')
    assert (tmp_path / 'grid.png').read_bytes() == image_bytes()
    with pytest.raises(ServerError, match='num_images must be in'):
        next(client.generate('rex', ['a dog'], num_images=17))


def test_it_needs_nothing_but_itself():
    """The file can be copied into another project."""
    code = (
        "import runpy, sys; runpy.run_path('dreambooth_jax/client.py'); "
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'dreambooth_jax', 'httpx')))"
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=CONFIGS.parent, timeout=60).returncode == 0
