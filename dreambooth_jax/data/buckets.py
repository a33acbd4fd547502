"""Several aspect ratios in one run: the sizes ("buckets") that images are brought to, and which one a step trains on.

An image goes to the size nearest to its own ratio, so that little of it is cropped; all sizes have about the same
area. One step takes all its examples from one bucket, since a compiled step has fixed shapes: every bucket has its own
compiled step. The steps are shared out epoch by epoch: in each, a bucket has as many turns as it has images, in an
order that is a pure function of (seed, epoch), so that every image is seen equally often and nothing has to be saved.
Source: NovelAI, "Improvements on Stable Diffusion" (2022), aspect ratio bucketing.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # height, width in pixels
MAX_RATIO = 2.0  # longer side / shorter side
_STREAM = 0xB0C5  # keeps the order of buckets apart from other random numbers of the run's seed


def bucket_sizes(resolution: int, multiple: int, max_ratio: float = MAX_RATIO) -> tuple[Size, ...]:
    """Sizes of at most resolution^2 pixels with sides that are multiples, from the widest to the tallest.

    Args:
      resolution: side of the square among them.
      multiple: of every side: 64 for latent models, what its UNet divides by for a pixel model.
      max_ratio: longer side / shorter side, >= 1.
    Returns: (height, width) pairs; to each its turned twin. For every short side the longest long one, and the other
      way round, so that less than one multiple is missing.
    Raises: ValueError if the resolution is no multiple, or the ratio below 1.
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
    """The size whose ratio is nearest to that of an image: the one that keeps most of it; of equals the larger."""
    return min(sizes, key=lambda size: (abs(math.log(size[0] * width / (size[1] * height))), -size[0] * size[1]))


def bucket_of_step(seed: int, step: int, counts: Sequence[int]) -> tuple[int, int]:
    """Which bucket a step trains on, and how many steps trained on that bucket before.

    Args:
      counts: instance images of every bucket, each > 0: in sum(counts) steps each bucket has that many turns.
    Returns: bucket in [0, len(counts)) and its turn, counted from 0. With one bucket the turn is the step.
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
