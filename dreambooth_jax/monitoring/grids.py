"""Labelled contact sheets: rows of images, each with a sentence on its left."""

import textwrap
from collections.abc import Sequence

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
      headings: names of the columns. Neighbouring columns with the same name get one common heading.
      headings_from: index of the row above which the headings are written.
    """
    columns = max((len(row) for row in rows), default=0)
    top = LINE if title else 0
    headed = LINE if headings else 0
    width = LABEL_WIDTH + columns * (side + GAP) + GAP
    sheet = Image.new('RGB', (width, top + headed + len(rows) * (side + GAP) + GAP), 'white')
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)

    def left(column):
        return LABEL_WIDTH + column * (side + GAP)

    if title:
        pen.text((GAP, 2), title, fill='black', font=font)
    y = top + GAP
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if headings and i == headings_from:
            for column, heading in enumerate(headings):
                if column == 0 or headings[column - 1] != heading:
                    pen.text((left(column), y), heading, fill='black', font=font)
            y += headed
        pen.multiline_text((GAP, y), '\n'.join(textwrap.wrap(label, 28)[:6]), fill='black', font=font, spacing=2)
        for column, pixels in enumerate(row):
            image = Image.fromarray(pixels)
            resampling = Image.Resampling.NEAREST if max(image.size) <= side else Image.Resampling.LANCZOS
            image = ImageOps.contain(image, (side, side), resampling)
            sheet.paste(image, (left(column) + (side - image.width) // 2, y + (side - image.height) // 2))
        y += side + GAP
    return sheet
