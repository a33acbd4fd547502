"""The grid of samples: what it holds, how many images at once, and that a training outlives what it cannot generate."""

import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError
from dreambooth_jax.data.content_credentials import CredentialsError
from dreambooth_jax.generation import cascade as cascade_lib
from dreambooth_jax.generation import signed_files
from dreambooth_jax.generation.cascade import Cascade, Images
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.origin import Model as Named
from dreambooth_jax.generation.origin import Origin
from dreambooth_jax.generation.sample_grid import SampleGrid, SaveSamples, images_of
from dreambooth_jax.training import memory
from tests.support import image_metadata, made_certificates

PROMPTS = ('a sks dog', 'a dog')


class Model:
    """In a cascade's place: images of one brightness, and what was asked for."""

    usual_batch_size = 8

    def __init__(self, brightness=0, error=None):
        self.brightness, self.error, self.asked, self.released = brightness, error, [], 0

    def release(self):
        self.released += 1

    def generate(self, prompts, options, *, num_images, progress):
        self.asked.append(options)
        if self.error is not None:
            raise self.error
        return Images(np.full((len(prompts) * num_images, 8, 8, 3), self.brightness, np.uint8), None)


def grid(original=None, sign=None, **options):
    options = SamplingOptions(steps=3, guidance_scale=2.0, sampler='ddim', **options)
    return SampleGrid(original, [], PROMPTS, options, num_images=2, sign=sign)


def test_the_grid_holds_the_images_of_both_models_and_asks_the_original_once(tmp_path):
    original, ours = Model(brightness=255), Model(brightness=7)
    samples = grid(original)
    for step in (1, 2):
        sheet = samples.save(ours, tmp_path / f'{step}.png', 'a title')
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f'{step}.png').convert('RGB')), sheet)
    assert len(original.asked) == 1 and len(ours.asked) == 2 and ours.asked[0].steps == 3
    assert original.released == 1 and ours.released == 2  # neither model waits on the devices for the next time
    assert (sheet == 7).all(axis=-1).sum() >= 2 * 2 * 8 * 8  # two prompts, two images


@pytest.mark.parametrize('batch_size', [None, 3])
def test_as_many_images_at_once_as_the_setting_says(batch_size, tmp_path):
    model = Model()
    grid(batch_size=batch_size).save(model, tmp_path / 'x.png', '')
    assert model.asked[0].batch_size == batch_size


def test_latent_models_generate_one_image_per_device():
    def usual(*latent):
        spaces = [SimpleNamespace(decoder='vae' if one else None) for one in latent]
        stages = [one is not None and SimpleNamespace(space=space) for one, space in zip(latent, spaces, strict=True)]
        stages = [stage or None for stage in stages]
        return Cascade.usual_batch_size.fget(SimpleNamespace(base=stages[0], super_resolution=stages[1]))

    assert usual(False, None) == usual(False, False) == cascade_lib._IMAGES_AT_ONCE
    assert usual(True, None) == usual(True, True) == usual(False, True) == 1


FULL = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes')
SENTENCES = {
    'memory': (
        FULL,
        {},
        "the device's memory is full while samples are generated (RESOURCE_EXHAUSTED: 9 bytes); try "
        '--config.samples.batch_size=4, and start again: what is done is kept',
    ),
    'memory of one image': (
        FULL,
        {'batch_size': 1},
        "the device's memory is full while samples are generated (RESOURCE_EXHAUSTED: 9 bytes); take a device with "
        'more memory or smaller images, and start again: what is done is kept',
    ),
    'NaN': (ConfigError('an image came out as NaN'), {}, 'an image came out as NaN'),
    'device': (jax.errors.JaxRuntimeError('INTERNAL: no'), {}, 'INTERNAL: no'),
}


