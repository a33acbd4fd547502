"""Class images: what is generated, what is kept, and what is refused."""

import dataclasses
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import (
    BaseConfig,
    DataConfig,
    DreamBoothConfig,
    PriorConfig,
    SubjectConfig,
    SuperResolutionConfig,
)
from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import Cascade, Images
from dreambooth_jax.generation.class_images import PriorError
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.system import lock
from dreambooth_jax.training.loop import TrainingError
from dreambooth_jax.weights.identity import scheduler_hash
from tests.support import tiny_pipelines
from tests.support.generating import generate

OPTIONS = dict(steps=2, guidance_scale=3.0, sampler='ddim', seed=5, batch_size=4, progress=False)


class Painter:
    """In a cascade's place: one colour per (prompt, number), and a record of what was asked for.

    Attributes:
      asked: [(prompt, number)].
      batches: their sizes.
      stop_after: batches until it breaks off, as a kill does.
    """

    def __init__(self, seed=0, stop_after=None):
        self.base, self.super_resolution = tiny_pipelines.base(seed), tiny_pipelines.super_resolution(seed)
        self.asked, self.batches, self.stop_after = [], [], stop_after
        self.base_size, self.clip_skip, self.released = self.base.size, 0, 0

    def release(self):
        self.released += 1

    def stream(self, prompts, requests, options):
        self.options, batch_size = options, options.batch_size
        for first in range(0, len(requests), batch_size):
            if len(self.batches) == self.stop_after:
                raise KeyboardInterrupt
            batch = requests[first : first + batch_size]
            self.asked += [(prompts[prompt], number) for prompt, number in batch]
            self.batches.append(len(batch))
            low = np.stack([np.full((8, 8, 3), (len(prompts[p]), n, 0), np.uint8) for p, n in batch])
            high = np.repeat(np.repeat(low, 2, 1), 2, 2) if options.super_resolution else None
            yield range(first, first + len(batch)), Images(low, high)


def ensure_class_images(*arguments, **given):
    """With these options, and of the base stage alone unless they say otherwise."""
    more = {name: given.pop(name) for name in ('count', 'progress', 'metadata') if name in given}
    return class_images.ensure_class_images(*arguments, SamplingOptions(**{'super_resolution': False, **given}), **more)


def test_images_of_another_size_or_other_layers_of_clip_are_refused(tmp_path):
    painter = Painter()
    ensure_class_images(painter, ['a dog'], tmp_path, count=1, **OPTIONS)
    painter.base_size, painter.clip_skip = 16, 1
    assert 'with size 8 instead of 16 and with clip_skip 0 instead of 1' in refusal(
        painter, ['a dog'], tmp_path, count=1
    )


def manifest_of(folder):
    return json.loads((folder / 'manifest.json').read_text())


def refusal(*arguments, **options):
    with pytest.raises(PriorError) as error:
        ensure_class_images(*arguments, **{**OPTIONS, **options})
    return str(error.value)


def test_every_prompt_gets_its_images_and_each_its_seed(tmp_path):
    painter, folder = Painter(), tmp_path / 'prior'
    images = ensure_class_images(painter, ['a dog', 'a red mug', 'a dog'], folder, count=3, **OPTIONS)
    assert [(image.prompt, image.path.name) for image in images] == [
        (prompt, f'{prompt.replace(" ", "_")}_0000{number}.png')
        for prompt in ('a dog', 'a red mug')
        for number in range(3)
    ]
    assert painter.batches == [4, 2]
    assert painter.options == SamplingOptions(
        steps=2, guidance_scale=3.0, sampler='ddim', seed=5, batch_size=4, super_resolution=False
    )
    assert all(image.super_resolution is None for image in images)
    assert np.array_equal(np.asarray(Image.open(images[4].path))[0, 0], (9, 1, 0))  # lossless
    manifest = manifest_of(folder)
    assert manifest['images']['a_red_mug_00001.png'] == {
        'prompt': 'a red mug',
        'seed': 5,
        'number': 1,
        'super_resolution': False,
        'sha256': file_hash(images[4].path),
    }
    shared = {name: manifest[name] for name in ('prompts', 'sampler', 'steps', 'guidance_scale', 'seed')}
    assert shared == {
        'prompts': ['a dog', 'a red mug'],
        'sampler': 'ddim',
        'steps': 2,
        'guidance_scale': 3.0,
        'seed': 5,
    }
    assert manifest['model'] == tiny_pipelines.base().weights_hash
    assert sorted(path.name for path in folder.iterdir() if path.suffix != '.png') == ['manifest.json']


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ensure_class_images(Painter(stop_after=2), ['a dog'], tmp_path, count=11, **OPTIONS)
    assert len(manifest_of(tmp_path)['images']) == 8
    painter = Painter()
    images = ensure_class_images(painter, ['a dog'], tmp_path, count=11, **OPTIONS)
    assert painter.asked == [('a dog', number) for number in (8, 9, 10)]
    assert len(images) == 11 and all(image.path.is_file() for image in images)


