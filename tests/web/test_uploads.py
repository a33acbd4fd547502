"""Files are taken in a few at a time, however many are sent at once."""

import asyncio
import concurrent.futures
import gc
import tracemalloc

import psutil
import pytest

from dreambooth_jax.client import Client, ServerError
from dreambooth_jax.web import uploads
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.uploads import Uploads
from tests.support.served import Server, image_bytes


class Sent:
    """A request whose body comes in two pieces; it counts how many bodies are read and not yet let go."""

    held = most = 0

    def __init__(self, pause=0.0, kind='image/png'):
        self.headers, self._pause = {'content-type': kind}, pause

    async def stream(self):
        Sent.held += 1
        Sent.most = max(Sent.most, Sent.held)
        yield b'a' * 5
        await asyncio.sleep(self._pause)
        yield b'b' * 5


@pytest.fixture(autouse=True)
def counted():
    Sent.held = Sent.most = 0


async def take(takes, sent):
    async with takes.file_in(sent) as data:
        await asyncio.sleep(0.01)
        assert data == b'aaaaabbbbb'
        Sent.held -= 1
    return len(data)


def test_no_more_than_a_few_are_held_and_the_others_wait():
    async def all_at_once():
        takes = Uploads(at_once=3, most_waiting=20)
        return await asyncio.gather(*(take(takes, Sent()) for _ in range(20)))

    assert asyncio.run(all_at_once()) == [10] * 20 and Sent.most == 3


def test_whoever_comes_when_too_many_wait_is_told_to_come_again():
    async def all_at_once():
        takes = Uploads(at_once=1, most_waiting=2)
        found = await asyncio.gather(*(take(takes, Sent()) for _ in range(5)), return_exceptions=True)
        return found, await take(takes, Sent())  # there is room again

    found, later = asyncio.run(all_at_once())
    assert found[:3] == [10] * 3 and later == 10
    assert [(one.status, str(one)) for one in found[3:]] == [
        (503, '2 uploads wait already; send this one again when some of them are done')
    ] * 2


def test_a_file_that_stops_coming_makes_way(monkeypatch):
    monkeypatch.setattr(uploads, '_LONGEST_PAUSE', 0.05)

    async def one_stops():
        takes = Uploads(at_once=1)
        stopped = asyncio.create_task(take(takes, Sent(pause=60)))
        await asyncio.sleep(0.01)
        assert await take(takes, Sent()) == 10
        await stopped

    with pytest.raises(Refused, match='^nothing has come for 0 seconds; send the file again$') as error:
        asyncio.run(one_stops())
    assert error.value.status == 408


def test_a_file_that_trickles_makes_way(monkeypatch):
    monkeypatch.setattr(uploads, '_LONGEST_PAUSE', 0.05)

    class Trickle(Sent):
        async def stream(self):
            while True:
                await asyncio.sleep(0.01)
                yield b'x'

    async def one_trickles():
        takes = Uploads(at_once=1)
        trickling = asyncio.create_task(take(takes, Trickle()))
        await asyncio.sleep(0.01)
        assert await take(takes, Sent()) == 10
        await trickling

    with pytest.raises(Refused, match=r'^only \d+ bytes have come in 0 seconds; send the file again$') as error:
        asyncio.run(one_trickles())
    assert error.value.status == 408


def test_an_upload_that_fails_or_is_cancelled_leaves_its_turn_to_the_next():
    async def three():
        takes = Uploads(at_once=1)
        with pytest.raises(KeyError):
            async with takes.file_in(Sent()):
                raise KeyError
        waits = asyncio.create_task(take(takes, Sent(pause=60)))
        others = asyncio.create_task(take(takes, Sent()))
        await asyncio.sleep(0.01)
        waits.cancel()
        return await others

    assert asyncio.run(three()) == 10


def test_a_form_is_refused():
    async def send():
        await take(Uploads(), Sent(kind='Multipart/Form-Data; boundary=x'))

    with pytest.raises(Refused, match='^the body is a form; send the bytes of the file alone') as error:
        asyncio.run(send())
    assert error.value.status == 415


def test_the_bytes_are_held_once():
    """What Python itself allocates is counted: the memory of a process that runs other tests changes by itself."""

    class Large(Sent):
        async def stream(self):
            for _ in range(64):
                yield b'x' * 2**20

    async def measured():
        async with Uploads().file_in(Large()) as data:
            gc.collect()
            return len(data), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        length, held = asyncio.run(measured())
    finally:
        tracemalloc.stop()
    assert length == 64 * 2**20 and length <= held < 100 * 2**20


@pytest.mark.slow
def test_many_large_uploads_at_once_need_no_more_memory_than_a_few(tmp_path):
    """Twenty-four bodies of 40 MB: 1 GB if all were held."""
    photo = image_bytes(64, 48) + bytes(40 * 2**20)  # what follows the image is ignored, and kept
    with Server(tmp_path) as server:
        asked = Client(server.address)
        asked.ask('POST', '/api/photos', {'name': 'rex'})
        asked.ask('POST', '/api/photos/rex', image_bytes())  # everything that is needed is imported now
        process, most = psutil.Process(server.process.pid), 0
        before = process.memory_info().rss
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            sent = [pool.submit(asked.ask, 'POST', '/api/photos/rex', photo) for _ in range(24)]
            while not all(one.done() for one in sent):
                most = max(most, process.memory_info().rss)
                concurrent.futures.wait(sent, 0.02)
        names = {one.result()['name'] for one in sent}
    assert len(names) == 24 and most - before < 300 * 2**20


@pytest.mark.slow
def test_what_is_sent_at_once_is_answered_or_refused_in_a_sentence(tmp_path):
    with Server(tmp_path) as server:
        asked = Client(server.address)
        asked.ask('POST', '/api/photos', {'name': 'rex'})

        def send(_):
            try:
                return asked.ask('POST', '/api/photos/rex', image_bytes(400, 300))['width']
            except ServerError as error:
                return error.status, 'send this one again' in str(error)

        with concurrent.futures.ThreadPoolExecutor(90) as pool:
            found = list(pool.map(send, range(90)))
        assert set(found) <= {400, (503, True)} and found.count(400) >= uploads.AT_ONCE + uploads.MOST_WAITING
