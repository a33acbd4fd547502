"""Image files as uint8 RGB arrays of a given size, mostly square.

How a file becomes pixels is decode.py's. Resizing is antialiased (Lanczos) and never enlarges. A mask, which weighs the
loss of each pixel, is resized and cropped as its image; a crop that would hold nothing of it lies elsewhere.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dreambooth_jax.data.buckets import Size, nearest
from dreambooth_jax.data.decode import ImageError, decode_image, decode_mask

__all__ = ['MAX_ZOOM', 'Photo', 'ImageError', 'fit', 'open_photo', 'read_masked_image', 'read_image']

MAX_ZOOM = 1.25  # of random crops
_TRIES = 20  # of a random crop until one meets the mask


def read_image(
    path: str | os.PathLike,
    resolution: int,
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> np.ndarray:
    """Reads an image file as a square: shorter side resized, longer side cropped.

    Args:
      resolution: side of the square in pixels.
      crop: 'center', or 'random': the shorter side becomes up to max_zoom * resolution, as far as the image has the
        pixels, and the square lies anywhere.
      rng: needed by 'random'.
    Returns: uint8[resolution, resolution, 3], RGB.
    Raises: ImageError if the file cannot be read, is no image, is damaged or is smaller than the resolution;
      ValueError for another crop.
    """
    return read_masked_image(path, None, [(resolution, resolution)], crop=crop, rng=rng, max_zoom=max_zoom)[0]


def read_masked_image(
    path: str | os.PathLike,
    mask: str | os.PathLike | None,
    sizes: Sequence[Size],
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and the file that says what of it counts, both brought to size in the same way.

    Args:
      mask: white counts, black does not, grey and colours by their brightness; transparent is black. None: all counts.
      sizes: (height, width) pairs; the one whose ratio is nearest to the image's is taken.
      others: of `read_image`.
    Returns: the image, uint8[height, width, 3], and its mask, uint8[height, width, 1], each value the mean over the
      area of its pixel.
    Raises: as `read_image`, for both files; ImageError if they differ in size or the mask is black.
    """
    return open_photo(path, mask).cut(sizes, crop=crop, rng=rng, max_zoom=max_zoom)


def open_photo(path: str | os.PathLike, mask: str | os.PathLike | None = None) -> 'Photo':
    """Reads an image and its mask as they are, to be cut more than once; raises as `read_masked_image`."""
    image = decode_image(path)
    if mask is None:
        return Photo(path, image, None, None)
    weights = decode_mask(mask)
    if weights.size != image.size:
        raise ImageError(
            f'the mask {mask} is {weights.width} x {weights.height} pixels but its image {path} {image.width} x '
            f'{image.height}, both as they are shown upright; make the mask as large as its image'
        )
    return Photo(path, image, mask, weights)


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image in memory, RGB, and its mask, 8-bit grey of the same size; None: all counts."""

    path: str | os.PathLike
    image: Image.Image
    mask: str | os.PathLike | None
    weights: Image.Image | None

    def cut(
        self, sizes: Sequence[Size], *, crop: str, rng: np.random.Generator | None, max_zoom: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One crop of both, as `read_masked_image` says.

        The crop is chosen without a look at the mask. Where it holds nothing that counts, a random one is chosen again,
        up to 20 times; then, and in the middle at once, it moves to where it holds most, nearest to where it lay.
        """
        if crop not in ('center', 'random'):
            raise ValueError(f"crop must be 'center' or 'random', got {crop!r}")
        target = nearest(*self.image.size, sizes)

        def try_crop() -> _Frame:
            return _frame(self.path, self.image.size, target, rng if crop == 'random' else None, max_zoom)

        frame = try_crop()
        if self.weights is None:
            image = frame.apply(self.image, Image.Resampling.LANCZOS)
            return image, np.full((*image.shape[:2], 1), 255, np.uint8)
        # A mean over areas, since Lanczos would put light echoes of a white edge into the black beside it.
        kept = frame.apply(self.weights, Image.Resampling.BOX)
        for _ in range(_TRIES if crop == 'random' else 0):
            if kept.any():
                break
            frame = try_crop()
            kept = frame.apply(self.weights, Image.Resampling.BOX)
        if not kept.any():
            frame = frame.moved_to(np.array(self.weights.resize(frame.resized, Image.Resampling.BOX)))
            kept = frame.apply(self.weights, Image.Resampling.BOX)
        if not kept.any():
            raise ImageError(
                f'the mask {self.mask} is black all over, or all but a few dots, so nothing of its image {self.path} '
                f'would be learned; paint white what counts, or take both out of their folder'
            )
        return frame.apply(self.image, Image.Resampling.LANCZOS), kept[..., None]