def test_a_lost_or_unlisted_image_is_generated_again(tmp_path):
    images = ensure_class_images(Painter(), ['a dog'], tmp_path, count=6, **OPTIONS)
    images[2].path.unlink()
    manifest = manifest_of(tmp_path)
    del manifest['images'][images[4].path.name]  # written, then killed before the manifest was
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    painter = Painter()
    ensure_class_images(painter, ['a dog'], tmp_path, count=6, **OPTIONS)
    assert painter.asked == [('a dog', 2), ('a dog', 4)]


def test_the_lock_of_a_killed_run_goes_where_the_folder_can_be_written(tmp_path, monkeypatch):
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=3, **OPTIONS)
    (tmp_path / lock.FILE).touch()  # killed between the last image and the end
    for writable in (False, True):
        monkeypatch.setattr(class_images.os, 'access', lambda *_, writable=writable: writable)
        assert len(ensure_class_images(Painter(), ['a dog'], tmp_path, count=3, **OPTIONS)) == 3
        assert (tmp_path / lock.FILE).exists() != writable


def test_of_more_than_enough_the_first_are_used_and_nothing_is_generated(tmp_path):
    ensure_class_images(Painter(), ['a dog', 'a cat'], tmp_path, count=6, **OPTIONS)
    painter = Painter()
    images = ensure_class_images(painter, ['a cat'], tmp_path, count=2, **OPTIONS)
    assert painter.asked == []
    assert [image.path.name for image in images] == ['a_cat_00000.png', 'a_cat_00001.png']


def test_prompts_with_the_same_words_have_their_own_files(tmp_path):
    images = ensure_class_images(Painter(), ['a dog', 'A dog!', 'a  dog', 'é'], tmp_path, count=1, **OPTIONS)
    assert images[0].path.name == 'a_dog_00000.png'
    assert len({image.path for image in images}) == 4


def test_the_second_stage_generates_where_it_is_asked_to(tmp_path):
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=3, **OPTIONS)
    painter = Painter()
    images = ensure_class_images(painter, ['a dog'], tmp_path, count=3, super_resolution=True, noise_level=7, **OPTIONS)
    assert len(painter.asked) == 3  # the base images are needed unrounded
    assert images[0].super_resolution == tmp_path / 'super_resolution' / 'a_dog_00000.png'
    assert Image.open(images[0].super_resolution).size == (16, 16)
    assert manifest_of(tmp_path)['super_resolution'] == {
        'model': painter.super_resolution.weights_hash,
        'scheduler': scheduler_hash(painter.super_resolution),
        'noise_level': 7,
        'super_resolution_steps': None,
        'super_resolution_guidance_scale': None,
    }
    for wanted in (True, False):  # without it, what is known about the others is kept
        painter = Painter()
        ensure_class_images(painter, ['a dog'], tmp_path, count=3, super_resolution=wanted, noise_level=7, **OPTIONS)
        assert painter.asked == []
    assert refusal(Painter(), ['a dog'], tmp_path, count=3, super_resolution=True, noise_level=8) == (
        f'prior.num_images is 3 but {tmp_path} holds 3 made with noise_level 7 instead of 8; delete that folder or set '
        f'prior.dir.'
    )
    painter = Painter()
    painter.super_resolution = tiny_pipelines.super_resolution(1)
    assert refusal(painter, ['a dog'], tmp_path, count=3, super_resolution=True, noise_level=7) == (
        f'prior.num_images is 3 but {tmp_path} holds 3 made by another super-resolution model; delete that folder or '
        f'set prior.dir.'
    )


def test_a_cascade_of_one_stage_generates_only_that(tmp_path):
    painter = Painter()
    painter.super_resolution = None
    images = ensure_class_images(painter, ['a dog'], tmp_path, count=1, super_resolution=True, **OPTIONS)
    assert images[0].super_resolution is None


