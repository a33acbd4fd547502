"""Several aspect ratios in one run: the sizes ("buckets") that images are brought to, and the bucket of each step.

An image goes to the size whose ratio is nearest to its own, so that little of it is cropped. All sizes have about the
same area. One step takes all its examples from one bucket, because a compiled step has fixed shapes; every bucket has
its own compiled step.

The steps are divided among the buckets epoch by epoch. In each epoch a bucket has as many turns as it has images, in an
order that is a pure function of (seed, epoch). So every image is seen equally often, and nothing has to be saved.

Source: NovelAI, "Improvements on Stable Diffusion" (2022), aspect ratio bucketing.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # height, width in pixels
MAX_RATIO = 2.0  # longer side / shorter side
_STREAM = 0xB0C5  # keeps the order of buckets independent of other random numbers from the run's seed


def bucket_sizes(resolution: int, multiple: int, max_ratio: float = MAX_RATIO) -> tuple[Size, ...]:
    """Returns sizes of at most resolution^2 pixels, from the widest to the tallest.

    All sides are multiples of `multiple`.

    For every short side there is the longest possible long side, and for every long side the longest possible short
    one, so that less than one multiple is missing. Every size also occurs with its sides exchanged.

    Args:
      resolution: the side of the square among them, in pixels.
      multiple: 64 for latent models; for a pixel model, the number by which its denoiser must be able to divide the
        sides.
      max_ratio: the largest longer side / shorter side, >= 1.

    Returns:
      (height, width) pairs.

    Raises:
      ValueError: if `resolution` is not a multiple of `multiple`, or if the ratio is below 1.
    """
    if multiple < 1 or resolution < 1 or resolution % multiple:
        raise ValueError(f'the resolution of aspect buckets must be a multiple of {multiple}, got {resolution}')
    if not max_ratio >= 1:
        raise ValueError(f'max_ratio must be >= 1, got {max_ratio}')
    sizes = set()
    for side in range(multiple, math.floor(resolution * max_ratio) + 1, multiple):
        other = resolution**2 // side // multiple * multiple
        if other and max(side, other) <= max_ratio * min(side, other):
            sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


def nearest(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """Returns the size whose ratio is nearest to that of an image, which is the one that keeps most of it.

    Of equally near sizes it is the larger one.
    """
    return min(sizes, key=lambda size: (abs(math.log(size[0] * width / (size[1] * height))), -size[0] * size[1]))


def bucket_of_step(seed: int, step: int, counts: Sequence[int]) -> tuple[int, int]:
    """Returns the bucket that a step trains on, and how many earlier steps trained on that bucket.

    Args:
      counts: the number of instance images of every bucket, each > 0. In sum(counts) steps each bucket has that many
        turns.

    Returns:
      The bucket in [0, len(counts)), and its turn, counted from 0. With one bucket the turn is the step.
    """
    epoch, index = divmod(step, sum(counts))
    bucket, before = _epoch(seed, epoch, tuple(counts))
    return int(bucket[index]), epoch * counts[bucket[index]] + int(before[index])


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([seed, _STREAM, epoch]).permutation(np.repeat(np.arange(len(counts)), counts))
    before = np.empty_like(order)
    for bucket, count in enumerate(counts):
        before[order == bucket] = np.arange(count)
    return order, before
