"""Labelled contact sheets: rows of images, each with a sentence on its left."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

LABEL_WIDTH = 190  # pixels of the column of sentences
GAP = 4
LINE = 18


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    *,
    side: int = 96,
    title: str | None = None,
    headings: Sequence[str] = (),
    headings_from: int = 0,
) -> Image.Image:
    """Arranges images in rows.

    Args:
      rows: each row is a sequence of uint8[H, W, 3] of any size.
      labels: one sentence per row.
      side: every image is shown inside `side` x `side` pixels. Small images are enlarged without smoothing, so that
        every pixel can be seen.
      title: a line of text at the top.
      headings: names of the columns. Neighbouring columns with the same name get one common heading, which is wrapped
        to their width; a word that is wider than that is cut.
      headings_from: index of the row above which the headings are written.
    """
    font = ImageFont.load_default(12)
    columns = max((len(row) for row in rows), default=0)
    top = LINE if title else 0
    wrapped = [
        (column, _wrapped(heading, count * (side + GAP) - GAP, font)) for column, count, heading in _spans(headings)
    ]
    headed = LINE * max((len(lines) for _, lines in wrapped), default=0)
    width = LABEL_WIDTH + columns * (side + GAP) + GAP
    sheet = Image.new('RGB', (width, top + headed + len(rows) * (side + GAP) + GAP), 'white')
    pen = ImageDraw.Draw(sheet)

    def left(column):
        return LABEL_WIDTH + column * (side + GAP)

    if title:
        pen.text((GAP, 2), title, fill='black', font=font)
    y = top + GAP
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if headings and i == headings_from:
            for column, lines in wrapped:
                for number, line in enumerate(lines):
                    pen.text((left(column), y + number * LINE), line, fill='black', font=font)
            y += headed
        pen.multiline_text((GAP, y), '\n'.join(textwrap.wrap(label, 28)[:6]), fill='black', font=font, spacing=2)
        for column, pixels in enumerate(row):
            image = Image.fromarray(pixels)
            resampling = Image.Resampling.NEAREST if max(image.size) <= side else Image.Resampling.LANCZOS
            image = ImageOps.contain(image, (side, side), resampling)
            sheet.paste(image, (left(column) + (side - image.width) // 2, y + (side - image.height) // 2))
        y += side + GAP
    return sheet


def _spans(headings: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yields the first column, the number of columns and the text of each heading."""
    column = 0
    for heading, group in itertools.groupby(headings):
        count = len(list(group))
        yield column, count, heading
        column += count


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Returns the lines of a text, none of them wider than so many pixels."""
    lines = ['']
    for word in text.split():
        if font.getlength(f'{lines[-1]} {word}'.lstrip()) > width and lines[-1]:
            lines.append('')
        while len(word) > 1 and font.getlength(word) > width:
            word = word.rstrip('…')[:-1] + '…' if len(word.rstrip('…')) > 1 else word[0]
        lines[-1] = f'{lines[-1]} {word}'.lstrip()
    return lines
