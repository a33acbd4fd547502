"""What a run learns from: found by hash, written down in the order of use, and compared with what it began with."""

import json

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError
from dreambooth_jax.data.fingerprints import Fingerprint
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.training import inputs as run_inputs
from dreambooth_jax.training.inputs import CLASS_PHOTOS, Inputs
from tests.support import tiny_pipelines

PHOTOS = [Fingerprint('a.png', 'hash a'), Fingerprint('b.png', 'hash b', 'caption b')]
SETTINGS = {'model': 'owner/sd', 'data.instance_dir': 'photos', CLASS_PHOTOS: None}
MODEL = {'weights': 'w', 'scheduler': 's', 'tokenizer': 't'}


def begun(**photos):
    return Inputs({'base': MODEL}, photos or {'data.instance_dir': PHOTOS})


def check(now, workdir, was=None, stages=('base',), **settings):
    return run_inputs.check(was or begun(), now, {**SETTINGS, **settings}, workdir, stages)


def sentence(now, workdir, was=None, **settings):
    with pytest.raises(ConfigError) as error:
        check(now, workdir, was, **settings)
    return str(error.value)


def test_photos_are_found_by_what_they_hold_and_models_by_their_values(tmp_path):
    for number, name in enumerate(('a', 'b')):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'b.txt').write_text('a sks dog asleep')
    listed = {'data.instance_dir': list_images(tmp_path)[0]}
    found = run_inputs.find({'base': tiny_pipelines.base()}, listed)
    assert found.order == {'data.instance_dir': ['a.png', 'b.png']}
    assert found.models['base'].keys() == MODEL.keys()
    photos = found.photos['data.instance_dir']
    assert photos[0].photo != photos[1].photo and photos[0].caption is None is not photos[1].caption
    (tmp_path / 'b.txt').write_text('a sks dog')
    again = run_inputs.find({'base': tiny_pipelines.base(1)}, {'data.instance_dir': list_images(tmp_path)[0]})
    assert again.photos['data.instance_dir'][1].caption != photos[1].caption
    changed = {part for part, value in again.models['base'].items() if value != found.models['base'][part]}
    assert changed == {'weights'}


def test_what_is_written_is_read_again(tmp_path):
    assert run_inputs.read(tmp_path) is None  # as in runs of older versions
    text = run_inputs.to_json(begun())
    assert text.endswith('}\n') and json.loads(text)['photos']['data.instance_dir'][0]['name'] == 'a.png'
    (tmp_path / run_inputs.FILE).write_text(text)
    assert run_inputs.read(tmp_path) == begun()


@pytest.mark.parametrize('text', ['{', '[]', '{"models": {}}', '{"models": {}, "photos": {"a": [{"name": 1}]}}'])
def test_a_damaged_list_of_inputs_is_a_sentence(text, tmp_path):
    (tmp_path / 'inputs.json').write_text(text)
    with pytest.raises(ConfigError) as error:
        run_inputs.read(tmp_path)
    assert str(error.value) == f'{tmp_path}/inputs.json is damaged; restore it, or start another run with --workdir'


def test_photos_keep_the_order_of_the_run_under_new_names(tmp_path):
    renamed = [PHOTOS[1]._replace(name='0.png'), PHOTOS[0]]
    found = check(begun(**{'data.instance_dir': renamed}), tmp_path)
    assert found.order == {'data.instance_dir': ['a.png', '0.png']}


def test_what_other_stages_began_with_is_kept(tmp_path):
    was = Inputs({'base': MODEL, 'super_resolution': {'weights': 'x'}}, {})
    assert check(Inputs({'base': MODEL}, {}), tmp_path, was).models == was.models


@pytest.mark.parametrize(
    ('part', 'words'),
    [('weights', 'weights'), ('scheduler', 'noise schedule or prediction type'), ('tokenizer', 'tokenizer')],
)
def test_another_model_is_named_by_what_differs_if_its_stage_has_trained(tmp_path, part, words):
    now = Inputs({'base': {**MODEL, part: 'other'}}, {'data.instance_dir': PHOTOS})
    assert sentence(now, tmp_path) == (
        f"config.model is 'owner/sd', which differs in {words} from the model that {tmp_path} was begun with; put that "
        f'model back, or start another run with --workdir'
    )
    assert check(now, tmp_path, stages=()).models == now.models
    assert sentence(now, tmp_path, model_transformer_file='x.safetensors').startswith(
        f"config.model is 'owner/sd' with config.model_transformer_file 'x.safetensors', which differs in {words} from "
    )


def test_other_photos_are_named_up_to_five(tmp_path):
    many = [Fingerprint(f'{number}.png', str(number)) for number in range(7)]
    now = begun(**{'data.instance_dir': [*PHOTOS, *many]})
    said = sentence(now, tmp_path)
    assert said == (
        f"config.data.instance_dir is 'photos', which does not hold what {tmp_path} was begun with: 0.png is new, "
        f'1.png is new, 2.png is new, 3.png is new, 4.png is new and 2 more; put that back, or start another run with '
        f'--workdir'
    )
    (tmp_path / 'prior').mkdir()
    assert sentence(now, tmp_path).endswith(f' (with --config.prior.dir={tmp_path}/prior it has the same class images)')


@pytest.mark.parametrize('own_now', [False, True])
def test_class_images_are_not_exchanged_for_photos_nor_photos_for_class_images(tmp_path, own_now):
    own, generated = Inputs({}, {CLASS_PHOTOS: []}), Inputs({}, {})
    now, was = (own, generated) if own_now else (generated, own)
    said = sentence(now, tmp_path, was, **{CLASS_PHOTOS: 'dogs' if own_now else None})
    assert said == (
        f'config.prior.dir is {"dogs"!r}, a folder of photos of your own, but {tmp_path} was begun with class images '
        f'that the model generated; set it back, or start another run with --workdir'
        if own_now
        else f'config.prior.dir is None, no folder of photos of your own, but {tmp_path} was begun with class images '
        f'that are such photos; set it back, or start another run with --workdir'
    )
