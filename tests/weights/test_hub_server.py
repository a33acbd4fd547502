"""The hub's real client against a server on the loopback interface, as a user meets it: in a process of its own."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.weights import single_file
from tests.support import tiny_latent_pipelines

COMMIT, OLDER = 'c' * 40, 'd' * 40
REVISIONS = {'main': COMMIT, 'v1': OLDER, COMMIT: COMMIT, OLDER: OLDER}
# What a repository of this kind holds besides, none of which is needed.
BESIDES = (
    'README.md',
    'v1-5.ckpt',
    'v1-5.safetensors',
    'unet/diffusion_pytorch_model.bin',
    'unet/diffusion_pytorch_model.fp16.safetensors',
    'unet/diffusion_pytorch_model.non_ema.safetensors',
    'text_encoder/pytorch_model.bin',
    'text_encoder/model.fp16.safetensors',
    'safety_checker/model.safetensors',
)


class Hub(http.server.ThreadingHTTPServer):
    """The few endpoints of the hub that a download asks.

    Attributes:
      repositories: {'owner/model': {path: content}}. gated: names that are there and may not be had.
      served: paths of the files whose contents were sent.
    """

    def __init__(self, repositories, gated):
        super().__init__(('127.0.0.1', 0), Answer)
        self.repositories, self.gated, self.served = repositories, gated, []
        self.url = f'http://127.0.0.1:{self.server_port}'


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix('/')
        api = path.startswith('api/models/')
        owner, model, *rest = path.removeprefix('api/models/').split('/')
        name = f'{owner}/{model}'
        if name in self.server.gated:
            return self.answer(403, headers={'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'ask for access'})
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer(404, headers={'X-Error-Code': 'RepoNotFound'})
        commit = REVISIONS.get(rest[1] if len(rest) > 1 else 'main')
        if commit is None:
            return self.answer(404, headers={'X-Error-Code': 'RevisionNotFound'})
        if not api:  # resolve/<revision>/<file>
            file = '/'.join(rest[2:])
            content = files[file]
            if self.command == 'GET':
                self.server.served.append(f'{name}/{file}')
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(200, content, {'X-Repo-Commit': commit, 'ETag': f'"{etag}"'})
        if rest[:1] == ['tree']:
            return self.answer(
                200,
                json.dumps(
                    [
                        {'type': 'file', 'path': file, 'size': len(content), 'oid': hashlib.sha1(content).hexdigest()}
                        for file, content in files.items()
                    ]
                ).encode(),
            )
        siblings = [{'rfilename': file} for file in files]
        return self.answer(200, json.dumps({'id': name, 'sha': commit, 'siblings': siblings}).encode())

    def answer(self, status, content=b'', headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def hub():
    model = contents(tiny_latent_pipelines.folder('sd1'))
    clip = {Path(name).name: content for name, content in model.items() if name.startswith('tokenizer/')}
    repositories = {
        'owner/model': model | dict.fromkeys(BESIDES, b'not needed'),
        'openai/clip-vit-large-patch14': clip | {'config.json': b'{}', 'model.safetensors': b'not needed'},
    }
    server = Hub(repositories, gated=('owner/gated',))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# Tries every name and tells what each gave.
SCRIPT = """
import json, sys
from pathlib import Path
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.text.tokenize import Tokenizer

told = {}
for name in sys.argv[1:]:
    try:
        model, _, revision = name.partition('@')
        base = Cascade.load(model, revisions=(revision or None, None)).base
        files = sorted(str(file.relative_to(base.folder)) for file in base.folder.rglob('*') if file.is_file())
        told[name] = {
            'files': files, 'commit': base.folder.name, 'class': base.class_name,
            'parameters': sum(v.size for v in base.denoiser.params.values()),
            'ids': Tokenizer.load(base.tokenizers['text_encoder'])(['a dog'])[0].tolist()}
    except ValueError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


def loaded(url, cache, *names):
    environment = {**os.environ, 'HF_ENDPOINT': url, 'HF_HOME': str(cache), 'HF_HUB_OFFLINE': '0'}
    ended = subprocess.run(
        [sys.executable, '-c', SCRIPT, *map(str, names)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_and_then_read_without_the_hub(hub, tmp_path):
    needed = sorted(contents(tiny_latent_pipelines.folder('sd1')))
    single = tmp_path / 'alone' / 'x.safetensors'
    single.parent.mkdir()
    single_file.write_pipeline(read_pipeline(tiny_latent_pipelines.folder('sd1')), single)
    told = loaded(hub.url, tmp_path / 'cache', 'owner/model', 'owner/gated', 'owner/missing', single)
    assert told['owner/model']['class'] == 'StableDiffusionPipeline' and told['owner/model']['commit'] == COMMIT
    assert told['owner/model']['files'] == needed
    tokenizer = ('tokenizer.json', 'tokenizer_config.json')
    assert sorted(hub.served) == sorted(
        [f'owner/model/{file}' for file in needed] + [f'openai/clip-vit-large-patch14/{file}' for file in tokenizer]
    )
    assert told['owner/gated'] == (
        "model 'owner/gated' is behind a licence; accept it on https://huggingface.co/owner/gated and log in with "
        '`hf auth login`.'
    )
    assert told['owner/missing'].startswith(
        "model 'owner/missing' is neither a folder here nor a model on the hub that you may see; it must be 'storybook'"
    )
    assert told[str(single)]['ids'] == told['owner/model']['ids']
    assert told[str(single)]['parameters'] == told['owner/model']['parameters']

    versions = loaded(hub.url, tmp_path / 'cache', 'owner/model@v1', 'owner/model@v2')
    assert versions['owner/model@v1']['commit'] == OLDER
    assert versions['owner/model@v2'] == (
        "model 'owner/model' has no revision 'v2' on the hub; give a branch, tag or commit that "
        'https://huggingface.co/owner/model lists.'
    )

    nowhere = 'http://127.0.0.1:9'
    again = loaded(nowhere, tmp_path / 'cache', 'owner/model', single, 'owner/other')
    assert again['owner/model'] == told['owner/model'] and again[str(single)] == told[str(single)]
    assert again['owner/other'] == (
        "model 'owner/other' is no folder here, and the hub cannot be reached and its cache does not hold it; download "
        'it first.'
    )
