"""Every class has a shape whose badge and fine texture lie on its body, and by whose outline it is known."""

import itertools

import numpy as np
import pytest

from dreambooth_jax.storybook import world
from dreambooth_jax.storybook.draw_pen import Form
from dreambooth_jax.storybook.draw_shapes import PAINTERS
from tests.support.painted_forms import drawn, every_shape

SHAPES = every_shape()
# Of these the parts that stick out are of the body's colour or thin, so that the outline says less.
CLASSES = [(noun, kind) for noun, kind in SHAPES if kind is None]


def test_every_class_without_kinds_has_a_painter_of_its_name():
    assert set(PAINTERS) == set(world.CLASSES) - {'toy', 'stuffed animal'}


@pytest.mark.parametrize(('noun', 'kind'), SHAPES)
def test_a_shape_fills_its_box_and_nothing_is_drawn_out_of_reach(noun, kind):
    form, mask, layer = drawn(noun, kind)
    assert isinstance(form, Form)
    edge = np.concatenate([layer[0], layer[-1], layer[:, 0], layer[:, -1]])
    assert not edge.any()
    assert 0.1 < mask.mean() < 0.5 and (layer & mask).sum() > 0.95 * mask.sum()
    rows = np.nonzero(layer.any(axis=1))[0]
    assert 0.15 < len(rows) / len(layer) < 0.85


@pytest.mark.parametrize(('noun', 'kind'), SHAPES)
def test_badge_and_texture_lie_on_the_body(noun, kind):
    form, mask, _ = drawn(noun, kind)
    side = len(mask)
    for u, v in (form.mark[:2], form.fine):
        row, column = (round((place / 1.68 + 0.5) * side) for place in (v, u))
        assert mask[row - 3 : row + 4, column - 3 : column + 4].all()
    assert form.mark[2] >= 0.1  # two pixels at 32 px


@pytest.mark.parametrize(('noun', 'kind'), SHAPES)
def test_the_second_half_is_a_part_of_the_body(noun, kind):
    form, mask, _ = drawn(noun, kind)
    axis, sign, at = form.split
    places = (np.arange(len(mask)) + 0.5) / len(mask) * 1.68 - 0.84
    half = sign * places > sign * at
    inside = mask[:, half] if axis == 'u' else mask[half]
    assert 0.2 < inside.sum() / mask.sum() < 0.8


def test_outlines_differ_between_classes():
    outlines = {noun: drawn(noun, kind)[2] for noun, kind in CLASSES}
    for one, other in itertools.combinations(outlines, 2):
        both, either = outlines[one] & outlines[other], outlines[one] | outlines[other]
        assert both.sum() / either.sum() < 0.93, (one, other)
