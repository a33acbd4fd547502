"""What the stages of a cascade are shown of the photos: whole ones, of their own ratio where asked for, or crops."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, SuperResolutionConfig
from dreambooth_jax.finetune import examples
from dreambooth_jax.generation.cascade import Cascade
from tests.support import smallest_pipelines


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for name, shape in {'tall': (160, 96), 'wide': (120, 200), 'wider': (120, 240)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f'{name}.png')
    return folder


@pytest.fixture(scope='module')
def cascades():
    """Of pixels, 8 and 16 px; of latents, 64 and 128 px."""
    return {
        'pixels': Cascade.load(smallest_pipelines.folder('pixels')),
        'latents': dataclasses.replace(Cascade.load(smallest_pipelines.folder('latents')), size=64),
    }


def sizes(photos, cascade, buckets=True, **super_resolution):
    """Stage -> (images, height, width) of each size."""
    prompts = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    data = DataConfig(instance_dir=str(photos), **prompts, aspect_buckets=buckets)
    settings = SuperResolutionConfig(**{'steps': 2, **super_resolution})
    config = DreamBoothConfig(model='any', data=data, super_resolution=settings)
    found = examples.read_instance(config, cascade)
    told = examples.sizes(config, cascade)
    assert told.keys() == found.keys()
    for stage, groups in found.items():
        assert {group.images.shape[1:3] for group in groups} <= set(told[stage])
    return {stage: [group.images.shape[:3] for group in groups] for stage, groups in found.items()}


def test_both_pixel_stages_see_photos_in_their_ratio(photos, cascades):
    found = sizes(photos, cascades['pixels'])
    assert found == {'base': [(2, 6, 10), (1, 10, 6)], 'super_resolution': [(2, 12, 20), (1, 20, 12)]}
    squares = sizes(photos, cascades['pixels'], buckets=False)
    assert squares == {'base': [(3, 8, 8)], 'super_resolution': [(3, 16, 16)]}


def test_the_upscaler_sees_square_crops(photos, cascades):
    found = sizes(photos, cascades['latents'], buckets=False, crop=32, crops=4)
    assert found == {'base': [(3, 64, 64)], 'super_resolution': [(12, 32, 32)]}


def test_what_each_stage_will_see_is_told(photos, cascades):
    data = DataConfig(instance_dir=str(photos), instance_prompt='a sks dog', class_prompt='a dog', crops=2)
    upscaler = SuperResolutionConfig(steps=2, crop=32, crops=4)
    config = DreamBoothConfig(model='any', data=data, super_resolution=upscaler)
    told = examples.describe(config, examples.read_instance(config, cascades['latents']))
    assert told.splitlines() == [
        'photos:',
        f"  {photos}: 3 files, 'a sks dog' unless captioned",
        '    tall.png: 96 x 160',
        '    wide.png: 200 x 120',
        '    wider.png: 240 x 120',
        '  crops for base: 6 of 64 x 64 pixels',
        '  crops for super_resolution: 12 of 32 x 32 pixels',
    ]


@pytest.mark.parametrize(
    ('kind', 'options', 'sentence'),
    [
        ('pixels', {'crop': 7}, 'config.super_resolution.crop is 7 but must be a multiple of 2'),
        ('latents', {'crop': 31, 'buckets': False}, 'config.super_resolution.crop is 31 but must be a multiple of 2'),
        (
            'pixels',
            {'crop': 18, 'buckets': False},
            (
                'config.super_resolution.crop is 18 but the second stage has images with a side of 16 pixels; '
                'lower it, or leave it out to train on whole images'
            ),
        ),
        ('pixels', {'crop': 14}, 'config.super_resolution.crop is 14 but the second stage has .* a side of 12 pixels'),
    ],
)
def test_crops_that_cannot_be_taken_are_refused(photos, cascades, kind, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        sizes(photos, cascades[kind], **options)


def test_a_resolution_that_has_no_buckets_is_refused(photos, cascades):
    cascade = dataclasses.replace(cascades['latents'], size=48)
    with pytest.raises(ConfigError, match='aspect_buckets is True: the resolution .* a multiple of 64, got 48'):
        sizes(photos, cascade)
