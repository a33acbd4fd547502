"""Class images of which every other one has more in its prompt than the class prompt."""

import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_config_dict
from dreambooth_jax.finetune import planned_stage
from dreambooth_jax.generation import class_images
from tests.generation.test_class_images import OPTIONS, Painter, ensure_class_images, manifest_of, refusal

PHRASES = ('in the snow', 'wearing a hat')


def settings(folder, **prior):
    config = to_config_dict(DreamBoothConfig())
    config.data.instance_dir = 'photos'
    config.data.instance_prompt, config.data.class_prompt = 'a sks dog', 'a dog'
    config.prior.update({'dir': str(folder), 'num_images': 5, **prior})
    return resolve(DreamBoothConfig, config)


def test_a_run_gets_what_its_settings_ask_for_and_its_plan_says_the_same(tmp_path):
    painter, config = Painter(), settings(tmp_path / 'prior', phrases=PHRASES)
    images = class_images.class_images_of(config, painter, tmp_path / 'run')
    prompts = ['a dog', 'a dog in the snow', 'a dog', 'a dog wearing a hat', 'a dog']
    assert [image.prompt for image in images] == [prompt for prompt, _ in painter.asked] == prompts
    assert [number for _, number in painter.asked] == [0, 1, 2, 3, 4]
    assert planned_stage.class_image_prompts(config) == prompts
    names = ['a_dog_00000', 'a_dog_in_the_snow_00001', 'a_dog_00002', 'a_dog_wearing_a_hat_00003', 'a_dog_00004']
    assert [image.path.name for image in images] == [f'{name}.png' for name in names]
    assert {name: image['prompt'] for name, image in manifest_of(tmp_path / 'prior')['images'].items()} == {
        f'{name}.png': prompt for name, prompt in zip(names, prompts, strict=True)
    }
    # Its images are not taken for photos of one's own when the manifest is lost.
    (tmp_path / 'prior' / 'manifest.json').unlink()
    assert class_images.own_photos(config) == []


def test_more_images_keep_those_that_are_there_and_other_phrases_are_refused(tmp_path):
    ensure_class_images(Painter(), ['a dog', 'a cat'], tmp_path, phrases=PHRASES, count=2, **OPTIONS)
    again = Painter()
    images = ensure_class_images(again, ['a dog', 'a cat'], tmp_path, phrases=PHRASES, count=4, **OPTIONS)
    wanted = [('a dog', 2), ('a dog wearing a hat', 3), ('a cat', 2), ('a cat wearing a hat', 3)]
    assert again.asked == wanted and len(images) == 8
    assert "instead of 'a dog', 'a dog on a rug'" in refusal(again, ['a dog'], tmp_path, phrases=('on a rug',), count=4)


def test_phrases_that_nothing_would_use_are_refused(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path / 'rex.png')
    with pytest.raises(class_images.PriorError) as error:
        class_images.own_photos(settings(tmp_path, phrases=PHRASES))
    assert str(error.value) == (
        f"config.prior.dir is '{tmp_path}', a folder of photos of your own, so nothing is generated, but "
        "config.prior.phrases is ('in the snow', 'wearing a hat'); leave it (), and write captions beside the photos "
        'instead.'
    )


def test_a_blank_phrase_is_refused():
    with pytest.raises(ConfigError) as error:
        settings('prior', phrases=('in the snow', ' '))
    assert str(error.value) == "config.prior.phrases has ' ', which is blank; leave it out"