@pytest.mark.parametrize(
    'change, made',
    [
        ({'painter': 1}, 'by another model'),
        ({'prompts': ['a cat']}, "for 'a dog' instead of 'a cat'"),
        ({'sampler': 'ddpm'}, 'with sampler ddim instead of ddpm'),
        ({'steps': 50}, 'with steps 2 instead of 50'),
        ({'guidance_scale': 7.5}, 'with guidance_scale 3.0 instead of 7.5'),
        ({'seed': 0}, 'with seed 5 instead of 0'),
        ({'seed': 0, 'painter': 1}, 'by another model and with seed 5 instead of 0'),
    ],
)
def test_images_of_another_origin_are_refused_and_left_alone(tmp_path, change, made):
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, **OPTIONS)
    before = (tmp_path / 'manifest.json').read_bytes()
    options = {name: value for name, value in change.items() if name not in ('painter', 'prompts')}
    painter, prompts = Painter(change.get('painter', 0)), change.get('prompts', ['a dog'])
    assert refusal(painter, prompts, tmp_path, count=3, **options) == (
        f'prior.num_images is 3 but {tmp_path} holds 2 made {made}; delete that folder or set prior.dir.'
    )
    assert painter.asked == [] and (tmp_path / 'manifest.json').read_bytes() == before


def test_batch_size_and_count_may_change(tmp_path):
    ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, **OPTIONS)
    painter = Painter()
    ensure_class_images(painter, ['a dog'], tmp_path, count=7, **{**OPTIONS, 'batch_size': 3})
    assert painter.batches == [3, 2]


def told_by_the_first(monkeypatch, *values):
    """This is the second of two hosts, to which the first one says these values in turn."""
    from jax.experimental import multihost_utils

    said = iter(values)
    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr('jax.process_index', lambda: 1)
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda _: np.asarray(next(said)))


def test_another_host_generates_what_the_first_one_lacks_and_writes_nothing(tmp_path, monkeypatch):
    fine, painter = False, Painter()
    told_by_the_first(monkeypatch, fine, fine, [False, True], fine)
    images = ensure_class_images(painter, ['a dog'], tmp_path / 'not_shared', count=2, **OPTIONS)
    assert painter.asked == [('a dog', 1)] and len(images) == 2
    assert not (tmp_path / 'not_shared').exists()


def test_another_host_ends_with_the_first(tmp_path, monkeypatch):
    told_by_the_first(monkeypatch, True)
    with pytest.raises(TrainingError, match='^the first host could not keep class images; what it says itself tells'):
        ensure_class_images(Painter(), ['a dog'], tmp_path, count=2, **OPTIONS)


def test_the_first_host_tells_the_others_of_its_error_before_it_ends(tmp_path, monkeypatch):
    from jax.experimental import multihost_utils

    told = []
    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda failed: told.append(bool(failed)) or failed)
    (tmp_path / 'manifest.json').write_text('[]')
    refusal(Painter(), ['a dog'], tmp_path, count=2)
    assert told == [False, True]


def settings(**changes):
    subject = dict(subject='dog', instance_prompt='a sks dog', class_prompt='a dog')
    prior = PriorConfig(num_images=3, steps=2, sampler='ddim', guidance_scale=2.0, batch_size=4)
    return DreamBoothConfig(**{'data': DataConfig(**subject), 'prior': prior, **changes})


def test_a_run_gets_what_its_settings_ask_for(tmp_path):
    images = class_images.class_images_of(settings(seed=9), painter := Painter(), tmp_path)
    assert painter.released == 1  # encoding, which comes next, has the devices to itself
    assert [image.path for image in images] == [tmp_path / 'prior' / f'a_dog_0000{i}.png' for i in range(3)]
    assert painter.options == SamplingOptions(
        steps=2, guidance_scale=2.0, sampler='ddim', seed=9, batch_size=4, super_resolution=False
    )
    assert class_images.class_images_of(settings(prior=PriorConfig(weight=0.0)), painter, tmp_path / 'other') == []
    assert not (tmp_path / 'other').exists()


