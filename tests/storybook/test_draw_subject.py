"""Subjects: marks that 32 pixels show or do not show, views, materials, and one random order for every size."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.storybook import draw, draw_subject, subjects, world

PLAIN = world.Scene(class_noun='dog', colour='brown', second_colour='blue', seed=4)
GREY = (128, 128, 128)


def painted(scene, side=256, seed=0):
    """The subject alone on a grey backdrop, at the size of its canvas."""
    image = Image.new('RGB', (side, side), GREY)
    found = draw_subject.paint_subject(scene, image, random.Random(seed))
    assert found is image  # painted over in place
    return np.asarray(image, int)


def small(pixels):
    return pixels.reshape(32, len(pixels) // 32, 32, -1, 3).mean(axis=(1, 3))


def changed(**fields):
    return dataclasses.replace(PLAIN, **fields)


@pytest.mark.parametrize('name', draw_subject.FINE_MARKS)
def test_a_fine_texture_has_mean_zero_over_every_block(name):
    sign = draw_subject._fine_sign(name, 24)
    assert sign.shape == (24, 24) and np.abs(sign).max() <= 1 and np.abs(sign).mean() > 0.3
    np.testing.assert_allclose(sign.reshape(6, 4, 6, 4).mean(axis=(1, 3)), 0, atol=1e-6)


@pytest.mark.parametrize('name', draw_subject.FINE_MARKS)
def test_a_fine_texture_is_seen_at_128_pixels_and_leaves_no_trace_at_32(name):
    scene = changed(split=True, mark='disc', mark_colour='yellow', fine_mark=name, seed=6)
    plain = dataclasses.replace(scene, fine_mark=None)
    large = [draw.paint(one, 128).astype(int) for one in (scene, plain)]
    assert np.abs(large[0] - large[1]).max() > 30
    blocks = [image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)) for image in large]
    assert np.abs(blocks[0] - blocks[1]).max() <= 1
    np.testing.assert_array_equal(*(draw.paint(one, 32) for one in (scene, plain)))


@pytest.mark.parametrize('name', draw_subject.MARKS)
def test_a_badge_is_seen_at_32_pixels(name):
    marked, plain = (small(painted(changed(mark=mark, mark_colour='yellow'))) for mark in (name, None))
    assert (np.abs(marked - plain).max(axis=2) > 40).sum() >= 3


def test_badges_and_textures_differ():
    for one, other in itertools.combinations(draw_subject.MARKS, 2):
        first, second = (painted(changed(mark=mark, mark_colour='yellow')) for mark in (one, other))
        assert (np.abs(first - second).max(axis=2) > 60).sum() > 100, (one, other)
    for one, other in itertools.combinations(draw_subject.FINE_MARKS, 2):
        assert np.abs(draw_subject._fine_sign(one, 24) - draw_subject._fine_sign(other, 24)).mean() > 0.1


def test_colours_vary_less_where_a_subject_must_be_known_by_them():
    def spread(scene):
        return np.std([small(painted(scene, 128, seed))[18, 14] for seed in range(8)], axis=0).mean()

    assert spread(changed(mark='disc')) < spread(PLAIN)


def test_a_flipped_subject_is_the_mirrored_one():
    plain, flipped = painted(changed(x=0.5)), painted(changed(x=0.5, flip=True))
    difference = np.abs(plain - flipped[:, ::-1]).max(axis=2) > 40
    assert difference.mean() < 0.02 < (np.abs(plain - flipped).max(axis=2) > 40).mean()


def test_a_shadow_lies_below_all_that_do_not_float():
    for context in world.CONTEXTS:
        below = painted(changed(context=context))[232:240, 120:136].mean()
        assert (below < 126) == (context not in draw_subject.FLOATING), context


@pytest.mark.parametrize(
    ('fields'),
    [
        *({'pattern': name} for name in world.PATTERNS),
        *({'material': name} for name in world.MATERIALS),
        *({'view': name} for name in world.VIEWS),
        *({'accessory': name} for name in world.ACCESSORIES[:3]),
        {'split': True},
    ],
    ids=str,
)
def test_every_property_is_seen_at_32_pixels(fields):
    plain, other = small(painted(PLAIN)), small(painted(changed(**fields)))
    assert (np.abs(plain - other).max(axis=2) > 25).sum() >= 8


def test_what_is_worn_is_hidden_by_a_view():
    for view in world.VIEWS:
        scene = changed(view=view)
        np.testing.assert_array_equal(
            painted(scene), painted(dataclasses.replace(scene, accessory='wearing a red hat'))
        )


@pytest.mark.parametrize('view', [None, *world.VIEWS])
@pytest.mark.parametrize('noun', world.CLASSES)
def test_every_class_can_be_seen_from_everywhere_in_every_material(noun, view):
    for material in (None, *world.MATERIALS):
        image = painted(world.Scene(class_noun=noun, view=view, material=material), 128)
        covered = (np.abs(image - GREY[0]).max(axis=2) > 20).mean()
        assert 0.05 < covered < 0.6


def test_random_numbers_do_not_depend_on_the_size_of_the_canvas():
    for scene in (changed(material='wet'), changed(mark='star', fine_mark='hatch', split=True)):
        after = []
        for side in (128, 256):
            source = random.Random(3)
            draw_subject.paint_subject(scene, Image.new('RGB', (side, side), GREY), source)
            after.append(source.random())
        assert after[0] == after[1]


def test_a_subject_is_known_again_in_its_reference_scenes():
    """Its colours cover much of every one of its images."""
    for name in ('dog', 'teapot'):
        subject = subjects.SUBJECTS[name]
        colours = np.array([world.COLOURS[subject.look[key]] for key in ('colour', 'second_colour')])
        for scene in subjects.reference_scenes(name):
            image = draw.paint(scene, 32).astype(int)
            near = np.abs(image[:, :, None] - colours).max(axis=3) < 45
            assert (near.sum(axis=(0, 1)) > 10).all(), scene