class _Frame(NamedTuple):
    """How an image is brought to size: resized as a whole, then cut."""

    resized: tuple[int, int]  # width, height
    box: tuple[int, int, int, int]  # left, top, right, bottom

    def apply(self, image: Image.Image, resampling: Image.Resampling) -> np.ndarray:
        return np.array(image.resize(self.resized, resampling).crop(self.box))

    def moved_to(self, weights: np.ndarray) -> '_Frame':
        """The frame where it holds the most weight, of those the nearest; weights: uint8[height, width], resized."""
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        sums = np.pad(weights.cumsum(0, np.int64).cumsum(1), ((1, 0), (1, 0)))
        held = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        tops, lefts = np.nonzero(held == held.max())
        best = np.argmin((tops - top) ** 2 + (lefts - left) ** 2)
        left, top = int(lefts[best]), int(tops[best])
        return self._replace(box=(left, top, left + width, top + height))


def _frame(
    path: str | os.PathLike, size: tuple[int, int], target: Size, rng: np.random.Generator | None, max_zoom: float
) -> _Frame:
    """The frame in the middle, or with `rng` a random one, of an image of that (width, height)."""
    (width, height), (wanted_height, wanted_width) = size, target
    by_width = width * wanted_height <= height * wanted_width  # the side that is not cropped
    there, side = (width, wanted_width) if by_width else (height, wanted_height)
    if there < side:
        square = wanted_height == wanted_width
        wanted = f'resolution {side}' if square else f'{wanted_width} x {wanted_height} of its aspect bucket'
        raise ImageError(
            f'{path} is {width} x {height} pixels, smaller than the {wanted}; use a larger image or a lower resolution'
        )
    if rng is not None:
        side = int(rng.uniform(side, min(max_zoom * side, there) + 1))
    # Rounded down, as torchvision's Resize does, so that other trainers' pixels are met.
    width, height = (side, side * height // width) if by_width else (side * width // height, side)
    spare = width - wanted_width, height - wanted_height
    left, top = (round(s / 2) for s in spare) if rng is None else (int(rng.integers(s + 1)) for s in spare)
    return _Frame((width, height), (left, top, left + wanted_width, top + wanted_height))


def fit(images: np.ndarray, size: Size) -> np.ndarray:
    """Images in memory brought to another size, resized until they cover it and cropped in the middle.

    Args:
      images: uint8[N, H, W, 3]. Unlike files they may be enlarged: class images are generated as squares, and the
        longer side of a bucket with their area is up to sqrt(MAX_RATIO) times theirs.
      size: (height, width).
    Returns: uint8[N, height, width, 3]; `images` itself if that is their size.
    Raises: ValueError if they are smaller than that both ways.
    """
    (_, height, width, _), (wanted_height, wanted_width) = images.shape, size
    if (height, width) == (wanted_height, wanted_width):
        return images
    if height < wanted_height and width < wanted_width:
        raise ValueError(f'images of {width} x {height} pixels are too small for {wanted_width} x {wanted_height}')
    fitted = (ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS) for image in images)
    return np.stack([np.asarray(image) for image in fitted])