def test_class_images_are_generated_for_stages_that_train_on_them_alone(tmp_path):
    painter = Painter()
    second = SuperResolutionConfig(steps=10)
    assert class_images.class_images_of(settings(base=BaseConfig(steps=0)), painter, tmp_path) == []
    idle = settings(base=BaseConfig(steps=0), super_resolution=second)
    assert class_images.class_images_of(idle, painter, tmp_path) == [] and painter.asked == []
    second = dataclasses.replace(second, with_prior=True)
    images = class_images.class_images_of(dataclasses.replace(idle, super_resolution=second), painter, tmp_path)
    assert len(images) == 3 and all(image.super_resolution.is_file() for image in images)
    painter = Painter()
    painter.super_resolution = None
    alone = dataclasses.replace(idle, super_resolution=second)
    assert class_images.class_images_of(alone, painter, tmp_path / 'other') == [] and painter.asked == []


@pytest.fixture
def own(tmp_path):
    """A folder of class photos of one's own: two images, one with a caption, and a note."""
    folder = tmp_path / 'my dogs'
    folder.mkdir()
    for name, shape in (('b.png', (16, 24)), ('a.jpg', (20, 20))):
        Image.fromarray(np.full((*shape, 3), 9, np.uint8)).save(folder / name)
    (folder / 'a.txt').write_text('a dog on a rug')
    (folder / 'notes.md').write_text('no image')
    return folder


def with_dir(folder, **changes):
    return settings(prior=PriorConfig(num_images=1, dir=str(folder)), **changes)


def test_photos_of_ones_own_are_all_used_and_their_folder_is_left_alone(own, tmp_path, caplog):
    before = {path: path.stat().st_mtime_ns for path in [own, *own.iterdir()]}
    painter = Painter()
    with caplog.at_level(logging.WARNING):
        images = class_images.class_images_of(with_dir(own), painter, tmp_path / 'run')
    assert images == [(own / 'a.jpg', 'a dog on a rug', None), (own / 'b.png', 'a dog', None)]
    assert painter.asked == [] and f'notes.md in {own} is skipped' in caplog.text
    assert {path: path.stat().st_mtime_ns for path in [own, *own.iterdir()]} == before
    assert [path.name for path in (tmp_path / 'run' / 'prior').iterdir()] == ['manifest.json']
    assert manifest_of(tmp_path / 'run' / 'prior') == {
        'images': {},
        'photos': {
            'folder': str(own),
            'images': {
                'a.jpg': {'prompt': 'a dog on a rug', 'sha256': file_hash(own / 'a.jpg')},
                'b.png': {'prompt': 'a dog', 'sha256': file_hash(own / 'b.png')},
            },
        },
    }
    reordered = class_images.class_images_of(with_dir(own), painter, tmp_path / 'run', ['b.png', 'a.jpg'])
    assert reordered == images[::-1]
    both = with_dir(own, super_resolution=SuperResolutionConfig(steps=1, with_prior=True))
    images = class_images.class_images_of(both, painter, tmp_path / 'run')
    read = class_images.read(images, {'base': 8, 'super_resolution': 16})
    assert [pixels.shape for pixels, *_ in read.values()] == [(2, 8, 8, 3), (2, 16, 16, 3)]


def test_photos_of_ones_own_and_generated_images_are_noted_beside_each_other(own, tmp_path):
    generated = dataclasses.replace(with_dir(own), prior=PriorConfig(num_images=1))
    prior = tmp_path / 'prior'
    class_images.class_images_of(
        with_dir(own), Painter(), tmp_path
    )  # a manifest of photos alone is no generated image's
    painter = Painter()
    images = class_images.class_images_of(generated, painter, tmp_path)
    assert len(images) == 1 and painter.asked and 'photos' not in manifest_of(prior)
    before = manifest_of(prior)
    class_images.class_images_of(with_dir(own), Painter(), tmp_path)
    assert {**before, 'photos': manifest_of(prior)['photos']} == manifest_of(prior)
    painter = Painter()
    assert class_images.class_images_of(generated, painter, tmp_path) == images and painter.asked == []


def test_a_host_that_does_not_see_photos_of_ones_own_says_so(own, tmp_path, monkeypatch):
    from jax.experimental import multihost_utils

    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr('jax.process_index', lambda: 1)
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda count: np.int32(2))
    assert len(class_images.class_images_of(with_dir(own), Painter(), tmp_path)) == 2
    with pytest.raises(PriorError) as error:
        class_images.class_images_of(with_dir(tmp_path / 'elsewhere'), Painter(), tmp_path)
    assert str(error.value) == (
        f"config.prior.dir is '{tmp_path}/elsewhere', where the first host sees 2 photos and host 1 0; set it to a "
        f'folder on a disk that all hosts share, or copy it.'
    )


