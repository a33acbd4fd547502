"""A small Hugging Face hub on this machine: what huggingface_hub needs to upload a model's files and to read them back.

It speaks the older protocol for large files (git LFS), which the library uses where hf_xet is switched off. It holds
everything in memory, refuses what the hub refuses, and remembers what it was asked, tokens included.
"""

import base64
import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml
from huggingface_hub import constants
from huggingface_hub.utils import sha

TOKENS = {'write-token': ('ana', 'write'), 'read-token': ('ana', 'read'), 'other-token': ('bo', 'write')}


class Repository:
    """A repository: its files in all, the titles of its commits, and whether only its owner sees it."""

    def __init__(self, private):
        self.private, self.files, self.commits = private, {}, []

    @property
    def sha(self):
        return hashlib.sha1(repr((self.commits, self.files)).encode()).hexdigest()

    @property
    def head(self):
        """What the head of its card says; None: it has no card."""
        card = self.files.get('README.md')
        return None if card is None else yaml.safe_load(card.decode().split('---\n')[1])


class Hub:
    """The hub.

    Attributes:
      repositories: name -> Repository.
      large: sha256 -> a large file that was uploaded, of a commit or not.
      uploads: the sha256 of every large file in the order in which they came.
      asked: method and path of every request.
      refused_upload: number of the large file from which on uploads are refused; None: none is.
      bent: a path in a repository whose content the hub loses.
    """

    def __init__(self):
        self.repositories, self.large, self.uploads, self.asked = {}, {}, [], []
        self.refused_upload, self.bent = None, None
        self.counting = threading.Lock()


