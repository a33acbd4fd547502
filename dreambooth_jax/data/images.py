"""Reads image files as uint8 RGB arrays of a given size, mostly square.

decode.py turns a file into pixels. Resizing is antialiased (Lanczos) and never enlarges. A mask, which weights the loss
of each pixel, is resized and cropped like its image. A crop in which the mask would be black everywhere is replaced by
another crop.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dreambooth_jax.data.buckets import Size, nearest
from dreambooth_jax.data.decode import ImageError, ImagePath, decode_image, decode_mask

__all__ = ['MAX_ZOOM', 'Crop', 'Photo', 'ImageError', 'fit', 'open_photo', 'read_masked_image', 'read_image']

MAX_ZOOM = 1.25  # the largest zoom of random crops
_TRIES = 20  # how many more random crops are tried until one meets the mask


def read_image(
    path: ImagePath,
    resolution: int,
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> np.ndarray:
    """Reads an image file as a square: the shorter side is resized and the longer side is cropped.

    Args:
      resolution: the side of the square in pixels.
      crop: 'center' or 'random'. With 'random', the shorter side becomes between 1 and max_zoom times the resolution,
        as far as the image has enough pixels, and the square lies anywhere.
      rng: the source of random numbers, needed for 'random'.
      max_zoom: see `crop`.

    Returns:
      uint8[resolution, resolution, 3], RGB.

    Raises:
      ImageError: if the file cannot be read, is no image, is damaged or is smaller than the resolution.
      ValueError: for another crop.
    """
    return read_masked_image(path, None, [(resolution, resolution)], crop=crop, rng=rng, max_zoom=max_zoom)[0]


def read_masked_image(
    path: ImagePath,
    mask: str | os.PathLike | None,
    sizes: Sequence[Size],
    *,
    crop: str = 'center',
    rng: np.random.Generator | None = None,
    max_zoom: float = MAX_ZOOM,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, the file that says which part of the image counts, and resizes and crops both alike.

    Args:
      mask: white counts and black does not; grey and colours count by their brightness, and transparent is black. None:
        everything counts.
      sizes: (height, width) pairs; the one whose ratio is nearest to the image's is used.
      crop, rng, max_zoom: as in `read_image`.

    Returns:
      The image, uint8[height, width, 3], and its mask, uint8[height, width, 1], where each value is the mean over the
      area of its pixel.

    Raises:
      ImageError: as `read_image`, for both files; also if they differ in size or the mask is black.
    """
    return open_photo(path, mask).cut(sizes, crop=crop, rng=rng, max_zoom=max_zoom)[:2]


def open_photo(path: ImagePath, mask: str | os.PathLike | None = None, *, enough: int | None = None) -> 'Photo':
    """Reads an image and its mask at full size, so that they can be cropped more than once.

    Args:
      path: the image.
      mask: the mask; None: everything counts.
      enough: as in decode_image, for an image without a mask.

    Raises:
      ImageError: if a file cannot be read, is no image or is damaged, or if the mask and the image differ in size.
    """
    image = decode_image(path, enough if mask is None else None)
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
    """An image in memory and its mask.

    Attributes:
      path: the file of the image.
      image: RGB.
      mask: the file of the mask; None: everything counts.
      weights: the mask as 8-bit grey of the image's size, or None.
    """

    path: ImagePath
    image: Image.Image
    mask: str | os.PathLike | None
    weights: Image.Image | None

    def cut(self, sizes: Sequence[Size], *, crop: str, rng: np.random.Generator | None, max_zoom: float) -> 'Crop':
        """Returns one crop of the image and its mask, as `read_masked_image` says, and where it lies.

        The crop is chosen without regard to the mask. If nothing in it counts, another random crop is chosen, up to 20
        times. If that does not help, and at once for the centre crop, the crop moves to where it holds most of the
        mask; of several such positions it takes the nearest.
        """
        if crop not in ('center', 'random'):
            raise ValueError(f"crop must be 'center' or 'random', got {crop!r}")
        target = nearest(*self.image.size, sizes)

        def try_crop() -> _Frame:
            return _frame(self.path, self.image.size, target, rng if crop == 'random' else None, max_zoom)

        frame = try_crop()
        if self.weights is None:
            image = frame.apply(self.image, Image.Resampling.LANCZOS)
            return Crop(image, np.full((*image.shape[:2], 1), 255, np.uint8), frame.within(self.image.size))
        # The mask is averaged over areas, because Lanczos would put bright echoes of a white edge into the black part.
        kept = frame.apply(self.weights, Image.Resampling.BOX)
        for _ in range(_TRIES if crop == 'random' else 0):
            if kept.any():
                break
            frame = try_crop()
            kept = frame.apply(self.weights, Image.Resampling.BOX)
        # A mask of a small part may be missed by every random crop, so go to where it is.
        if not kept.any():
            frame = frame.moved_to(np.array(self.weights.resize(frame.resized, Image.Resampling.BOX)))
            kept = frame.apply(self.weights, Image.Resampling.BOX)
        # The averages of a few dots round to 0, and an image without any weight would train nothing.
        if not kept.any():
            raise ImageError(
                f'the mask {self.mask} is black all over, or all but a few dots, so nothing of its image {self.path} '
                f'would be learned; paint white what counts, or take both out of their folder'
            )
        image = frame.apply(self.image, Image.Resampling.LANCZOS)
        return Crop(image, kept[..., None], frame.within(self.image.size))

    def cuts(self, sizes: Sequence[Size], index: int, *, crops: int, max_zoom: float, seed: int) -> Iterator['Crop']:
        """Yields the crops of the image that a run trains on: first the centre, then random ones.

        Args:
          sizes, max_zoom: as in `read_masked_image`.
          index: the image's place in the order in which the run uses its images; the random crops depend on it.
          crops: how many.
          seed: of the random crops.
        """
        for crop in range(crops):
            rng = np.random.default_rng([seed, index, crop])
            yield self.cut(sizes, crop='random' if crop else 'center', rng=rng, max_zoom=max_zoom)


