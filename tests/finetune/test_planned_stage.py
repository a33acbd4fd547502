"""The training of a stage before there is anything to train on: shapes as they will be, class images as counted."""

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import DreamBoothConfig, resolve
from dreambooth_jax.data.table import Examples, make_table
from dreambooth_jax.finetune import planned_stage
from dreambooth_jax.finetune.stage import stage_data
from dreambooth_jax.generation.cascade import BASE
from dreambooth_jax.training.placement import make_placement
from tests.support.planned_runs import DATA, cascade, photos, planned, settings


@pytest.mark.parametrize('kind', ['pixels', 'latents'])
@pytest.mark.parametrize(
    'changed',
    [{}, {'base': {'train_text_encoder': True}, 'data': {**DATA, 'random_flip': True}}, {'prior': {'weight': 0.0}}],
    ids=['', 'text and flips', 'alone'],
)
def test_the_data_of_a_stage_have_the_planned_shapes(kind, changed):
    config = settings(**{'super_resolution': {'steps': 1, 'with_prior': True}, **changed})
    model = cascade(kind)
    _, stages = planned(model, config, masks=True)
    for name, stage in stages.items():
        (instance,) = photos(model, config, masks=True)[name]
        count = 3 if config.prior.weight else 0
        shape = (count, *instance.images.shape[1:])
        of_class = Examples(np.zeros(shape, np.uint8), ['a dog'] * count) if count else None
        made = stage_data(config, name, model, model, make_table(instance, of_class), stage.trainable)
        (found,) = stage.run.frozen['data']
        told = {part: tree for part, tree in found.items() if part != 'turns'}
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)  # noqa: E731
        assert shapes(told) == shapes(made)


@pytest.mark.parametrize(
    'changed, decays',
    [
        ({'optimizer': {'ema_decay': 0.9}}, (0.9, 0.9)),
        ({'super_resolution': {'steps': 1, 'ema_decay': 0.8}}, (None, 0.8)),
        ({'optimizer': {'ema_decay': 0.9}, 'super_resolution': {'steps': 1, 'ema_decay': 0.8}}, (0.9, 0.8)),
    ],
    ids=['both alike', 'one alone', 'each its own'],
)
def test_the_second_stage_may_have_an_average_of_its_own(changed, decays):
    config = settings(**{'super_resolution': {'steps': 1}, **changed})
    _, stages = planned(cascade('pixels'), config)
    assert tuple(stage.run.ema_decay for stage in stages.values()) == decays


def test_the_largest_images_decide_what_a_step_needs():
    config, model = settings(prior={'weight': 0.0}), cascade('pixels')
    sizes = [(8, 8), (8, 16), (16, 4)]
    instance = [Examples(np.zeros((2, *size, 3), np.uint8), ['a sks dog'] * 2) for size in sizes]
    stage = planned_stage.plan_stage(config, BASE, model, instance, make_placement('pmap'))
    assert stage.size == (8, 16)
    assert [data['images'].shape for data in stage.run.frozen['data']] == [(2, *size, 3) for size in sizes]
    assert [data['images'].shape for data in stage.on_largest.frozen['data']] == [(2, 8, 16, 3)] * 3
    assert stage.on_largest.params is stage.run.params and stage.trainable.params.keys() == stage.run.params.keys()


def config(**given):
    return resolve(DreamBoothConfig, {'data': DATA, **given})


def test_every_class_image_has_its_prompt():
    assert planned_stage.class_image_prompts(config(prior={'num_images': 3})) == ['a dog'] * 3
    subjects = [{**DATA, 'subject': name, 'class_prompt': f'a {name}'} for name in ('cat', 'dog')]
    both = resolve(DreamBoothConfig, {'data': {'subjects': [*subjects, subjects[0]]}, 'prior': {'num_images': 2}})
    assert planned_stage.class_image_prompts(both) == ['a cat', 'a cat', 'a dog', 'a dog']


def test_photos_of_ones_own_have_their_captions_or_else_the_class_prompt(tmp_path):
    for name in ('a', 'b'):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{name}.png')
    (tmp_path / 'b.txt').write_text('a dog asleep')
    own = config(prior={'dir': str(tmp_path), 'num_images': 9})
    assert planned_stage.class_image_prompts(own) == ['a dog', 'a dog asleep']


def test_shapes_of_one_entry_become_those_of_many():
    shapes = {'a': jax.ShapeDtypeStruct((1, 3), np.float32), 'b': [jax.ShapeDtypeStruct((1,), np.int32)]}
    found = planned_stage.repeated(shapes, 5)
    assert (found['a'].shape, found['a'].dtype, found['b'][0].shape) == ((5, 3), np.float32, (5,))
