"""Accessories: one for each of the world's, seen at 32 pixels, and clothes on the body alone."""

import itertools

import numpy as np
import pytest

from dreambooth_jax.storybook import draw_shapes, draw_worn, world
from dreambooth_jax.storybook.draw_pen import Pen
from tests.support.painted_forms import LOOK

RED = (255, 0, 0)


def dressed(accessory, noun='dog'):
    """The pixels of a subject on white, at the canvas's size."""
    pen = Pen(128, 0.5, 0.58, 0.66, False)
    form = draw_shapes.form_of(world.Scene(class_noun=noun), pen, LOOK)
    pen.on_body = True
    form.parts()
    form.body()
    pen.on_body = False
    form.details()
    if accessory:
        draw_worn.WORN[accessory](pen, form)
    return np.asarray(pen.layer, int), np.asarray(pen.mask)


def test_there_is_one_for_every_accessory_of_the_world():
    assert tuple(draw_worn.WORN) == world.ACCESSORIES


@pytest.mark.parametrize('noun', world.WEARING_CLASSES)
@pytest.mark.parametrize('accessory', world.ACCESSORIES)
def test_what_is_worn_is_seen_on_every_class_that_wears(accessory, noun):
    plain, worn = dressed(None, noun)[0], dressed(accessory, noun)[0]
    changed = np.abs(worn - plain).max(axis=2) > 60
    assert changed.sum() > 16 * 4  # several pixels at 32 px
    assert changed.mean() < 0.5


def test_accessories_differ():
    images = {accessory: dressed(accessory)[0] for accessory in world.ACCESSORIES}
    for one, other in itertools.combinations(images, 2):
        assert (np.abs(images[one] - images[other]).max(axis=2) > 60).sum() > 16 * 4, (one, other)


def test_clothes_are_cut_to_the_body():
    pen = Pen(128, 0.5, 0.5, 0.5, False)
    pen.on_body = True
    pen.ellipse(0, 0, 0.3, 0.3, (0, 0, 255))
    pen.on_body = False
    draw_worn._clothe(pen, (-0.8, 0.0, 0.8, 0.8), RED)
    layer, mask = np.asarray(pen.layer), np.asarray(pen.mask) > 0
    red = (layer[..., 0] == 255) & (layer[..., 3] > 0)
    assert red.any() and not (red & ~mask).any()
    rows = np.nonzero(red.any(axis=1))[0]
    assert rows.min() >= int(pen.cy) - 1  # the upper half is not covered


@pytest.mark.parametrize('points', [5, 8])
def test_a_star_has_its_points(points):
    pen = Pen(512, 0.5, 0.5, 0.5, False)
    draw_worn.star(pen, 0.0, 0.0, 0.5, RED, points)
    inked = np.asarray(pen.layer)[..., 3] > 0
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    rows, columns = (pen.cy + 0.4 * pen.unit * np.sin(angles)), (pen.cx + 0.4 * pen.unit * np.cos(angles))
    ring = inked[rows.astype(int), columns.astype(int)]  # between the inner and the outer radius
    assert (ring & ~np.roll(ring, 1)).sum() == points