class Crop(NamedTuple):
    """A crop of an image, resized.

    Attributes:
      image: uint8[height, width, 3].
      mask: uint8[height, width, 1], how much of each pixel counts.
      box: left, top, right and bottom of the crop in the image, in its pixels before it was resized.
    """

    image: np.ndarray
    mask: np.ndarray
    box: tuple[float, float, float, float]


class _Frame(NamedTuple):
    """How an image is brought to its size: it is resized as a whole, then cropped."""

    resized: tuple[int, int]  # width, height
    box: tuple[int, int, int, int]  # left, top, right, bottom

    def apply(self, image: Image.Image, resampling: Image.Resampling) -> np.ndarray:
        return np.array(image.resize(self.resized, resampling).crop(self.box))

    def within(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Returns the box in pixels of the image before it is resized, whose width and height are `size`."""
        return tuple(side * size[i % 2] / self.resized[i % 2] for i, side in enumerate(self.box))

    def moved_to(self, weights: np.ndarray) -> '_Frame':
        """Returns the frame moved to where it holds the most weight; of several such positions, to the nearest.

        Args:
          weights: uint8[height, width], resized.
        """
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        # Sums over all rectangles that start at the corner give the sum over any frame by four look-ups.
        sums = np.pad(weights.cumsum(0, np.int64).cumsum(1), ((1, 0), (1, 0)))
        held = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        tops, lefts = np.nonzero(held == held.max())
        best = np.argmin((tops - top) ** 2 + (lefts - left) ** 2)
        left, top = int(lefts[best]), int(tops[best])
        return self._replace(box=(left, top, left + width, top + height))


def _frame(
    path: ImagePath, size: tuple[int, int], target: Size, rng: np.random.Generator | None, max_zoom: float
) -> _Frame:
    """Returns the centre frame or, with `rng`, a random frame of an image.

    Args:
      size: (width, height) of the image.
      target: (height, width) of the frame.

    Raises:
      ImageError: if the image is smaller than the frame.
    """
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
    # Rounded down, as torchvision's Resize does, so that the pixels equal those of other trainers.
    width, height = (side, side * height // width) if by_width else (side * width // height, side)
    spare = width - wanted_width, height - wanted_height
    left, top = (round(s / 2) for s in spare) if rng is None else (int(rng.integers(s + 1)) for s in spare)
    return _Frame((width, height), (left, top, left + wanted_width, top + wanted_height))


def fit(images: np.ndarray, size: Size) -> np.ndarray:
    """Brings images in memory to another size: they are resized until they cover it and cropped in the centre.

    Args:
      images: uint8[N, H, W, 3]. Unlike files they may be enlarged: class images are generated as squares, and the
        longer side of a bucket of the same area is up to sqrt(MAX_RATIO) times their side.
      size: (height, width).

    Returns:
      uint8[N, height, width, 3]; `images` itself if it has that size.

    Raises:
      ValueError: if the images are smaller than the size in both directions.
    """
    (_, height, width, _), (wanted_height, wanted_width) = images.shape, size
    if (height, width) == (wanted_height, wanted_width):
        return images
    if height < wanted_height and width < wanted_width:
        raise ValueError(f'images of {width} x {height} pixels are too small for {wanted_width} x {wanted_height}')
    fitted = (ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS) for image in images)
    return np.stack([np.asarray(image) for image in fitted])
