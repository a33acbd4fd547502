"""What a folder of class images says of itself: other schedules, older versions, changed files, damaged manifests."""

import dataclasses
import json
import re

import pytest
from PIL import Image

from tests.generation.test_class_images import OPTIONS, Painter, ensure_class_images, manifest_of, refusal
from tests.support import tiny_pipelines


def test_images_without_a_manifest_are_refused(tmp_path):
    (tmp_path / 'photo.JPG').touch()
    (tmp_path / 'notes.txt').touch()
    assert refusal(Painter(), ['a dog'], tmp_path, count=2) == (
        f'{tmp_path} holds 1 images without a manifest.json that says what generated them; delete that folder, or put '
        f'photos of your own into a folder of their own and set prior.dir to it.'
    )


def with_scheduler(painter, stage='base', **changes):
    """The painter, its model's noise schedule changed."""
    pipeline = getattr(painter, stage)
    setattr(painter, stage, dataclasses.replace(pipeline, scheduler={**pipeline.scheduler, **changes}))
    return painter


def test_images_of_another_noise_schedule_or_prediction_type_are_refused(tmp_path):
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, super_resolution=True, **OPTIONS)
    for changes in ({'prediction_type': 'v_prediction'}, {'beta_schedule': 'linear'}):
        assert refusal(with_scheduler(Painter(), **changes), ['a dog'], tmp_path, count=2) == (
            f'prior.num_images is 2 but {tmp_path} holds 2 made with another noise schedule or prediction type; delete '
            f'that folder or set prior.dir.'
        )
    painter = with_scheduler(Painter(), 'super_resolution', prediction_type='v_prediction')
    ensure_class_images(painter, ['a dog'], tmp_path, count=2, **OPTIONS)  # the second stage is not asked for
    assert 'made with another noise schedule or prediction type of the super-resolution model; ' in refusal(
        painter, ['a dog'], tmp_path, count=2, super_resolution=True
    )
    ensure_class_images(with_scheduler(Painter(), _diffusers_version='1'), ['a dog'], tmp_path, count=2, **OPTIONS)


def test_a_manifest_of_an_older_version_is_accepted_but_for_dpmsolver(tmp_path):
    def age(sampler):
        folder = tmp_path / sampler
        ensure_class_images(Painter(), ['a dog'], folder, count=2, **{**OPTIONS, 'sampler': sampler})
        manifest = manifest_of(folder)
        del manifest['scheduler'], manifest['size'], manifest['clip_skip']
        for entry in manifest['images'].values():
            del entry['sha256']
        manifest['pictures'] = manifest.pop('images')
        (folder / 'manifest.json').write_text(json.dumps(manifest))
        return folder

    painter = Painter()
    ensure_class_images(painter, ['a dog'], age('ddim'), count=2, **OPTIONS)
    assert painter.asked == []
    assert refusal(painter, ['a dog'], age('dpmsolver++'), count=2, sampler='dpmsolver++') == (
        f'prior.num_images is 2 but {tmp_path}/dpmsolver++ holds 2 made by an older version, whose dpmsolver++ took '
        f'other timesteps; delete that folder or set prior.dir.'
    )


@pytest.mark.parametrize('stage', ['', 'super_resolution'])
def test_an_image_that_was_changed_after_it_was_generated_is_noticed(tmp_path, stage):
    options = {**OPTIONS, 'super_resolution': True}
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, **options)
    path = tmp_path / stage / 'a_dog_00001.png'
    Image.new('RGB', (16, 16)).save(path)
    assert refusal(Painter(), ['a dog'], tmp_path, count=2, super_resolution=True) == (
        f'{path} is not the class image that the model generated; put that back, or delete the file to have it '
        'generated again.'
    )
    path.unlink()
    painter = Painter()
    ensure_class_images(painter, ['a dog'], tmp_path, count=2, **options)
    assert painter.asked == [('a dog', 1)]


@pytest.mark.parametrize('text', ['{"images": ', '[]', '{"images": {"a.png": {}}}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    sentence = refusal(Painter(), ['a dog'], tmp_path, count=2)
    start = re.escape(f'{tmp_path / "manifest.json"} is no readable manifest (')
    assert re.fullmatch(start + r'.*\); delete that folder or set prior\.dir\.', sentence)


def test_a_manifest_whose_images_are_gone_is_begun_anew(tmp_path):
    for image in ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, **OPTIONS):
        image.path.unlink()
    ensure_class_images(Painter(1), ['a dog'], tmp_path, count=2, **OPTIONS)
    assert manifest_of(tmp_path)['model'] == tiny_pipelines.base(1).weights_hash
