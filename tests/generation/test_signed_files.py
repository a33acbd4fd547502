"""Generated images are signed as a run's settings say, or there is no file at all."""

import numpy as np
import pytest

from dreambooth_jax.config import SamplesConfig
from dreambooth_jax.data import provenance
from dreambooth_jax.data.content_credentials import CredentialsError
from dreambooth_jax.generation import signed_files
from tests.support import image_metadata, made_certificates

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
FACTS = provenance.Facts(prompt='a sks dog', steps=2, sampler='ddim', guidance_scale=1.0, seed=0)


def test_without_a_certificate_nothing_is_signed(tmp_path):
    assert signed_files.signer_of(SamplesConfig()) is None
    signed_files.write(PIXELS, tmp_path / 'x.png', FACTS)
    names = [name for name, _ in image_metadata.chunks((tmp_path / 'x.png').read_bytes())]
    assert 'caBX' not in names and image_metadata.parameters(tmp_path / 'x.png')['Prompt'] == 'a sks dog'


def test_images_are_signed_with_the_certificate_of_the_settings(tmp_path):
    c2pa = pytest.importorskip('c2pa')
    sign = signed_files.signer_of(made_certificates.settings(made_certificates.make(tmp_path)))
    signed_files.write(PIXELS, tmp_path / 'x.png', FACTS, sign)
    assert c2pa.Reader(str(tmp_path / 'x.png')).get_validation_state() == 'Valid'
    assert image_metadata.is_marked(tmp_path / 'x.png')
    assert image_metadata.parameters(tmp_path / 'x.png')['Prompt'] == 'a sks dog'


def test_an_image_that_cannot_be_signed_is_no_file_and_the_one_before_stays(tmp_path):
    def sign(path):
        raise CredentialsError('expired')

    signed_files.write(PIXELS, tmp_path / 'x.png')
    before = (tmp_path / 'x.png').read_bytes()
    for name in ('x.png', 'y.png'):
        with pytest.raises(CredentialsError):
            signed_files.write(255 - PIXELS, tmp_path / name, FACTS, sign)
    assert [path.name for path in tmp_path.iterdir()] == ['x.png'] and (tmp_path / 'x.png').read_bytes() == before


def test_what_does_not_sign_is_one_sentence_that_names_the_settings_and_a_way_out(tmp_path):
    pytest.importorskip('c2pa')
    names = 'config.samples.c2pa_certificate and config.samples.c2pa_key: '
    made = made_certificates.make(tmp_path, expired=True)
    expired = made_certificates.settings(made)
    absent = SamplesConfig(c2pa_certificate=str(tmp_path / 'absent.pem'), c2pa_key=str(made.key))
    for settings, start in ((expired, f'{made.certificate} and {made.key} do not sign ('), (absent, f'{tmp_path}/abs')):
        with pytest.raises(CredentialsError) as error:
            signed_files.signer_of(settings)
        told = str(error.value)
        assert told.startswith(names + start) and told.endswith(', or set both to None') and '\n' not in told
    with pytest.raises(CredentialsError, match=', or give --nosign$'):
        signed_files.signer_of(absent, 'give --nosign')