def test_what_cannot_be_told_of_photos_of_ones_own_is_said(own, tmp_path):
    subjects = tuple(
        SubjectConfig(subject=noun, instance_prompt=f'a sks {noun}', class_prompt=f'a {noun}')
        for noun in ('dog', 'cat')
    )
    with pytest.raises(PriorError) as error:
        class_images.own_photos(with_dir(own, data=DataConfig(subjects=subjects)))
    assert str(error.value) == (
        f"config.prior.dir is '{own}', a folder of photos of your own, but the subjects have 2 class prompts ('a dog', "
        f"'a cat') and it cannot say which class a photo shows; leave prior.dir out to have class images generated, or "
        f'train the subjects in runs of their own.'
    )
    pets = tuple(dataclasses.replace(subject, class_prompt='a pet') for subject in subjects)
    images = class_images.class_images_of(with_dir(own, data=DataConfig(subjects=pets)), Painter(), tmp_path)
    assert [image.prompt for image in images] == ['a dog on a rug', 'a pet']
    Image.new('L', (24, 16)).save(own / 'b.mask.png')
    with pytest.raises(PriorError) as error:
        class_images.own_photos(with_dir(own))
    assert str(error.value) == (
        f"config.prior.dir is '{own}', which holds the mask b.mask.png, but class images count in full; take masks "
        f'out of that folder.'
    )


def test_generated_images_are_never_taken_for_photos_of_ones_own(tmp_path):
    with pytest.raises(KeyboardInterrupt):  # killed while the first batch is generated
        ensure_class_images(Painter(stop_after=0), ['a dog'], tmp_path / 'killed', count=3, **OPTIONS)
    assert manifest_of(tmp_path / 'killed')['images'] == {}
    ensure_class_images(Painter(), ['a dog'], tmp_path / 'lost', count=3, **OPTIONS)
    (tmp_path / 'lost' / 'manifest.json').unlink()
    for folder in ('killed', 'lost', 'empty'):
        assert class_images.own_photos(with_dir(tmp_path / folder)) == []
    with pytest.raises(PriorError, match='3 images without a manifest.json'):
        class_images.class_images_of(with_dir(tmp_path / 'lost'), Painter(), tmp_path)


def test_a_run_that_trains_the_second_stage_on_class_images_gets_both_sizes(tmp_path):
    second = SuperResolutionConfig(steps=10, with_prior=True, sample_noise_level=20, sample_guidance_scale=1.5)
    subjects = tuple(
        SubjectConfig(subject=noun, instance_prompt=f'a sks {noun}', class_prompt=f'a {noun}')
        for noun in ('dog', 'cat')
    )
    config = settings(
        super_resolution=second,
        data=DataConfig(subjects=subjects),
        prior=PriorConfig(num_images=2, dir=str(tmp_path / 'mine'), batch_size=4),
    )
    painter = Painter()
    images = class_images.class_images_of(config, painter, tmp_path)
    assert painter.options.noise_level == 20
    assert painter.options.super_resolution_guidance_scale == 1.5
    read = class_images.read(images, {'base': 8, 'super_resolution': 16})
    assert {stage: pixels.shape for stage, (pixels, *_) in read.items()} == {
        'base': (4, 8, 8, 3),
        'super_resolution': (4, 16, 16, 3),
    }
    assert read['base'][1] == ['a dog', 'a dog', 'a cat', 'a cat']
    assert class_images.read([], {'base': 8}) == {}
    images[0].path.write_bytes(b'')
    with pytest.raises(ImageError, match=re.escape(str(images[0].path))):
        class_images.read(images, {'base': 8})


@pytest.mark.slow
def test_a_real_cascade_generates_the_same_images_after_a_break(tmp_path):
    cascade = Cascade(tiny_pipelines.base())
    whole = ensure_class_images(cascade, ['a dog'], tmp_path / 'whole', count=6, **OPTIONS)
    ensure_class_images(cascade, ['a dog'], tmp_path / 'parts', count=1, **OPTIONS)
    parts = ensure_class_images(cascade, ['a dog'], tmp_path / 'parts', count=6, **OPTIONS)
    pixels = [class_images.read(images, {'base': 8})['base'][0] for images in (whole, parts)]
    np.testing.assert_allclose(*pixels, atol=1)
    generated = generate(
        cascade, ['a dog'], num_images=6, steps=2, guidance_scale=3.0, sampler='ddim', seed=5, batch_size=4
    )
    np.testing.assert_allclose(pixels[0], generated.base, atol=1)
