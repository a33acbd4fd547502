"""Photos checked as a run's settings read them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dreambooth_jax.config import (
    BaseConfig,
    ConfigError,
    DataConfig,
    DreamBoothConfig,
    SubjectConfig,
    SuperResolutionConfig,
)
from dreambooth_jax.finetune import examples, photo_settings
from dreambooth_jax.generation.cascade import Cascade
from tests.support import smallest_pipelines
from tests.support.made_photos import array, scene
from tests.support.written_runs import save

WORDS = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'photos').mkdir()
    for number in range(3):
        scene(number).save(tmp_path / 'photos' / f'{number}.png')
    return tmp_path / 'photos'


def config_of(folder, *, model='a/model', **data):
    return DreamBoothConfig(model=model, data=DataConfig(instance_dir=str(folder), **WORDS, **data))


def test_settings_of_a_hub_model_with_a_resolution_need_no_model(folder, monkeypatch):
    monkeypatch.setattr(Cascade, 'of', None)
    config = config_of(folder, resolution=256, crops=3, consent='mine')
    reading = photo_settings.reading_of(dataclasses.replace(config, seed=7))
    assert (reading.stages, reading.crops, reading.seed, reading.consent) == ({'base': ((256, 256),)}, 3, 7, 'mine')
    assert photo_settings.reading_of(config_of(folder), 128).stages == {'base': ((128, 128),)}


def test_other_settings_read_the_model(folder):
    model = str(smallest_pipelines.folder('pixels'))
    whole = dict(photo_settings.reading_of(config_of(folder, model=model)).stages)
    cascade = Cascade.load(model)
    assert whole['base'] == ((cascade.base_size,) * 2,)
    assert whole['super_resolution'] == ((cascade.super_resolution_size,) * 2,)


def test_a_second_stage_that_trains_on_crops_has_its_own(folder):
    cascade = dataclasses.replace(Cascade.load(smallest_pipelines.folder('latents')), size=64)
    config = dataclasses.replace(config_of(folder, crops=2), super_resolution=SuperResolutionConfig(steps=1, crops=3))
    reading = photo_settings._reading(config, cascade)
    found = examples.read_instance(config, cascade)
    (photo, *_) = photo_settings.check(config, reading)[0].photos
    for stage, crops in (('base', 2), ('super_resolution', 3)):
        (images,) = found[stage]
        assert len(photo.crops[stage]) == crops
        for number, crop in enumerate(photo.crops[stage]):
            np.testing.assert_array_equal(crop.image, images.images[number])


def test_aspect_buckets_are_those_of_the_model_or_of_latent_models(folder):
    sizes = photo_settings.reading_of(config_of(folder, aspect_buckets=True), 512).stages['base']
    assert (512, 512) in sizes and (448, 576) in sizes
    with pytest.raises(ConfigError) as error:
        photo_settings.reading_of(config_of(folder, aspect_buckets=True), 500)
    assert str(error.value) == (
        '--resolution is 500 but config.data.aspect_buckets is True; give a multiple of 64, or leave --resolution out '
        'to read the model'
    )


def test_every_subject_with_photos_is_checked(folder, tmp_path):
    subjects = (
        SubjectConfig(instance_dir=str(folder), **WORDS),
        SubjectConfig(subject='dog', **WORDS),
        SubjectConfig(instance_dir=str(folder), **WORDS),
    )
    config = DreamBoothConfig(data=DataConfig(subjects=subjects))
    reading = photo_settings.reading_of(config, 128)
    assert [one.place for one in photo_settings.check(config, reading)] == [str(folder)] * 2
    with pytest.raises(ConfigError) as error:
        photo_settings.check(DreamBoothConfig(data=DataConfig(subject='dog', **WORDS)), reading)
    assert str(error.value) == (
        'the subjects of --config are built in and have no photos; give --photos, or config.data.instance_dir'
    )


def test_steps_are_those_of_the_settings_for_up_to_five_photos_and_more_for_more(folder):
    config = dataclasses.replace(config_of(folder), base=BaseConfig(steps=1000, batch_size=2))
    said = (
        'steps: 1000 of the base stage with 2 of the photos each, as set (config.base.steps, config.base.batch_size), '
        'show each of {count} photos {times} times; the paper takes about 1000 steps of one image for 3 to 5 photos, '
        '200 to 333 for each. Proposed: '
    )
    for count, times in ((1, 2000), (4, 500), (5, 400)):
        assert photo_settings.about_steps(config, count) == said.format(count=count, times=times) + 'these 1000'
    assert photo_settings.about_steps(config, 13) == said.format(count=13, times=154) + (
        '--config.base.steps=2600, which shows each 400 times, as 1000 would show each of 5; a rule, which was not '
        'measured for more than 5'
    )
    assert [photo_settings.proposed_steps(config, count) for count in (1, 5, 6, 13)] == [1000, 1000, 1200, 2600]
    two = dataclasses.replace(config, data=DataConfig(subjects=2 * (config.subjects()[0],)))
    assert photo_settings.about_steps(two, 10).endswith('Proposed: these 1000')
    few = dataclasses.replace(config, base=BaseConfig(steps=10, batch_size=1))
    assert 'show each of 4 photos 2.5 times;' in photo_settings.about_steps(few, 4)


# The warnings at the start of a run


@pytest.fixture
def told(monkeypatch):
    """Tells about a run whose largest images have 256 px."""
    sizes = {'base': ((64, 64),), 'super_resolution': ((256, 256),)}
    monkeypatch.setattr(photo_settings.examples, 'sizes', lambda config, cascade: sizes)
    return lambda folder, workdir: photo_settings.told(config_of(folder), workdir, None)


def test_a_run_with_good_photos_tells_nothing(told, folder, tmp_path):
    assert told(folder, tmp_path / 'run') is None


def test_a_run_tells_warnings_once_before_it_has_trained(told, folder, tmp_path):
    scene(1).save(folder / '3.png')
    lines = told(folder, tmp_path / 'run').splitlines()
    assert lines == [
        'the photos may be better (python -m dreambooth_jax.check_photos shows them):',
        f'  {folder}: 3.png: it shows nearly the same as 1.png; keep one of the two, or take it from another side: '
        f'twice the same photo is learned twice as fast',
    ]
    save(tmp_path / 'run', 'base', [2], {'unet': {'kernel': np.ones((2, 2), np.float32)}})
    assert told(folder, tmp_path / 'run') is None


def test_a_run_tells_five_warnings_at_most(told, folder, tmp_path):
    for number in range(4, 11):
        blurred = ndimage.gaussian_filter(array(number), (3, 3, 0))
        Image.fromarray(blurred).save(folder / f'{number}.jpg', quality=95)
    lines = told(folder, tmp_path / 'run').splitlines()
    assert len(lines) == 7 and lines[-1] == '  and 2 more' and 'its sharpest edges are blurred' in lines[1]
