"""A scene is one picture: small images are averages of large ones, and a layer's random numbers are its own."""

import dataclasses

import numpy as np
import pytest

from dreambooth_jax.storybook import draw, world

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
