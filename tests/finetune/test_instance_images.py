"""The subjects' images of a run: built-in ones, folders, captions, several subjects."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_config_dict
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.finetune import instance_images
from dreambooth_jax.storybook import draw, subjects


def config_with(phrases=(), **data):
    config = to_config_dict(DreamBoothConfig())
    config.prior.phrases = phrases
    for name, value in data.items():
        config.data[name] = value
    return resolve(DreamBoothConfig, config)


def squares(config, side):
    (found,) = instance_images.read(config, side)
    return found


def photos(folder, count, captions=()):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((40, 48, 3), 10 * i, np.uint8)).save(folder / f'{i}.png')
    for i, text in captions:
        (folder / f'{i}.txt').write_text(text)
    return str(folder)


def test_a_built_in_subject_is_its_reference_scenes_at_any_size():
    config = config_with(subject='dog6', instance_prompt='a sks dog', class_prompt='a dog')
    scenes = subjects.reference_scenes('dog6')
    images, prompts, masks, class_prompts = squares(config, 32)
    assert masks is None and 4 <= len(scenes) <= 6 and images.shape == (len(scenes), 32, 32, 3)
    assert np.array_equal(images[1], draw.paint(scenes[1], 32)) and prompts == ['a sks dog'] * len(scenes)
    assert class_prompts == [('a dog',)] * len(scenes)
    assert squares(config, 128)[0].shape == (len(scenes), 128, 128, 3)


def test_several_subjects_keep_their_own_prompts_and_captions(tmp_path):
    several = (
        dict(
            instance_dir=photos(tmp_path / 'cat', 2, [(1, 'a sks cat asleep')]),
            instance_prompt='a sks cat',
            class_prompt='a cat',
        ),
        dict(subject='vase', instance_prompt='a zwx vase', class_prompt='a vase'),
    )
    images, prompts, _, class_prompts = squares(config_with(subjects=several, phrases=('in the snow',)), 32)
    painted = len(subjects.reference_scenes('vase'))
    assert prompts == ['a sks cat', 'a sks cat asleep', *['a zwx vase'] * painted]
    cats, vases = ('a cat in the snow',), ('a vase in the snow',)
    assert class_prompts == [cats, cats, *[vases] * painted]
    assert len(images) == 2 + painted and images[1].max() == 10


def test_crops_come_with_their_images_prompt(tmp_path):
    folder = photos(tmp_path / 'dog', 3)
    config = config_with(instance_dir=folder, instance_prompt='a sks dog', class_prompt='a dog', crops=2)
    images, prompts, *_ = squares(config, 32)
    assert len(images) == len(prompts) == 6


def test_images_without_a_mask_count_in_full_beside_one_that_has_one(tmp_path):
    folder = photos(tmp_path / 'dog', 2)
    half = np.zeros((40, 48), np.uint8)
    half[:, :24] = 255
    Image.fromarray(half).save(tmp_path / 'dog' / '1.mask.png')
    dog = dict(instance_dir=folder, instance_prompt='a sks dog', class_prompt='a dog')
    vase = dict(subject='vase', instance_prompt='a zwx vase', class_prompt='a vase')
    masks = squares(config_with(subjects=(vase, dog)), 32).masks
    painted = len(subjects.reference_scenes('vase'))
    assert masks.shape == (painted + 2, 32, 32, 1) and masks.dtype == np.uint8
    assert masks[: painted + 1].min() == 255 and masks[painted + 1].mean() == 127.5


def test_a_built_in_subject_has_masks_of_itself_if_asked():
    words = dict(instance_prompt='a sks dog', class_prompt='a dog', subject='dog6')
    config = config_with(subject_masks=True, **words)
    plain, masked = squares(config_with(**words), 32), squares(config, 32)
    assert np.array_equal(plain.images, masked.images) and masked.masks.dtype == np.uint8
    painted = [draw.paint_mask(scene, 32) for scene in subjects.reference_scenes('dog6')]
    assert np.array_equal(masked.masks[..., 0], np.stack(painted)) and masked.masks.shape == (
        *plain.images.shape[:3],
        1,
    )
    assert instance_images.describe_folders(config) == "  built-in subject dog6, with masks, 'a sks dog'"


def test_a_built_in_subject_has_captions_if_asked():
    words = dict(instance_prompt='a sks dog', class_prompt='a dog', subject='dog6')
    config = config_with(subject_captions=True, **words)
    assert set(squares(config_with(**words), 32).prompts) == {'a sks dog'}
    captions = subjects.captions('dog6', 'a sks dog')
    assert squares(config, 32).prompts == captions and len(set(captions)) == len(captions)
    lines = instance_images.describe_folders(config).splitlines()
    assert lines == ["  built-in subject dog6, 'a sks dog'", *(f'    caption {caption!r}' for caption in captions)]


def test_photos_keep_their_ratio_where_the_settings_and_the_stage_say_so(tmp_path):
    folder = photos(tmp_path / 'dog', 2)  # 48 x 40 each
    Image.new('RGB', (48, 80), 'red').save(tmp_path / 'dog' / 'tall.png')
    several = (
        dict(instance_dir=folder, instance_prompt='a sks dog', class_prompt='a dog'),
        dict(subject='vase', instance_prompt='a zwx vase', class_prompt='a vase'),
    )
    config = config_with(subjects=several, aspect_buckets=True)
    groups = instance_images.read(config, 32, 8)
    painted = len(subjects.reference_scenes('vase'))
    assert [group.images.shape for group in groups] == [(2 + painted, 32, 32, 3), (1, 40, 24, 3)]
    assert instance_images.describe(groups) == f'images: {2 + painted} of 32 x 32, 1 of 24 x 40 pixels'
    assert len(instance_images.read(config, 32)) == 1  # a stage of squares
    assert len(instance_images.read(config_with(subjects=several), 32, 8)) == 1


def test_the_line_about_images_tells_of_masks(tmp_path):
    folder = photos(tmp_path / 'dog', 1)
    Image.new('L', (48, 40), 'white').save(tmp_path / 'dog' / '0.mask.png')
    config = config_with(instance_dir=folder, instance_prompt='a sks dog', class_prompt='a dog')
    line = 'images: 1 of 32 x 32 pixels; masks weigh the loss of those that have one'
    assert instance_images.describe(instance_images.read(config, 32)) == line


def test_an_unknown_subject_is_answered_with_those_there_are():
    config = config_with(subject='unicorn', instance_prompt='a sks horse', class_prompt='a horse')
    with pytest.raises(ConfigError, match="data.subject is 'unicorn' but must be one of backpack, backpack_dog,"):
        squares(config, 32)


def dog(folder, **data):
    return {'instance_dir': folder, 'instance_prompt': 'a photo of sks dog', 'class_prompt': 'a dog', **data}


def warnings_of(caplog, config):
    caplog.clear()
    with caplog.at_level('WARNING'):
        instance_images.check_folders(config)
    return [record.getMessage() for record in caplog.records]


def test_what_is_skipped_is_named_once(tmp_path, caplog):
    folder = photos(tmp_path / 'dog', 1)
    (tmp_path / 'dog' / 'notes.md').write_text('notes')
    (tmp_path / 'dog' / '7.txt').write_text('a sks dog')
    assert warnings_of(caplog, config_with(**dog(folder))) == [
        f'7.txt in {folder} is skipped: it is a caption without an image',
        f'notes.md in {folder} is skipped: it is text',
    ]


@pytest.mark.parametrize('captions', [('a dog asleep', 'an image of a dog'), ('desks', 'a dog')])
def test_captions_that_leave_the_subject_without_its_name_are_a_warning(tmp_path, caplog, captions):
    folder = photos(tmp_path / 'dog', 2, enumerate(captions))
    assert warnings_of(caplog, config_with(**dog(folder))) == [
        f"no caption in {folder} holds 'sks', which names the subject in the instance prompt 'a photo of sks dog', so "
        f'that name is not learned; write it into the captions'
    ]


@pytest.mark.parametrize(
    ('count', 'captions', 'class_prompt'),
    [(2, ['a dog'], 'a dog'), (2, ['a dog', 'one Sks, asleep'], 'a dog'), (1, ['a pet'], 'a photo of sks dog')],
)
def test_captions_that_are_enough_are_no_warning(tmp_path, caplog, count, captions, class_prompt):
    folder = photos(tmp_path / 'dog', count, enumerate(captions))
    assert warnings_of(caplog, config_with(**dog(folder, class_prompt=class_prompt))) == []


def with_word(tmp_path, captions, subjects=1):
    folders = [
        photos(tmp_path / f'{number}', 1, [(0, captions[number])] if captions[number] else ())
        for number in range(subjects)
    ]
    config = to_config_dict(DreamBoothConfig())
    config.data.subjects = tuple(dog(folder, instance_prompt='a <rex> dog') for folder in folders)
    config.textual_inversion.token = '<rex>'
    return resolve(DreamBoothConfig, config)


def test_captions_that_leave_a_new_word_untaught_are_refused(tmp_path):
    with pytest.raises(ConfigError) as error:
        instance_images.check_folders(with_word(tmp_path, ['a sleeping dog', 'a dog'], 2))
    assert str(error.value) == (
        "config.textual_inversion.token is '<rex>' but the images have captions that do not hold it, so nothing "
        'would teach it; write it into the captions, or take them away'
    )


@pytest.mark.parametrize('captions', [('a dog', 'my <REX> dog'), ('a dog', None), (None, None)])
def test_one_prompt_with_the_new_word_is_enough(tmp_path, captions):
    instance_images.check_folders(with_word(tmp_path, captions, 2))


def test_folders_are_described_image_by_image(tmp_path):
    folder = photos(tmp_path / 'dog', 3, [(1, 'a sks dog asleep')])
    Image.new('L', (48, 40), 'white').save(tmp_path / 'dog' / '2.mask.png')
    (tmp_path / 'dog' / 'notes.md').write_text('notes')
    several = (dog(folder), dict(subject='vase', instance_prompt='a zwx vase', class_prompt='a vase'))
    assert instance_images.describe_folders(config_with(subjects=several)).splitlines() == [
        f"  {folder}: 3 files, 'a photo of sks dog' unless captioned",
        '    0.png: 48 x 40',
        "    1.png: 48 x 40, caption 'a sks dog asleep'",
        '    2.png: 48 x 40, mask 2.mask.png',
        '    skipped: notes.md is text',
        "  built-in subject vase, 'a zwx vase'",
    ]


def test_whole_photos_keep_their_sizes_and_built_in_subjects_are_painted(tmp_path):
    for name, size in (('1.png', (30, 20)), ('2.png', (16, 16))):
        Image.new('RGB', size, 'red').save(tmp_path / name)
    photos = {'instance_dir': str(tmp_path), 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    painted = {'subject': 'dog2', 'instance_prompt': 'a zwx dog', 'class_prompt': 'a dog'}
    config = config_with(subjects=(photos, painted))
    found, drawn = instance_images.whole(config, 32)
    assert [photo.shape for photo in found] == [(20, 30, 3), (16, 16, 3)]
    assert {photo.shape for photo in drawn} == {(32, 32, 3)}


def test_whole_photos_have_their_masks_and_painted_ones_the_painters(tmp_path):
    for name, size in (('1.png', (30, 20)), ('2.png', (16, 16))):
        Image.new('RGB', size, 'red').save(tmp_path / name)
    half = Image.new('L', (30, 20))
    half.paste(255, (0, 0, 15, 20))
    half.save(tmp_path / '1.mask.png')
    photos = {'instance_dir': str(tmp_path), 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    painted = {'subject': 'dog2', 'instance_prompt': 'a zwx dog', 'class_prompt': 'a dog'}
    config = config_with(subjects=(photos, painted))
    (first, second), drawn = instance_images.whole_masks(config, 32)
    assert second is None and first.shape == (20, 30) and first[:, :15].min() == 255 and first[:, 15:].max() == 0
    assert [mask.shape for mask in drawn] == [(32, 32)] * len(instance_images.whole(config, 32)[1])
    Image.new('L', (30, 21)).save(tmp_path / '1.mask.png')
    with pytest.raises(ImageError, match='make the mask as large as its image'):
        instance_images.whole_masks(config, 32)
