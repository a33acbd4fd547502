"""Charts: what is drawn lies where its number says."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dreambooth_jax.evaluation import charts


def svg(markup):
    return ElementTree.fromstring(re.search(r'<svg.*?</svg>', markup, re.DOTALL)[0])


def of(root, name, kind=''):
    return [one for one in root.iter(name) if kind in one.get('class', '').split() or not kind]


def points(line):
    return np.array([[float(part) for part in point.split(',')] for point in line.get('points').split()])


def test_a_curve_goes_through_its_values():
    root = svg(charts.curves('Loss', {'loss': ([0, 10, 20], [1.0, 3.0, 2.0])}))
    (line,) = of(root, 'polyline')
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x1 - x0 == pytest.approx(x2 - x1) and y1 < y2 < y0  # y grows downwards
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=0.01)
    ticks = [text.text for text in of(root, 'text')]
    assert {'1', '2', '3', '0', '20', 'step'} <= set(ticks)


def test_every_value_can_be_hovered_over_and_told_in_words():
    root = svg(charts.curves('Loss', {'a': ([1, 2], [0.5, 0.25]), 'b': ([1, 2], [1, 4])}))
    assert json.loads(root.get('data-lines'))[1] == {'name': 'b', 'at': [52.0, 370.0], 'x': [1.0, 2.0], 'y': [1.0, 4.0]}
    assert root.get('aria-label') == 'Loss over steps 1 to 2: a from 0.5 to 0.25; b from 1 to 4'


def test_numbers_are_written_short_enough_for_their_place():
    for values, tick in (([2e-4, 4e-4], '3e-4'), ([2e6, 4e6], '3e6'), ([0.1, 0.3], '0.2'), ([2000, 40000], '20000')):
        root = svg(charts.curves('x', {'x': ([0, 1], values)}))
        assert tick in [text.text for text in of(root, 'text')]


def test_long_curves_are_thinned_and_smoothed():
    steps, values = np.arange(1, 10_001), np.random.default_rng(0).normal(1.0, 0.1, 10_000)
    root = svg(charts.curves('Loss', {'loss': (steps, values)}))
    faint, bold = of(root, 'polyline')
    assert 'faint' in faint.get('class') and len(points(faint)) == len(points(bold)) == 240
    assert points(bold)[:, 1].std() < points(faint)[:, 1].std() / 2
    assert json.loads(root.get('data-lines'))[0]['x'][0] == pytest.approx(21.5)


def test_one_early_spike_does_not_press_the_rest_flat():
    root = svg(charts.curves('Loss', {'loss': (range(200), [1000.0, *np.linspace(1, 0.5, 199)])}))
    heights = points(of(root, 'polyline')[0])[50:, 1]
    assert heights.max() - heights.min() > 1
    assert points(of(root, 'polyline')[0])[0, 1] >= 10  # drawn at the edge, not beyond


@pytest.mark.parametrize('value', [0.0, 2e-4, -3.0, 1e9])
def test_a_constant_is_a_straight_line_in_the_middle(value):
    noisy = [value * (1 + 1e-8 * (i % 2)) for i in range(50)]
    heights = points(of(svg(charts.curves('x', {'x': (range(50), noisy)})), 'polyline')[0])[:, 1]
    assert heights.max() - heights.min() < 1 and 60 < heights.mean() < 140


def test_numbers_that_are_missing_are_left_out():
    root = svg(charts.curves('x', {'x': ([1, 2, 3], [1.0, None, float('nan')]), 'y': ([1, 2], [2.0, 3.0])}))
    assert len(of(root, 'circle', 'single')) == 1 and len(of(root, 'polyline')) == 1
    assert charts.curves('x', {'x': ([1], [None])}) == '' == charts.curves('x', {})


def test_titles_are_escaped():
    text = charts.curves('<u>', {'<s>': ([1], [1.0]), 'other': ([1], [1.0])})
    assert '<b>&lt;u&gt;</b>' in text and '&lt;s&gt;</span>' in text and '<u>' not in text and '<s>' not in text


def test_dots_intervals_and_the_photos_lie_on_one_scale():
    rows = [('run', {'value': 0.6, 'low': 0.5, 'high': 0.7}), ('base', {'value': 0.4, 'low': None, 'high': None})]
    root = svg(charts.intervals(rows, 0.8))
    (run,), (base,) = of(root, 'circle', 'of-run'), of(root, 'circle', 'of-base')
    (bar,), (photos,) = of(root, 'line', 'interval'), of(root, 'line', 'of-photos')
    at = [float(x) for x in (base.get('cx'), bar.get('x1'), run.get('cx'), bar.get('x2'), photos.get('x1'))]
    assert np.diff(at) == pytest.approx(np.full(4, (at[-1] - at[0]) / 4), abs=0.2)
    assert float(run.get('cy')) < float(base.get('cy'))
    assert not of(svg(charts.intervals(rows, None)), 'line', 'of-photos')
