"""What images say of the model and the sampling that they come from."""

import dataclasses
import hashlib

import pytest

from dreambooth_jax.data import provenance
from dreambooth_jax.data.provenance import AddedFile
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.class_images import read
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.origin import Model, Origin
from dreambooth_jax.weights.pipeline import Pipeline
from tests.generation.test_class_images import OPTIONS as CLASS_OPTIONS
from tests.generation.test_class_images import Painter, ensure_class_images
from tests.support import image_metadata, smallest_pipelines, tiny_pipelines

OPTIONS = SamplingOptions(steps=3, guidance_scale=2.5, sampler='ddim', seed=4, negative_prompt='blurry', noise_level=9)


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load(smallest_pipelines.folder('pixels'))


def test_images_say_what_made_them(cascade):
    origin = Origin.of(cascade, OPTIONS, provenance.FULL)
    facts = origin.facts('a dog', 2)
    assert facts == provenance.Facts(
        prompt='a dog',
        negative_prompt='blurry',
        steps=3,
        sampler='ddim',
        guidance_scale=2.5,
        seed=4,
        model='pixels',
        model_hash=cascade.base.weights_hash,
        more={
            'Image number': 2,
            'Super-resolution model': 'pixels',
            'Super-resolution model hash': cascade.super_resolution.weights_hash,
            'Super-resolution steps': 3,
            'Super-resolution CFG scale': '2.5',
            'Super-resolution noise level': 9,
        },
    )
    # The base stage's images do not depend on the second stage, nor do any on the batch size.
    assert origin.facts('a dog', 2, last=False).more == {'Image number': 2}
    alone = Origin.of(cascade, dataclasses.replace(OPTIONS, super_resolution=False, batch_size=3), provenance.FULL)
    assert alone.facts('a dog', 2) == origin.facts('a dog', 2, last=False)


def test_a_sheet_says_its_step_and_no_number(cascade):
    more = Origin.of(cascade, OPTIONS, provenance.FULL).facts('a dog\na cat', last=False, step=50).more
    assert more == {'Training step': 50}


def test_skipped_layers_are_counted_as_automatic1111_counts_them(cascade):
    origin = Origin(options=OPTIONS, base=Model('x', None), clip_skip=1)
    assert origin.facts('a dog', 0).more == {'Image number': 0, 'Clip skip': 2}


def test_files_that_are_added_are_named_with_their_hashes(cascade, tmp_path):
    for name in ('dog.safetensors', 'rex.safetensors'):
        (tmp_path / name).write_bytes(name.encode())
    origin = Origin.of(cascade, OPTIONS, provenance.FULL)
    facts = origin.with_files([(tmp_path / 'dog.safetensors', 0.8)], [tmp_path / 'rex.safetensors']).facts('a', 0)
    hashes = {name: hashlib.sha256(f'{name}.safetensors'.encode()).hexdigest() for name in ('dog', 'rex')}
    assert facts.adapters == [AddedFile('dog', hashes['dog'], 0.8)]
    assert facts.embeddings == [AddedFile('rex', hashes['rex'])]
    assert facts.model_hash == cascade.base.weights_hash


def test_with_the_mark_alone_nothing_is_said_and_nothing_hashed(cascade, monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, 'weights_hash', property(lambda self: pytest.fail('it is hashed')))
    origin = Origin.of(cascade, OPTIONS, provenance.MARK).with_files([(tmp_path / 'absent', 1.0)], [])
    assert origin.facts('a dog', 2) is None and origin.base == Model(None, None)


@pytest.mark.parametrize('metadata', ['full', 'mark'])
def test_class_images_say_it_and_are_read_as_ever(metadata, tmp_path):
    options = {**CLASS_OPTIONS, 'super_resolution': True, 'metadata': metadata}
    images = ensure_class_images(Painter(), ['a dog', 'a red mug'], tmp_path, count=2, **options)
    for number, image in zip((0, 1, 0, 1), images, strict=True):
        for path, second in ((image.path, False), (image.super_resolution, True)):
            assert image_metadata.is_marked(path)
            told = image_metadata.parameters(path)
            if metadata == 'mark':
                assert told == {}
                continue
            assert (told['Prompt'], told['Image number']) == (image.prompt, str(number))
            assert told['Model hash'] == tiny_pipelines.base().weights_hash
            assert ('Super-resolution model hash' in told) == second
    pixels = read(images, {'base': 8})['base'].images
    assert pixels[:, 0, 0].tolist() == [[5, 0, 0], [5, 1, 0], [9, 0, 0], [9, 1, 0]]
