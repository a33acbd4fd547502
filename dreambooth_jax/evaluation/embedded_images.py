"""Images inside a page, as data: URIs: small enough that the whole page stays small, each made once.

They keep the mark of generated images; prompt and model stand beside them on the page.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dreambooth_jax.data import provenance
from dreambooth_jax.data.decode import decode_image
from dreambooth_jax.evaluation.markup import Markup, element, joined

_QUALITY = 85
_SHARPEST = 64  # px; images up to this side are kept without loss, since every pixel can be seen


class TooLarge(Exception):
    """The images of a page take more than they may."""


class Detail(NamedTuple):
    """How much of a run a page shows.

    Attributes:
      side: longest side of an image in pixels; larger ones are made smaller.
      grid_side: the same for sample grids.
      grids: sample grids of each stage.
      class_images: class images of the training.
      per_prompt: images of each prompt.
      with_base: whether the images of the model before stand beside them.
    """

    side: int
    grid_side: int
    grids: int
    class_images: int
    per_prompt: int
    with_base: bool


class Shown(NamedTuple):
    """An image as a page shows it.

    Attributes:
      source: its file, or its pixels uint8[H, W, 3].
      caption: what it is; the text of those who do not see it, too.
      mark: its digital source type (data/provenance.py); None: it is a photo of the user's.
    """

    source: Path | np.ndarray
    caption: str
    mark: str | None = provenance.GENERATED


@dataclasses.dataclass(kw_only=True)
class EmbeddedImages:
    """Writes images into one page.

    Attributes:
      detail: how large they may be.
      limit: bytes that all of them together may take; infinity: any number.
      taken: bytes that they have taken so far.
    """

    detail: Detail
    limit: float
    taken: int = 0

    def thumbnails(self, images: Sequence[Shown]) -> Markup:
        """Returns images beside each other, each of which a click shows large.

        Raises:
          TooLarge: if `limit` is passed.
          ImageError: if a file is no image.
        """
        return element('div', *(self._thumbnail(image) for image in images), class_='thumbs')

    def _thumbnail(self, image: Shown) -> Markup:
        tag = self.image(image, self.detail.side)
        return element('button', tag, type='button', class_='thumb', title=image.caption)

    def image(self, image: Shown, side: int, **attributes: str | bool | None) -> Markup:
        """Returns an <img> no side of which is longer than `side` pixels; raises as `thumbnails`."""
        uri, (width, height) = self._encoded(image, side)
        return element('img', src=uri, alt=image.caption, width=width, height=height, **attributes)

    def _encoded(self, shown: Shown, side: int) -> tuple[Markup, tuple[int, int]]:
        source = shown.source
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else decode_image(source)
        if max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        encoding = {'lossless': max(image.size) <= _SHARPEST, 'quality': _QUALITY}
        provenance.save(image, file, source=shown.mark, format='WEBP', **encoding)
        text = base64.b64encode(file.getbuffer()).decode('ascii')
        self.taken += len(text)
        if self.taken > self.limit:
            raise TooLarge
        return joined(f'data:image/webp;base64,{text}'), image.size


def evenly(items: Sequence, count: int) -> list:
    """Returns at most `count` of the items, evenly spread, the first and the last among them; the last if it is one."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
