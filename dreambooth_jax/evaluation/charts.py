"""Charts as inline SVG: curves over steps, and scores with intervals. Colours come from the page's style sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreambooth_jax.evaluation.markup import Markup, element, joined

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 30
_MOST_POINTS = 240  # of a curve; longer ones are drawn as means of neighbours
_SMOOTHED_FROM, _SMOOTHED_OVER = 40, 20  # points; a bold line shows means of a twentieth of the points
_BAR_WIDTH, _BAR_MARGIN = 240, 10


def curves(title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Markup:
    """Returns a chart of numbers over steps, with a title, a legend if it has several lines, and values to hover over.

    Args:
      title: what is shown.
      lines: name -> (steps, values), both of one length and not empty; values that are not finite are left out.
    """
    drawn = {name: _thinned(*line) for name, line in lines.items()}
    drawn = {name: line for name, line in drawn.items() if len(line[0])}
    if not drawn:
        return Markup('')
    steps = np.concatenate([line[0] for line in drawn.values()])
    x0, x1 = steps.min(), max(steps.max(), steps.min() + 1)
    y0, y1 = _range([line[1] for line in drawn.values()])

    def at(x, y):
        across = _LEFT + (np.asarray(x) - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y1 - np.clip(y, y0, y1)) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    axes = []
    for tick in _ticks(y0, y1, 4):
        _, (y,) = at([x0], [tick])
        axes.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, 'axis'))
        axes.append(_text(_LEFT - 6, y + 4, _short(tick), 'end'))
    for tick in _ticks(x0, x1, 5, whole=True):
        (x,), _ = at([tick], [y0])
        axes.append(_text(x, _HEIGHT - 12, _short(tick), 'middle'))
    axes.append(_line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, 'axis strong'))
    axes.append(_text(_WIDTH - _RIGHT, _HEIGHT - 1, 'step', 'end'))
    marks, told = [], []
    for number, (name, (x, y)) in enumerate(drawn.items()):
        colour = f's{number % 5}'
        if len(x) >= _SMOOTHED_FROM:
            marks.append(_path(*at(x, y), f'curve faint {colour}'))
        marks.append(_path(*at(x, _smoothed(y)), f'curve {colour}'))
        across, _ = at(x, y)
        told.append({'name': name, 'at': _rounded(across, 4), 'x': _rounded(x, 9), 'y': _rounded(y, 4)})
    svg = element(
        'svg',
        element('title', f'{title} over steps'),
        *axes,
        *marks,
        class_='chart',
        viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
        role='img',
        tabindex='0',
        aria_label=f'{title} over steps {_short(x0)} to {_short(x1)}: {_in_words(drawn)}',
        data_lines=json.dumps(told, separators=(',', ':')),
    )
    legend = [element('span', element('i', class_=f'key s{i % 5}'), name) for i, name in enumerate(drawn)]
    return element(
        'figure',
        element('figcaption', element('b', title), *(legend if len(drawn) > 1 else [])),
        element('div', svg, element('div', class_='hover', hidden=True), class_='plot'),
        class_='curves',
    )


def intervals(rows: Sequence[tuple[str, Mapping[str, Any]]], ceiling: float | None) -> Markup:
    """Returns scores as dots on their 95 % intervals, one below the other, with the photos' own as a dashed line.

    Args:
      rows: (model, score with value, low and high); low and high may be None.
      ceiling: what the photos have among each other; None: nothing is drawn.
    """
    numbers = [score[key] for _, score in rows for key in ('value', 'low', 'high') if score[key] is not None]
    numbers += [] if ceiling is None else [ceiling]
    low, high = min(numbers), max(numbers)
    spare = max((high - low) * 0.08, 0.005)
    low, high = low - spare, high + spare
    height = 13 * len(rows) + 18

    def at(value):
        return _BAR_MARGIN + (value - low) / (high - low) * (_BAR_WIDTH - 2 * _BAR_MARGIN)

    bottom = 13 * len(rows) + 4
    marks = [_line(_BAR_MARGIN, bottom, _BAR_WIDTH - _BAR_MARGIN, bottom, 'axis strong')]
    marks += [_text(at(low), height - 2, f'{low:.2f}', 'start'), _text(at(high), height - 2, f'{high:.2f}', 'end')]
    if ceiling is not None:
        marks.append(_line(at(ceiling), 0, at(ceiling), bottom, 'of-photos'))
    for number, (model, score) in enumerate(rows):
        y = 8 + 13 * number
        if score['low'] is not None:
            marks.append(_line(at(score['low']), y, at(score['high']), y, f'interval of-{model}'))
        marks.append(element('circle', cx=f'{at(score["value"]):.1f}', cy=y, r=4, class_=f'of-{model}'))
    return element(
        'svg', *marks, class_='intervals', viewBox=f'0 0 {_BAR_WIDTH} {height}', aria_hidden='true', width=_BAR_WIDTH
    )


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, np.float64), np.asarray([math.nan if v is None else v for v in values], np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _smoothed(values: np.ndarray, average=np.nanmean) -> np.ndarray:
    if len(values) < _SMOOTHED_FROM:
        return values
    reach = len(values) // _SMOOTHED_OVER
    padded = np.pad(values, reach, constant_values=math.nan)  # at the ends there are fewer neighbours
    return average(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)


def _range(lines: Sequence[np.ndarray]) -> tuple[float, float]:
    # Medians of neighbours and the usual single values, because one early spike would press everything else flat.
    smooth = [_smoothed(line, np.nanmedian) for line in lines]
    low = min(line.min() for line in smooth)
    high = max(line.max() for line in smooth)
    low = min(low, *(np.quantile(line, 0.03) for line in lines))
    high = max(high, *(np.quantile(line, 0.97) for line in lines))
    if 0 < low < high / 2:
        low = 0.0
    spare = (high - low) * 0.05
    if high - low <= 1e-6 * abs(high):  # a constant, but for rounding
        spare = abs(high) * 0.1 or 1.0
    return (low if low == 0 != high else low - spare), high + spare


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Returns about `count` round numbers between low and high."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        digits, power = f'{value:.1e}'.split('e')
        return f'{digits.removesuffix(".0")}e{int(power)}'
    return f'{value:.4g}' if abs(value) < 1e4 else f'{value:.0f}'


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [float(f'{value:.{digits}g}') for value in values]


def _in_words(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    return '; '.join(f'{name} from {_short(y[0])} to {_short(y[-1])}' for name, (_, y) in drawn.items())


def _path(across: np.ndarray, down: np.ndarray, kind: str) -> Markup:
    if len(across) == 1:
        return element('circle', cx=f'{across[0]:.1f}', cy=f'{down[0]:.1f}', r=3, class_=kind + ' single')
    points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in zip(across, down, strict=True))
    return element('polyline', points=points, class_=kind)


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    return element('line', x1=f'{x0:.1f}', y1=f'{y0:.1f}', x2=f'{x1:.1f}', y2=f'{y1:.1f}', class_=kind)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element('text', joined(text), x=f'{x:.1f}', y=f'{y:.1f}', text_anchor=anchor)
