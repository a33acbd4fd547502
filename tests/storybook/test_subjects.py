"""The thirty subjects: told apart by colours and badges, and shown by scenes that never repeat each other."""

import dataclasses
import itertools

import pytest

from dreambooth_jax.storybook import draw_subject, subjects, world
from dreambooth_jax.storybook.subjects import SUBJECTS

WHITISH = ('white', 'black', 'yellow')  # where a fine texture would have little contrast


def test_there_are_the_thirty_of_the_paper():
    nouns = [subject.class_noun for subject in SUBJECTS.values()]
    assert len(SUBJECTS) == 30 and set(nouns) == set(world.CLASSES)
    assert sum(noun in world.LIVE_CLASSES for noun in nouns) == 9
    assert all(name == subject.name for name, subject in SUBJECTS.items())


def test_no_two_of_a_class_look_alike():
    for one, other in itertools.combinations(SUBJECTS.values(), 2):
        if one.class_noun == other.class_noun:
            assert (one.look['colour'], one.look['second_colour']) != (
                other.look['colour'],
                other.look['second_colour'],
            )
            assert (one.look['mark'], one.look['mark_colour']) != (other.look['mark'], other.look['mark_colour'])


@pytest.mark.parametrize('name', SUBJECTS)
def test_a_look_can_be_painted(name):
    look, noun = SUBJECTS[name].look, SUBJECTS[name].class_noun
    assert {look['colour'], look['second_colour'], look['mark_colour']} <= set(world.COLOURS)
    assert look['mark'] in draw_subject.MARKS and look['fine_mark'] in draw_subject.FINE_MARKS and look['split']
    kinds = {'toy': world.TOY_KINDS, 'stuffed animal': world.ANIMAL_KINDS}.get(noun, (None,))
    assert look['kind'] in kinds
    assert look['mark_colour'] not in (look['colour'], look['second_colour'])
    assert look.keys() <= {field.name for field in dataclasses.fields(world.Scene)}


@pytest.mark.parametrize('name', SUBJECTS)
def test_reference_scenes_are_four_to_six_in_different_places(name):
    scenes = subjects.reference_scenes(name)
    assert 4 <= len(scenes) <= 6 and scenes == subjects.reference_scenes(name)
    contexts = [scene.context for scene in scenes]
    assert len(set(contexts)) == len(contexts) and set(contexts) <= set(subjects.REFERENCE_CONTEXTS)
    assert all(scene.seed % 2 == 0 and scene.accessory is scene.style is scene.view is None for scene in scenes)
    assert {scene.flip for scene in scenes} == {False, True}
    assert all(getattr(scene, field) == value for scene in scenes for field, value in SUBJECTS[name].look.items())


@pytest.mark.parametrize('name', SUBJECTS)
def test_all_photos_but_one_say_where_they_were_taken(name):
    captions = subjects.captions(name, 'a sks thing')
    assert captions.count('a sks thing') == 1 and len(set(captions)) == len(captions)
    for caption, scene in zip(captions, subjects.reference_scenes(name), strict=True):
        assert caption in ('a sks thing', f'a sks thing {scene.context}')
    for count in range(1, len(captions) + 1):  # of the first few photos too
        few = subjects.captions(name, 'a sks thing', count)
        assert len(few) == count and few.count('a sks thing') == 1


@pytest.mark.parametrize('name', ['dog', 'can', 'robot_toy'])
def test_held_out_scenes_go_through_all_contexts_and_repeat_no_reference(name):
    scenes = subjects.held_out_scenes(name, 40)
    assert subjects.held_out_scenes(name, 7) == scenes[:7]
    for half in (scenes[:20], scenes[20:]):
        assert sorted(scene.context for scene in half) == sorted(world.CONTEXTS)
    assert all(scene.seed % 2 == 1 for scene in scenes)
    assert not set(scenes_as_data(scenes)) & set(scenes_as_data(subjects.reference_scenes(name)))
    wears = [scene.accessory is not None for scene in scenes]
    assert any(wears) == (SUBJECTS[name].class_noun in world.WEARING_CLASSES) and not all(wears)


def scenes_as_data(scenes):
    return [dataclasses.astuple(scene) for scene in scenes]