def _handler(hub, endpoint):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *arguments):
            pass

        def answer(self, status, content=b'', **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {'Content-Length': str(len(body)), **headers}.items():
                self.send_header(name.replace('_', '-'), value)
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(body)

        def user(self):
            return TOKENS.get(self.headers.get('Authorization', '').removeprefix('Bearer '))

        def handle_one(self):
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f'{self.command} {path}')
            if path.startswith('/large/'):
                return self.keep(path.removeprefix('/large/'), body)
            if self.headers.get('Authorization') and self.user() is None:
                return self.answer(401, {'error': 'Invalid credentials'})
            match path.strip('/').split('/'):
                case ['api', 'whoami-v2']:
                    name, role = self.user()
                    return self.answer(200, {'name': name, 'auth': {'accessToken': {'role': role}}})
                case ['api', 'validate-yaml']:
                    return self.validate(json.loads(body)['content'])
                case ['api', 'repos', 'create']:
                    return self.create(json.loads(body))
                case ['api', 'models', owner, name, *rest]:
                    return self.of_repository(f'{owner}/{name}', rest, body)
                case [owner, name, 'info', 'lfs', 'objects', 'batch'] if name.endswith('.git'):
                    return self.batch(json.loads(body))
                case [owner, name, 'resolve', _, *rest]:
                    return self.resolve(f'{owner}/{name}', '/'.join(rest))
            return self.answer(404, {'error': path})

        do_GET = do_POST = do_PUT = do_HEAD = handle_one

        def seen(self, name):
            """The repository, if this user sees it."""
            found, user = hub.repositories.get(name), self.user()
            return found if found and not (found.private and (user is None or user[0] != name.split('/')[0])) else None

        def create(self, asked):
            user, role = self.user()
            owner = asked['organization'] or user
            name = f'{owner}/{asked["name"]}'
            if owner != user or role != 'write':
                return self.answer(403, {'error': f"You don't have the rights to create a model under {owner}"})
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(name, Repository(asked.get('visibility') == 'private'))
            return self.answer(status, {'url': f'{endpoint()}/{name}'})

        def validate(self, content):
            try:
                head = yaml.safe_load(content.split('---\n')[1])
                wrong = [key for key in ('license', 'tags') if key not in head or not head[key]]
                wrong += [str(one) for one in head.get('widget', ()) if not {'text', 'output'} <= one.keys()]
            except (yaml.YAMLError, IndexError) as error:
                wrong = [str(error)]
            status = 400 if wrong else 200
            return self.answer(status, {'errors': [{'message': one} for one in wrong], 'warnings': []})

        def of_repository(self, name, rest, body):
            found = self.seen(name)
            if found is None:
                return self.answer(404, {'error': 'Repository not found'}, X_Error_Code='RepoNotFound')
            match rest:
                case [] | ['revision', _]:
                    files = [{'rfilename': path} for path in found.files]
                    told = {'id': name, 'private': found.private, 'sha': found.sha, 'siblings': files, 'tags': []}
                    return self.answer(200, told | {'cardData': found.head})
                case ['preupload', _]:
                    files = [
                        {'path': one['path'], 'shouldIgnore': False, 'uploadMode': _mode(one['path'])}
                        for one in json.loads(body)['files']
                    ]
                    return self.answer(200, {'files': files})
                case ['commit', _]:
                    return self.commit(name, found, [json.loads(line) for line in body.splitlines()])
                case ['paths-info', _]:
                    paths = urllib.parse.parse_qs(body.decode())['paths']
                    return self.answer(200, [_info(path, found.files[path]) for path in paths if path in found.files])
            return self.answer(404, {'error': '/'.join(rest)})

        def commit(self, name, found, lines):
            if self.user() != (name.split('/')[0], 'write'):
                return self.answer(403, {'error': 'Forbidden'})
            for line in lines:
                value = line['value']
                if line['key'] == 'header':
                    found.commits.append(value['summary'])
                elif line['key'] == 'file':
                    found.files[value['path']] = base64.b64decode(value['content'])
                elif line['key'] == 'lfsFile':
                    found.files[value['path']] = hub.large[value['oid']]
            if hub.bent in found.files:
                found.files[hub.bent] += b'?'
            url = f'{endpoint()}/{name}/commit/{found.sha}'
            return self.answer(200, {'commitUrl': url, 'commitOid': found.sha})

        def batch(self, asked):
            objects = []
            for one in asked['objects']:
                upload = {'upload': {'href': f'{endpoint()}/large/{one["oid"]}'}}
                objects.append(one if one['oid'] in hub.large else one | {'actions': upload})
            return self.answer(200, {'transfer': 'basic', 'objects': objects})

        def keep(self, oid, body):
            with hub.counting:  # uploads come side by side
                if hub.refused_upload is not None and len(hub.uploads) >= hub.refused_upload:
                    return self.answer(400, {'error': 'the line is bad'})
                assert hashlib.sha256(body).hexdigest() == oid
                hub.uploads.append(oid)
                hub.large[oid] = body
            return self.answer(200)

        def resolve(self, name, path):
            found = self.seen(name)
            if found is None:
                return self.answer(404, {'error': 'Repository not found'}, X_Error_Code='RepoNotFound')
            if path not in found.files:
                return self.answer(404, {'error': 'Entry not found'}, X_Error_Code='EntryNotFound')
            etag = hashlib.sha256(found.files[path]).hexdigest()
            return self.answer(200, found.files[path], ETag=f'"{etag}"', X_Repo_Commit=found.sha)

    return Handler


def _mode(path):
    return 'lfs' if path.endswith(('.safetensors', '.png')) else 'regular'


def _info(path, data):
    found = {'type': 'file', 'path': path, 'size': len(data), 'oid': sha.git_hash(data)}
    if _mode(path) == 'lfs':
        found['lfs'] = {'oid': hashlib.sha256(data).hexdigest(), 'size': len(data), 'pointerSize': 1}
    return found


@contextlib.contextmanager
def running() -> Iterator[tuple[Hub, str]]:
    """Yields a hub and its address; it ends after the block."""
    hub = Hub()
    server = ThreadingHTTPServer(('127.0.0.1', 0), _handler(hub, lambda: address))
    address = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    try:
        yield hub, address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def in_this_process(monkeypatch, tmp_path, token: str | None = 'write-token') -> Iterator[Hub]:
    """Yields a hub that huggingface_hub takes for the hub, with this token alone, in this process."""
    with running() as (hub, address):
        use(monkeypatch, tmp_path, address, token)
        yield hub


def use(monkeypatch, tmp_path, address: str, token: str | None) -> None:
    """Lets huggingface_hub use the hub at an address with this token alone."""
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    files = f'{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', files)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub_cache'))
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no_token'))
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv('HF_TOKEN', token)
