"""Asks a server (serve.py) for runs from a Python program; standard library alone, so that the file can be copied.

from dreambooth_jax.client import Client

client = Client('http://127.0.0.1:8124/?token=...')  # the address that serve has printed
photos = client.upload(Path('photos/rex').iterdir())
print(*client.check(photos), sep='\\n')
client.start('rex', photos=photos, preset='sdxl', settings={'base.steps': 500})
for name, values in client.events('rex'):
    print(name, values)
for asked in client.generate('rex', ['a sks dog on the beach'], models=['best', 'base_model']):
    print(asked['state'], asked['doing'], asked['done'])
client.download(asked['grid'], 'grid.png')
"""

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_ENDED = ('finished', 'failed', 'stopped')
_ANSWERED = ('done', 'failed', 'cancelled')
_AWAY = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


class ServerError(Exception):
    """The server refused; the message is its sentence, and `status` the HTTP status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Client:
    """Asks one server. Whatever it returns is what the API describes in /api/openapi.json.

    Args:
      address: the one that serve has printed, with the token.
    """

    def __init__(self, address: str):
        parts = urllib.parse.urlsplit(address)
        self._root = f'{parts.scheme}://{parts.netloc}'
        self._token = urllib.parse.parse_qs(parts.query).get('token', [''])[0]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer to one request.

        Args:
          body: bytes as they are, anything else as JSON; None: nothing.

        Raises:
          ServerError: if the server refuses.
        """
        with self._open(method, path, body) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def upload(self, photos: Iterable[str | Path], name: str | None = None) -> str:
        """Uploads photos into a new folder and returns its name.

        Raises:
          ServerError: if the server refuses one; those before it stay.
        """
        folder = self.ask('POST', '/api/photos', {'name': name})['name']
        for path in map(Path, photos):
            self.ask('POST', f'/api/photos/{folder}?name={urllib.parse.quote(path.name)}', path.read_bytes())
        return folder

    def check(self, photos: str, side: int = 512) -> list[dict[str, Any]]:
        """Returns what is wrong with uploaded photos, the worst first; see the API for what each finding has.

        Args:
          photos: what `upload` has returned.
          side: of the crops that the model is trained on, in pixels.

        Raises:
          ServerError: if there are no such photos, or none that can be read.
        """
        return self.ask('GET', f'/api/photos/{photos}/findings?side={side}')

    def start(
        self,
        name: str,
        *,
        photos: str | None = None,
        config: str = 'dog',
        preset: str = '',
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queues a new run and returns it.

        Args:
          name: the name of its folder.
          photos: what `upload` has returned; None: the settings name them.
          config, preset: a settings file of the server's, and what stands after its colon.
          settings: dotted names and values, where they differ.

        Raises:
          ServerError: if the server refuses.
        """
        body = {'name': name, 'photos': photos, 'config': config, 'preset': preset, 'settings': dict(settings or {})}
        return self.ask('POST', '/api/runs', body)

    def events(self, run: str, after: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields ('metrics', numbers) and ('run', run) until the run has ended; it goes on if the connection breaks.

        Args:
          after: the last line of metrics that is known, such as 'base:120'.

        Raises:
          ServerError: if the server refuses.
        """
        while True:
            with (
                contextlib.suppress(*_AWAY),
                self._open('GET', f'/api/runs/{run}/events?after={after}') as answer,
            ):
                for name, data, number in _events(answer):
                    after = number or after
                    yield name, data
                    if name == 'run' and data['state'] in _ENDED:
                        return
            time.sleep(1)

    def generate(self, run: str, prompts: Iterable[str], **fields: Any) -> Iterator[dict[str, Any]]:
        """Asks for images of a run's models, and yields the request as it changes until it is answered.

        The last one has the addresses of its images and its sheet, for `download`. It goes on if the server is away.

        Args:
          prompts: what to generate.
          **fields: further fields of the request, such as models=['best', 'base_model'], num_images=4 or seed=1.

        Raises:
          ServerError: if the server refuses.
        """
        asked = self.ask('POST', f'/api/runs/{run}/generate', {'prompts': list(prompts), **fields})
        yield asked
        while asked['state'] not in _ANSWERED:
            time.sleep(0.5)
            before = asked
            with contextlib.suppress(*_AWAY):
                asked = self.ask('GET', f'/api/runs/{run}/generate/{asked["number"]}')
            if asked != before:
                yield asked

    def download(self, url: str, path: str | Path) -> None:
        """Writes what lies at an address of the API, such as a `url` of /api/runs/{run}/exports, to a file.

        Raises:
          ServerError: if the server refuses.
        """
        with self._open('GET', url) as answer, Path(path).open('wb') as file:
            while piece := answer.read(2**20):
                file.write(piece)

    def _open(self, method: str, path: str, body: Any = None):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = 'application/octet-stream' if isinstance(body, bytes) else 'application/json'
        headers = {'Authorization': f'Bearer {self._token}', 'Content-Type': kind}
        request = urllib.request.Request(self._root + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            text = error.read().decode('utf-8', 'replace')
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)['error']
            raise ServerError(text.strip(), error.code) from None


def _events(lines: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any], str]]:
    told: dict[str, str] = {}
    for line in lines:
        field, _, value = line.decode('utf-8').rstrip('\n').partition(': ')
        if field:
            told[field] = value
            continue
        if 'data' in told:
            yield told['event'], json.loads(told['data']), told.get('id', '')
        told = {}
