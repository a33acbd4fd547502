"""Shares as bars in an image, for the READMEs of experiments."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

_COLOURS = ('#9a9a9a', '#2f6fb0', '#d0602c', '#3d9a5b', '#8a4fb0', '#b8a021')
_LABEL, _FULL, _HEIGHT, _GAP, _TOP = 220, 360, 16, 14, 22  # pixels; a legend's line is as high as the top
_INK = 'black'


def bars(shares: Mapping[str, Mapping[str, float | None]], errors: Mapping | None = None) -> Image.Image:
    """Returns a chart with one group of bars for each number, in which every model has its colour.

    Args:
      shares: title of a model -> name of a number -> a share, whose bar ends at 0 and at 1; None: the model has none.
        All models have the same numbers.
      errors: the same of standard errors, drawn as lines; None, and None in it: no line.
    """
    names = list(next(iter(shares.values())))
    top = 8 + len(shares) * _TOP
    height = top + len(names) * (len(shares) * _HEIGHT + _GAP)
    image = Image.new('RGB', (_LABEL + _FULL + 60, height), 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    colours = {title: _COLOURS[i % len(_COLOURS)] for i, title in enumerate(shares)}
    for i, (title, colour) in enumerate(colours.items()):
        y = 8 + i * _TOP
        pen.rectangle((_LABEL, y, _LABEL + 10, y + 10), fill=colour)
        pen.text((_LABEL + 16, y - 3), title, fill=_INK, font=font)
    y = top
    for name in names:
        pen.text((4, y + (len(shares) * _HEIGHT - 14) / 2), name, fill=_INK, font=font)
        for title, of in shares.items():
            share, error = of[name], errors and errors[title].get(name)
            right = _LABEL + _FULL * min(max(share or 0, 0), 1)
            pen.rectangle((_LABEL, y + 1, right, y + _HEIGHT - 2), fill=colours[title])
            if error:
                ends = [_LABEL + _FULL * min(max(share + side * error, 0), 1) for side in (-1, 1)]
                pen.line((ends[0], y + _HEIGHT / 2, ends[1], y + _HEIGHT / 2), fill=_INK)
                right = max(right, ends[1])
            told = '-' if share is None else f'{100 * share:.0f} %'
            pen.text((right + 6, y), told, fill=_INK, font=font)
            y += _HEIGHT
        y += _GAP
    return image
