"""Signed images, read back by c2pa's own reader. The certificate is made here."""

import builtins
import io
import json

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import content_credentials, provenance
from dreambooth_jax.data.content_credentials import CredentialsError
from tests.support import image_metadata, made_certificates

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
FACTS = provenance.Facts(prompt='a sks dog', steps=2, sampler='ddim', guidance_scale=1.0, seed=0)


@pytest.fixture
def c2pa():
    return pytest.importorskip('c2pa')


def signed(folder, **options):
    made = made_certificates.make(folder, **options)
    path = folder / 'x.png'
    provenance.save(PIXELS, path, FACTS)
    content_credentials.signer(made.certificate, made.key)(path)
    return path, made


def read(c2pa, data, **settings):
    """Returns the validation state, and the manifest that counts."""
    context = c2pa.Context.from_dict(settings) if settings else None
    reader = c2pa.Reader('image/png', io.BytesIO(data), context=context)
    return reader.get_validation_state(), reader.get_active_manifest()


@pytest.mark.parametrize('kind', ['ES256', 'ES384', 'PS256', 'ED25519'])
def test_a_signature_says_that_a_model_generated_the_image_and_who_signed(c2pa, kind, tmp_path):
    path, made = signed(tmp_path, kind=kind, name='Ana Lima')
    data = path.read_bytes()
    state, manifest = read(c2pa, data)
    assert state == 'Valid' and manifest['signature_info']['common_name'] == 'Ana Lima'
    assert manifest['signature_info']['alg'].upper() == kind
    (actions,) = (one['data']['actions'] for one in manifest['assertions'] if one['label'] == 'c2pa.actions.v2')
    assert actions == [{'action': 'c2pa.created', 'digitalSourceType': provenance.GENERATED}]
    generator = manifest['claim_generator_info'][0]
    assert (generator['name'], generator['version']) == ('dreambooth-jax', provenance.VERSION)
    assert 'sks' not in json.dumps(manifest) and 'thumbnail' not in manifest and 'ingredients' not in manifest
    # Everything else is as it was.
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PIXELS)
    assert image_metadata.parameters(path)['Prompt'] == 'a sks dog' and image_metadata.is_marked(path)


def test_a_reader_trusts_it_only_if_it_knows_the_root(c2pa, tmp_path):
    path, made = signed(tmp_path)
    data = path.read_bytes()
    codes = json.loads(c2pa.Reader('image/png', io.BytesIO(data)).json())['validation_status']
    assert [one['code'] for one in codes] == ['signingCredential.untrusted']
    assert read(c2pa, data, trust={'user_anchors': made.root.read_text()})[0] == 'Trusted'


def test_a_change_of_the_file_is_seen_and_a_copy_without_the_signature_is_unsigned(c2pa, tmp_path):
    path, _ = signed(tmp_path)
    for word in (b'a sks dog', provenance.GENERATED.encode()):
        data = path.read_bytes()
        assert word in data
        assert read(c2pa, data.replace(word, word.swapcase(), 1))[0] == 'Invalid'
    Image.open(path).save(tmp_path / 'copy.png')
    with pytest.raises(c2pa.C2paError):
        read(c2pa, (tmp_path / 'copy.png').read_bytes())


def test_files_that_do_not_sign_are_named_before_anything_is_signed(c2pa, tmp_path):
    for name in ('one', 'other'):
        (tmp_path / name).mkdir()
    one, other = (made_certificates.make(tmp_path / name) for name in ('one', 'other'))
    (tmp_path / 'text.pem').write_text('no key')
    text, absent = tmp_path / 'text.pem', tmp_path / 'absent.pem'
    wrong = {
        (one.certificate, other.key): f'{one.certificate} and {other.key} do not sign (',
        (text, one.key): f'{text} and {one.key} do not sign (',
        (one.root, one.key): f'{one.root} and {one.key} do not sign (',
        (one.certificate, text): f'{text} is no private key that can be used (',
        (absent, one.key): f'{absent} cannot be read: No such file or directory',
        (one.certificate, tmp_path): f'{tmp_path} cannot be read: Is a directory',
    }
    for files, sentence in wrong.items():
        with pytest.raises(CredentialsError) as error:
            content_credentials.signer(*files)
        assert str(error.value).startswith(sentence) and '\n' not in str(error.value)


def test_keys_that_are_encrypted_or_of_another_kind_are_refused(c2pa, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = made_certificates.make(tmp_path)
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    for name, stored, encryption in (
        ('encrypted', key, serialization.BestAvailableEncryption(b'secret')),
        ('other', ec.generate_private_key(ec.SECP256K1()), serialization.NoEncryption()),
    ):
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        (tmp_path / name).write_bytes(stored.private_bytes(*form))
        with pytest.raises(CredentialsError, match=f'{name} is no private key that can be used'):
            content_credentials.signer(made.certificate, tmp_path / name)


def test_without_the_package_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == 'c2pa':
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(CredentialsError, match=r"pip install 'dreambooth-jax\[provenance\]'"):
        content_credentials.signer(tmp_path / 'chain.pem', tmp_path / 'key.pem')
