"""Labelled contact sheets: rows of pictures with a sentence before each."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_WIDTH = 190  # pixels of the column of sentences
GAP = 4


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], *, side: int = 96, title: str | None = None
) -> Image.Image:
    """Lays pictures out in rows.

    Args:
      rows: each a sequence of uint8[H, W, 3] of any size, all shown at `side` pixels, enlarged without smoothing so
        that nothing is hidden.
      labels: one sentence a row.
      title: a line above all.
    """
    columns = max((len(row) for row in rows), default=0)
    top = 20 if title else 0
    width = LABEL_WIDTH + columns * (side + GAP) + GAP
    sheet = Image.new('RGB', (width, top + len(rows) * (side + GAP) + GAP), 'white')
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    if title:
        pen.text((GAP, 3), title, fill='black', font=font)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + GAP + i * (side + GAP)
        pen.multiline_text((GAP, y), '\n'.join(textwrap.wrap(label, 28)[:6]), fill='black', font=font, spacing=2)
        for j, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            resampling = Image.Resampling.NEAREST if picture.width <= side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((side, side), resampling), (LABEL_WIDTH + j * (side + GAP), y))
    return sheet
