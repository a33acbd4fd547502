"""What is asked of a subject, and the album of images that an interrupted evaluation goes on with."""

import dataclasses

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, SubjectConfig
from dreambooth_jax.evaluation import protocol
from dreambooth_jax.generation import signed_files
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.text.prompts import evaluation_prompts
from tests.support import image_metadata, made_certificates, smallest_pipelines

OPTIONS = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim', batch_size=4)


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load(smallest_pipelines.folder('pixels'))


PHOTOS = tuple(np.full((height, width, 3), 9, np.uint8) for height, width in ((20, 30), (16, 16)))


def of_data(*photos, **data):
    return protocol.subjects_of(DreamBoothConfig(data=DataConfig(**data)), photos)


def test_a_subject_is_asked_for_with_the_papers_prompts_of_its_class():
    (dog,) = of_data(PHOTOS, instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')
    assert (dog.name, dog.instance_prompt, dog.class_prompt, len(dog.prompts)) == ('sks dog', 'a sks dog', 'a dog', 25)
    assert dog.photos is PHOTOS and dog.look_alikes == ()
    assert dog.prompts[10] == ('accessory', 'a sks dog wearing a red hat', 'a dog wearing a red hat')
    (vase,) = of_data(PHOTOS, instance_dir='photos', instance_prompt='a zwx vase', class_prompt='a vase')
    assert {asked.kind for asked in vase.prompts} == {'context', 'property'}
    assert dog.is_live and not vase.is_live
    assert vase.prompts[-1] == ('property', 'a cube shaped zwx vase', 'a cube shaped vase')


def test_subjects_of_one_run_are_each_others_look_alikes():
    one = SubjectConfig(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')
    other = SubjectConfig(subject='dog2', instance_prompt='a zwx dog', class_prompt='a dog')
    first, second = of_data(PHOTOS, PHOTOS[:1], subjects=(dataclasses.asdict(one), dataclasses.asdict(other)))
    assert [len(one.look_alikes) for one in (first, second)] == [1, 2]
    assert first.look_alikes[0] is second.photos[0] and second.look_alikes[0] is first.photos[0]


def test_built_in_subjects_are_known_by_name_and_photos_have_their_masks():
    names = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    masks = (None, np.zeros((16, 16), np.uint8))
    (photos,) = protocol.subjects_of(
        DreamBoothConfig(data=DataConfig(instance_dir='photos', subject='dog', **names)), (PHOTOS,), (masks,)
    )
    (painted,) = of_data(PHOTOS, subject='dog', **names)
    assert (photos.built_in, photos.masks) == (None, masks) and (painted.built_in, painted.masks) == ('dog', ())


def test_prompts_that_do_not_say_who_the_subject_is_are_refused():
    with pytest.raises(ConfigError) as error:
        of_data(PHOTOS, instance_dir='photos', instance_prompt='rex', class_prompt='a dog')
    assert str(error.value) == (
        "the run cannot be evaluated: instance prompt 'rex' must be class prompt 'a dog' with an identifier before the "
        "class noun, as 'a sks dog' is to 'a dog'."
    )


def test_an_album_gives_what_the_model_generates_from_noise_of_every_images_own(cascade, tmp_path):
    prompts = ['a dog', 'a red dog']
    album = protocol.Album(cascade, OPTIONS, tmp_path, 'run')
    found = album(prompts, 3)
    requests = [(i, protocol.noise_of(prompt, j)) for i, prompt in enumerate(prompts) for j in range(3)]
    wanted = np.concatenate([images.final for _, images in cascade.stream(prompts, requests, OPTIONS)])
    np.testing.assert_array_equal(found, wanted.reshape(2, 3, *wanted.shape[1:]))


@pytest.mark.parametrize('metadata', ['full', 'mark'])
def test_the_files_of_an_album_say_where_they_come_from(cascade, tmp_path, metadata):
    album = protocol.Album(cascade, OPTIONS, tmp_path, 'run', metadata)
    album(['a dog'], 2)
    for number in range(2):
        path = album.path('a dog', number)
        assert image_metadata.is_marked(path)
        told = image_metadata.parameters(path)
        if metadata == 'full':
            assert told['Image number'] == str(protocol.noise_of('a dog', number))
            assert (told['Prompt'], told['Model hash']) == ('a dog', cascade.base.weights_hash)
        else:
            assert told == {}
    assert album.folder == protocol.Album(cascade, OPTIONS, tmp_path, 'run').folder  # it is found again either way


def test_the_files_of_an_album_are_signed(cascade, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    sign = signed_files.signer_of(made_certificates.settings(made_certificates.make(tmp_path)))
    found = protocol.Album(cascade, OPTIONS, tmp_path, 'run', sign=sign)
    pixels = found(['a dog'], 2)
    for number in range(2):
        assert c2pa.Reader(str(found.path('a dog', number))).get_validation_state() == 'Valid'
    unsigned = protocol.Album(cascade, OPTIONS, tmp_path, 'run')
    np.testing.assert_array_equal(unsigned(['a dog'], 2), pixels)
    assert unsigned.path('a dog', 0) == found.path('a dog', 0)  # signed or not, an image is found again


def test_the_noise_of_a_prompts_image_depends_on_both_alone_and_fits_a_key():
    asked = [(prompt.text('dog', 'sks'), j) for prompt in evaluation_prompts('dog') for j in range(4)]
    numbers = [protocol.noise_of(*one) for one in asked]
    assert len(set(numbers)) == 100 and numbers == [protocol.noise_of(*one) for one in asked]
    assert 0 <= min(numbers) and max(protocol.noise_of(prompt, 65535) for prompt, _ in asked) < 2**31


def test_an_interrupted_album_generates_only_what_is_missing(cascade, tmp_path, monkeypatch):
    prompts = ['a dog', 'a red dog']
    album = protocol.Album(cascade, OPTIONS, tmp_path, 'run')
    whole = album(prompts, 2)
    album.path('a red dog', 1).unlink()
    asked, stream = [], Cascade.stream

    def recorded(self, prompts, requests, options):
        asked.extend(requests)
        return stream(self, prompts, requests, options)

    monkeypatch.setattr(Cascade, 'stream', recorded)
    again = protocol.Album(cascade, OPTIONS, tmp_path, 'run')(prompts, 2)
    np.testing.assert_array_equal(again, whole)
    assert asked == [(1, protocol.noise_of('a red dog', 1))]


def test_images_of_another_model_or_of_other_options_are_never_taken(cascade, tmp_path):
    folder = protocol.Album(cascade, OPTIONS, tmp_path, '').folder
    name = next(iter(cascade.base.denoiser.params))
    changed = {cascade.base.family.denoiser: {**cascade.base.denoiser.params}}
    changed[cascade.base.family.denoiser][name] = cascade.base.denoiser.params[name] + 1
    others = [
        protocol.Album(cascade.with_params(base=changed), OPTIONS, tmp_path, ''),
        protocol.Album(cascade, dataclasses.replace(OPTIONS, seed=1), tmp_path, ''),
        protocol.Album(cascade, dataclasses.replace(OPTIONS, steps=3), tmp_path, ''),
        protocol.Album(dataclasses.replace(cascade, super_resolution=None), OPTIONS, tmp_path, ''),
    ]
    assert len({folder, *(other.folder for other in others)}) == 5
    # How many are generated at once changes nothing.
    same = protocol.Album(cascade, dataclasses.replace(OPTIONS, batch_size=1), tmp_path, '')
    assert same.folder == folder


def test_prompts_with_the_same_letters_have_files_of_their_own(cascade, tmp_path):
    album = protocol.Album(cascade, OPTIONS, tmp_path, '')
    assert album.path('a dog, red', 0) != album.path('a dog red', 0)
