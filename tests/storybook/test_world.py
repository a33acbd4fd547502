"""Random scenes: a function of the seed, without a subject's marks, and never more said than a prompt can ask for."""

import dataclasses

import numpy as np
import pytest

from dreambooth_jax.storybook import draw_subject, world


def scenes(count=400, **options):
    return [world.sample_scene(np.random.default_rng((1, row)), **options) for row in range(count)]


ORDINARY = scenes()


def test_a_seed_is_a_scene():
    assert scenes(20) == ORDINARY[:20]
    assert len({dataclasses.astuple(scene) for scene in ORDINARY}) == len(ORDINARY)


def test_what_only_subjects_have_never_occurs():
    assert not any(scene.split or scene.mark or scene.fine_mark for scene in ORDINARY)


def test_beside_its_context_a_scene_has_one_property_at_most_and_a_view_hides_what_is_worn():
    for scene in ORDINARY:
        assert sum(value is not None for value in (scene.material, scene.style, scene.view)) <= 1
        assert scene.accessory is None or (scene.view is None and scene.class_noun in world.WEARING_CLASSES)
        assert scene.colour != scene.second_colour


def test_classes_with_kinds_have_one_and_others_none():
    kinds = {'toy': world.TOY_KINDS, 'stuffed animal': world.ANIMAL_KINDS}
    for scene in ORDINARY:
        assert scene.kind in kinds.get(scene.class_noun, (None,))
    for noun, names in kinds.items():
        assert {scene.kind for scene in scenes(60, class_noun=noun)} == set(names)


@pytest.mark.parametrize(
    ('field', 'values'),
    [
        ('class_noun', world.CLASSES),
        ('colour', tuple(world.COLOURS)),
        ('pattern', (None, *world.PATTERNS)),
        ('context', (None, *world.CONTEXTS)),
        ('accessory', (None, *world.ACCESSORIES)),
        ('material', (None, *world.MATERIALS)),
        ('style', (None, *world.STYLES)),
        ('view', (None, *world.VIEWS)),
        ('flip', (False, True)),
    ],
)
def test_every_value_occurs_and_no_other(field, values):
    assert {getattr(scene, field) for scene in ORDINARY} == set(values)


def test_cats_and_dogs_are_three_times_as_likely_as_other_classes():
    share = np.mean([scene.class_noun in world.LIVE_CLASSES for scene in ORDINARY])
    assert abs(share - 6 / 19) < 0.08


def test_subjects_are_large_and_near_the_middle():
    for scene in ORDINARY:
        assert 0.42 <= scene.x <= 0.58 and 0.54 <= scene.y <= 0.63 and 0.58 <= scene.scale <= 0.76


def test_a_class_may_be_asked_for():
    assert {scene.class_noun for scene in scenes(10, class_noun='vase')} == {'vase'}


def test_marks_are_those_that_can_be_painted():
    assert not set(draw_subject.MARKS) & set(draw_subject.FINE_MARKS)
    assert draw_subject.FLOATING == ('floating on top of water', 'floating in an ocean of milk')
