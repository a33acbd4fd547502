"""The pen of contexts: fractions of the side, no overlapping rectangles, and the same random numbers at every size."""

import random

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.storybook.context_pen import ContextPen, gradient, mix

BLUE = (10, 20, 200)


def pen(side=40, seed=0):
    return ContextPen(Image.new('RGB', (side, side)), random.Random(seed))


def inked(p):
    """(left, right, top, bottom) of what is not black, as fractions of the side."""
    rows, columns = np.nonzero(np.asarray(p.image).any(axis=2))
    return np.array([columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]) / p.side


def test_a_gradient_goes_from_top_to_bottom_and_is_alike_in_a_row():
    pixels = np.asarray(gradient((6, 40), (0, 0, 0), (200, 100, 50)), int)
    assert pixels.shape == (40, 6, 3) and (pixels == pixels[:, :1]).all()
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, 0].tolist() == [200, 100, 50]
    assert (np.diff(pixels[:, 0, 0]) >= 0).all() and pixels[20, 0, 0] == pytest.approx(100, abs=8)
    assert mix((0, 0, 0), (200, 100, 50), 0.25) == (50, 25, 12)


def test_rectangles_side_by_side_do_not_overlap():
    p = pen()
    p.rect(0.5, 0.0, 1.0, 1.0, (0, 255, 0))
    p.rect(0.0, 0.0, 0.5, 1.0, (255, 0, 0))  # the later one would lie over the earlier
    reds = np.asarray(p.image)[..., 0] == 255
    assert reds[:, :20].all() and not reds[:, 20:].any()


@pytest.mark.parametrize('side', [40, 160])
def test_positions_are_fractions_of_the_side(side):
    for draw, box in (
        (lambda p: p.rect(0.25, 0.5, 0.75, 1.0, BLUE), (0.25, 0.75, 0.5, 1.0)),
        (lambda p: p.poly([(0.25, 0.5), (0.75, 0.5), (0.5, 0.9)], BLUE), (0.25, 0.75, 0.5, 0.9)),
        (lambda p: p.oval(0.5, 0.5, 0.25, 0.1, BLUE), (0.25, 0.75, 0.4, 0.6)),
        (lambda p: p.fade(0.25, 0.5, BLUE, BLUE), (0.0, 1.0, 0.25, 0.5)),
        (lambda p: p.line([(0.1, 0.5), (0.9, 0.5)], 0.05, BLUE), (0.1, 0.9, 0.475, 0.525)),
    ):
        p = pen(side)
        draw(p)
        np.testing.assert_allclose(inked(p), box, atol=1.5 / side + 0.01)


def test_a_wave_with_a_depth_is_a_band_below_it():
    line, band = pen(), pen()
    line.wave(0.3, 0.02, 0.8, BLUE)
    band.wave(0.3, 0.02, 0.8, BLUE, depth=0.3)
    assert inked(line)[3] < 0.45 and inked(band)[3] == pytest.approx(0.6, abs=0.05)


def test_similar_colours_stay_colours():
    p = pen()
    found = np.array([p.near((250, 3, 128), 40) for _ in range(200)])
    assert found.min() >= 0 and found.max() <= 255
    assert found[:, 2].std() > 5 and np.abs(found[:, 2] - 128).max() <= 60
    calm = np.array([p.near((100, 100, 100), 0) for _ in range(5)])
    assert (calm == 100).all()


def test_random_numbers_do_not_depend_on_the_size():
    numbers = []
    for side in (32, 128):
        p = pen(side, seed=7)
        p.dots(5, (0.2, 0.8), (0.2, 0.8), 0.03, BLUE)
        p.wave(0.5, 0.01, 0.5, BLUE)
        numbers.append(p.random.random())
    assert numbers[0] == numbers[1]


def test_dots_stay_within_their_ranges():
    p = pen(200)
    p.dots(60, (0.25, 0.5), (0.5, 0.75), 0.01, (200, 200, 200))
    left, right, top, bottom = inked(p)
    assert 0.23 <= left and right <= 0.52 and 0.48 <= top and bottom <= 0.77
