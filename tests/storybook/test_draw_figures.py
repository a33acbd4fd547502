"""Figures have faces where eyes, hats and clothes are put, and their kinds are told apart by their outlines."""

import itertools

import numpy as np
import pytest

from dreambooth_jax.storybook import draw_figures, world
from dreambooth_jax.storybook.draw_pen import Pen
from tests.support.painted_forms import KINDS, LOOK, drawn

FIGURES = [('dog', None), ('cat', None), ('cartoon', None), *((noun, kind) for noun in KINDS for kind in KINDS[noun])]
FACELESS = ('car',)


@pytest.mark.parametrize(('noun', 'kind'), FIGURES)
def test_figures_are_alive_but_for_the_car(noun, kind):
    assert drawn(noun, kind)[0].alive == (kind not in FACELESS)


@pytest.mark.parametrize(('noun', 'kind'), [figure for figure in FIGURES if figure[1] not in FACELESS])
def test_hats_are_above_the_eyes_and_clothes_are_on_the_body(noun, kind):
    form, mask, _ = drawn(noun, kind)
    assert form.head[1] < form.eyes[1] < form.torso[3] and form.head[2] > 0.05
    left, top, right, bottom = form.torso
    rows, columns = ((np.array(edges) / 1.68 + 0.5) * len(mask) for edges in ((top, bottom), (left, right)))
    assert mask[slice(*rows.astype(int)), slice(*columns.astype(int))].mean() > 0.3


@pytest.mark.parametrize(('noun', 'kind'), FIGURES)
def test_details_are_drawn_over_the_body(noun, kind):
    pens = [Pen(128, 0.5, 0.5, 0.5, False) for _ in range(2)]
    for pen, details in zip(pens, (False, True), strict=True):
        painter = draw_figures.plush if noun == 'stuffed animal' else getattr(draw_figures, kind or noun)
        form = painter(pen, LOOK, kind) if noun == 'stuffed animal' else painter(pen, LOOK)
        form.parts()
        form.body()
        if details:
            form.details()
    plain, whole = (np.asarray(pen.layer.convert('RGB'), int) for pen in pens)
    assert (np.abs(whole - plain).sum(axis=2) > 60).sum() > 40


@pytest.mark.parametrize('noun', KINDS)
def test_kinds_differ_in_outline(noun):
    for one, other in itertools.combinations(KINDS[noun], 2):
        first, second = (drawn(noun, kind)[2] for kind in (one, other))
        assert (first & second).sum() / (first | second).sum() < 0.93, (one, other)


def test_every_kind_of_the_world_is_drawn():
    assert set(world.TOY_KINDS) <= set(vars(draw_figures))
    masks = {kind: drawn('stuffed animal', kind)[1].tobytes() for kind in world.ANIMAL_KINDS}
    assert len(set(masks.values())) == len(world.ANIMAL_KINDS)
