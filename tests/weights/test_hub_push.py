"""Uploads to a hub on this machine: what arrives, what is refused, and what goes on where it broke off."""

import subprocess
import sys

import pytest

from dreambooth_jax.weights import hub_push
from dreambooth_jax.weights.errors import WeightsError
from tests.support import loopback_hub, script

NAME = 'ana/rex'
CARD = '---\nlicense: mit\ntags: ["x"]\nbase_model: "owner/base"\n---\n# Rex\n'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with loopback_hub.in_this_process(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture
def files(tmp_path):
    """A card as text, two large files, a small one."""
    for name, content in {'a.safetensors': b'a' * 9999, 'b.safetensors': b'b' * 9, 'c.json': b'{}'}.items():
        (tmp_path / name).write_bytes(content)
    paths = {f'x/{path.name}': path for path in sorted(tmp_path.iterdir()) if path.is_file()}
    return {'README.md': CARD, **paths}


def push(files, private=True):
    return hub_push.push(NAME, files, private=private, message='a commit')


@pytest.mark.parametrize('private', [True, False])
def test_what_is_pushed_arrives_in_one_commit_byte_for_byte(hub, files, private):
    assert hub_push.look(NAME) == (NAME, False, True, None, ())
    assert push(files, private).endswith('/ana/rex')
    there = hub.repositories[NAME]
    assert there.private == private and there.commits == ['a commit']
    assert there.files.pop('README.md') == CARD.encode()
    assert there.files == {name: path.read_bytes() for name, path in files.items() if name != 'README.md'}
    there.files['README.md'] = CARD.encode()
    assert hub_push.look(NAME) == (NAME, True, private, CARD, ('owner/base',))


def test_a_second_push_sends_what_is_new_and_leaves_what_else_is_there(hub, files):
    push(files)
    hub.repositories[NAME].files['own.txt'] = b'own'
    before = len(hub.uploads)
    files['x/b.safetensors'].write_bytes(b'new')
    push(files, private=False)
    there = hub.repositories[NAME]
    assert len(hub.uploads) == before + 1 and there.private and len(there.commits) == 2
    assert there.files['x/b.safetensors'] == b'new' and there.files['own.txt'] == b'own'


def test_an_upload_that_broke_off_goes_on_with_what_is_missing(hub, files):
    hub.refused_upload = 1
    with pytest.raises(WeightsError) as caught:
        push(files)
    assert str(caught.value).startswith('ana/rex could not be uploaded: ')
    assert str(caught.value).endswith('; start the same command again, which sends what is missing')
    assert len(hub.large) == 1 and not hub.repositories[NAME].commits and not hub.repositories[NAME].files
    hub.refused_upload = None
    push(files)
    assert len(hub.uploads) == 2 == len(set(hub.uploads)) and len(hub.repositories[NAME].files) == len(files)


@pytest.mark.parametrize('path', ['x/a.safetensors', 'x/c.json', 'README.md'])
def test_what_does_not_arrive_as_it_was_sent_is_no_success(hub, files, path):
    hub.bent = path
    with pytest.raises(WeightsError) as caught:
        push(files)
    assert str(caught.value) == f'ana/rex on the hub does not hold {path} as it was sent; start the same command again'


SENTENCES = {
    None: 'to upload to ana/rex on the Hugging Face hub takes a token that may write, and there is none here; log in '
    'with `hf auth login`, or set HF_TOKEN',
    'wrong-token': 'the Hugging Face hub does not know the token that is here, so nothing can be uploaded to ana/rex; '
    'log in again with `hf auth login`, or set HF_TOKEN to one of https://huggingface.co/settings/tokens',
    'read-token': 'the token of the Hugging Face hub that is here may only read, so nothing can be uploaded to '
    'ana/rex; make one that may write on https://huggingface.co/settings/tokens',
}


@pytest.mark.parametrize('token', SENTENCES)
def test_a_token_that_cannot_write_is_one_sentence_before_anything_is_sent(token, monkeypatch, tmp_path):
    with loopback_hub.in_this_process(monkeypatch, tmp_path, token) as hub, pytest.raises(WeightsError) as caught:
        hub_push.look(NAME)
    assert str(caught.value) == SENTENCES[token]
    assert not hub.repositories and not any(line.startswith('POST') for line in hub.asked)


@pytest.mark.parametrize('is_there', [True, False])
def test_a_repository_of_somebody_else_is_one_sentence(is_there, monkeypatch, tmp_path, files):
    with loopback_hub.in_this_process(monkeypatch, tmp_path, 'other-token') as hub:
        if is_there:
            hub.repositories[NAME] = loopback_hub.Repository(private=False)
        with pytest.raises(WeightsError) as caught:
            push(files)
    assert str(caught.value) == (
        'the token that is here may not write to ana/rex on the Hugging Face hub; give a name of your own, or a token '
        'that may, from https://huggingface.co/settings/tokens'
    )
    assert not is_there or not hub.repositories[NAME].files


def test_without_a_network_it_is_one_sentence(monkeypatch, tmp_path):
    with loopback_hub.running() as (_, address):
        pass  # nobody answers there any more
    loopback_hub.use(monkeypatch, tmp_path, address, 'write-token')
    sentence = (
        f'ana/rex cannot be uploaded, because the Hugging Face hub cannot be reached at {address}; look at the '
        f'network, and at HF_HUB_OFFLINE, and start the same command again'
    )
    with pytest.raises(WeightsError) as caught:
        hub_push.look(NAME)
    assert str(caught.value) == sentence
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(WeightsError) as caught:
        hub_push.look(NAME)
    assert str(caught.value) == sentence


@pytest.mark.parametrize('name', ['rex', 'ana/rex/x', '../rex', 'ana/ rex', ''])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(WeightsError) as caught:
        hub_push.look(name)
    assert str(caught.value) == (
        f"'{name}' is no place on the Hugging Face hub; it must be OWNER/NAME, such as ana/my-dog"
    )


def test_no_message_shows_the_token(monkeypatch, hub):
    sentence = hub_push._sentence(NAME, ValueError('bad header: Bearer write-token'), 'x')
    assert 'write-token' not in sentence and 'Bearer ...' in sentence


def test_the_library_is_imported_only_by_what_uploads():
    told = "import sys; import dreambooth_jax.finetune.sharing; print('huggingface_hub' in sys.modules)"
    ended = subprocess.run([sys.executable, '-c', told], env=script.environment(), capture_output=True, text=True)
    assert ended.stdout == 'False\n', ended.stderr