@pytest.mark.parametrize('kind', SENTENCES)
def test_samples_that_cannot_be_generated_are_a_warning(kind, tmp_path, caplog):
    error, options, sentence = SENTENCES[kind]
    with caplog.at_level(logging.WARNING):
        grid(**options).save_if_possible(Model(error=error), tmp_path / 'x.png', 'base, step 7')
    assert [record.getMessage() for record in caplog.records] == [
        f'no samples of base, step 7, training goes on: {sentence}'
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'text, raised', [('UNKNOWN: Gloo', jax.errors.JaxRuntimeError), ('RESOURCE_EXHAUSTED: 9 bytes', memory.OutOfMemory)]
)
def test_with_several_hosts_an_error_of_a_device_is_no_warning(text, raised, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(raised):
        grid().save_if_possible(Model(error=jax.errors.JaxRuntimeError(text)), tmp_path / 'x.png', '')


def test_a_mistake_of_ours_and_a_disk_that_is_full_are_no_warning(tmp_path):
    with pytest.raises(TypeError):
        grid().save_if_possible(Model(error=TypeError()), tmp_path / 'x.png', '')
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        grid().save_if_possible(Model(), tmp_path / 'file' / 'x.png', '')


def test_samples_are_missed_where_their_file_is_not_there(tmp_path):
    model, state = Model(brightness=7), SimpleNamespace()
    samples = SaveSamples(grid=grid(), cascade_of=lambda state: model, folder=tmp_path / 'base', title='base', every=2)
    assert samples.missed(2) and samples.missed(4)
    samples(2, state)
    assert not samples.missed(2) and samples.missed(4)


def test_the_grid_is_marked_and_says_its_model_prompts_and_step(tmp_path):
    options = SamplingOptions(steps=3, guidance_scale=2.0, sampler='ddim')
    for name, origin in (('marked', None), ('told', Origin(options=options, base=Named('storybook', 'ab')))):
        made = SampleGrid(None, [], PROMPTS, options, num_images=2, origin=origin)
        save = SaveSamples(grid=made, cascade_of=lambda state: Model(), folder=tmp_path / name, title='base', every=2)
        save(2, SimpleNamespace())
    marked, told = (tmp_path / name / '000002.png' for name in ('marked', 'told'))
    assert image_metadata.is_marked(marked) and image_metadata.is_marked(told)
    assert image_metadata.parameters(marked) == {}
    told = image_metadata.parameters(told)
    assert (told['Prompt'], told['Training step'], told['Model hash']) == ('\n'.join(PROMPTS), '2', 'ab')


def test_our_images_are_kept_as_they_are_beside_the_grid_and_no_photo_is(tmp_path):
    options = SamplingOptions(steps=3, guidance_scale=2.0, sampler='ddim')
    photos, origin = [np.full((8, 8, 3), 99, np.uint8)], Origin(options=options, base=Named('storybook', 'ab'))
    made = SampleGrid(Model(brightness=255), photos, PROMPTS, options, num_images=2, origin=origin)
    made.save(Model(brightness=7), tmp_path / '000002.png', '', step=2)
    images = sorted(images_of(tmp_path / '000002.png').iterdir())
    assert [path.name for path in images] == ['000_00.png', '000_01.png', '001_00.png', '001_01.png']
    for index, path in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.full((8, 8, 3), 7))
        told = image_metadata.parameters(path)
        assert image_metadata.is_marked(path) and told['Prompt'] == PROMPTS[index // 2]
        assert (told['Image number'], told['Training step']) == (str(index % 2), '2')


def test_the_grid_and_every_image_of_it_are_signed(tmp_path):
    c2pa = pytest.importorskip('c2pa')
    sign = signed_files.signer_of(made_certificates.settings(made_certificates.make(tmp_path)))
    sheet = grid(Model(brightness=255), sign).save(Model(brightness=7), tmp_path / 'x.png', '')
    files = [tmp_path / 'x.png', *(tmp_path / 'x').iterdir()]
    assert len(files) == 5 and [c2pa.Reader(str(file)).get_validation_state() for file in files] == ['Valid'] * 5
    np.testing.assert_array_equal(np.asarray(Image.open(files[0]).convert('RGB')), sheet)


def test_a_certificate_that_expires_is_a_warning_and_samples_that_are_not_there(tmp_path, caplog):
    def sign(path):
        if has_expired:
            raise CredentialsError('chain.pem and key.pem do not sign (expired); give others')
        path.write_bytes(path.read_bytes() + b'signed')

    made, has_expired = grid(sign=sign), True
    samples = SaveSamples(grid=made, cascade_of=lambda state: Model(), folder=tmp_path / 'base', title='base', every=2)
    with caplog.at_level(logging.WARNING):
        samples(2, SimpleNamespace())
    assert [record.getMessage() for record in caplog.records] == [
        'no samples of base, step 2, training goes on: chain.pem and key.pem do not sign (expired); give others'
    ]
    assert samples.missed(2) and not [path for path in tmp_path.rglob('*') if path.is_file()]
    has_expired = False  # with another one they are made up for
    samples(2, SimpleNamespace())
    assert not samples.missed(2) and (tmp_path / 'base' / '000002.png').read_bytes().endswith(b'signed')


def test_of_several_hosts_only_the_first_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    grid(sign=lambda path: 1 / 0).save(Model(), tmp_path / 'x.png', '')
    assert list(tmp_path.iterdir()) == []


def test_of_two_stages_the_images_are_the_last_ones(tmp_path):
    class Both(Model):
        def generate(self, prompts, options, *, num_images, progress):
            final = np.full((len(prompts) * num_images, 16, 16, 3), 9, np.uint8)
            return (
                super()
                .generate(prompts, options, num_images=num_images, progress=progress)
                ._replace(super_resolution=final)
            )

    grid().save(Both(brightness=7), tmp_path / 'x.png', '')
    assert Image.open(tmp_path / 'x' / '001_01.png').size == (16, 16)
    assert image_metadata.is_marked(tmp_path / 'x' / '001_01.png')
