"""A scene is one picture: small images are averages of large ones, and a layer's random numbers are its own."""

import dataclasses

import numpy as np
import pytest

from dreambooth_jax.storybook import draw, subjects, world

SCENES = [world.sample_scene(np.random.default_rng((3, row))) for row in range(12)]


@pytest.mark.parametrize('number', range(12))
def test_a_small_image_is_the_average_of_the_large_one(number):
    scene = dataclasses.replace(SCENES[number], style=None)
    small, large = draw.paint(scene, 32).astype(float), draw.paint(scene, 128)
    assert small.shape == (32, 32, 3) and large.shape == (128, 128, 3) and large.dtype == np.uint8
    blocks = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks - small).mean() < 6


def test_a_scene_determines_its_image():
    for scene in SCENES[:4]:
        np.testing.assert_array_equal(draw.paint(scene, 32), draw.paint(scene, 32))
        assert np.any(draw.paint(scene, 32) != draw.paint(dataclasses.replace(scene, seed=scene.seed + 1), 32))


def test_what_is_worn_changes_nothing_of_the_backdrop():
    scene = world.Scene(class_noun='dog', context='in the jungle', seed=5)
    plain, worn = (
        draw.paint(dataclasses.replace(scene, accessory=accessory), 32).astype(int)
        for accessory in (None, 'in a police outfit')
    )
    same = (plain == worn).all(axis=2)
    assert same[:, :4].all() and same[:, -4:].all() and same[:4].all() and not same.all()


def test_a_style_is_the_last_thing_painted():
    scene = world.Scene(class_noun='dog', context='in the jungle', seed=5)
    plain, styled = draw.paint(scene, 32), draw.paint(dataclasses.replace(scene, style='Rembrandt'), 32)
    assert np.abs(plain.astype(int) - styled).mean() > 20


@pytest.mark.parametrize('size', [32, 128])
def test_the_mask_is_where_the_subject_hides_its_backdrop(size):
    scene = subjects.reference_scenes('dog')[0]
    mask = draw.paint_mask(scene, size)
    assert mask.shape == (size, size) and mask.dtype == np.uint8 and 0.1 < (mask == 255).mean() < 0.5
    # Another backdrop changes the pixels around the subject, its shadow too, and none of its own.
    here = draw.paint(scene, size).astype(int)
    changed = np.zeros((size, size), int)
    for context in (None, 'on top of a dirt road', 'on top of pink fabric'):
        there = draw.paint(dataclasses.replace(scene, context=context), size).astype(int)
        changed = np.maximum(changed, np.abs(here - there).max(axis=2))
    assert changed[mask == 255].max() == 0
    assert (changed[mask == 0] > 0).mean() > 0.99


def test_what_stands_before_a_subject_is_no_part_of_it():
    scene = world.Scene(class_noun='dog', context='floating on top of water', seed=5)
    dry = dataclasses.replace(scene, context='on the beach')
    floating, standing = draw.paint_mask(scene), draw.paint_mask(dry)
    assert 0 < (floating == 255).sum() < (standing == 255).sum()
