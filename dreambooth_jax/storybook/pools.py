"""Pools of painted images with captions. Host processes paint the next pool while the device trains on this one.

A pool is a pure function of the seed and its number, so a pretraining that is resumed sees the same images.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Sequence

import numpy as np

from dreambooth_jax.storybook import captions, draw, world


@dataclasses.dataclass(frozen=True)
class Pool:
    """The images of a pool, uint8[N, size, size, 3], with one caption each."""

    images: np.ndarray
    captions: list[str]


def paint_pool(
    seed: int, number: int, rows: range, size: int, rare_tokens: Sequence[str] = (), rare_token_rate: float = 0.0
) -> Pool:
    """Paints some examples of a pool. An example does not depend on which others are painted with it.

    Args:
      seed: seed of all pools.
      number: number of the pool.
      rows: indices of the examples to paint.
      size: side of the images in px.
      rare_tokens: as in `captions.caption`.
      rare_token_rate: as in `captions.caption`.
    """
    images = np.empty((len(rows), size, size, 3), np.uint8)
    texts = []
    for i, row in enumerate(rows):
        rng = np.random.default_rng((seed, number, row))
        scene = world.sample_scene(rng)
        images[i] = draw.paint(scene, size)
        texts.append(captions.caption(scene, rng, rare_tokens=rare_tokens, rare_token_rate=rare_token_rate))
    return Pool(images, texts)


class Painters:
    """Paints pools ahead of time.

    Args:
      seed: seed of all pools.
      size: side of the images in px.
      pool_size: number of images in a pool.
      processes: number of host processes; with 0, a pool is painted in the calling process when it is requested.
      **caption_options: rare_tokens and rare_token_rate of `captions.caption`.
    """

    def __init__(self, seed: int, size: int, pool_size: int, *, processes: int = 1, **caption_options):
        self._arguments = (seed, size, pool_size, caption_options)
        self._workers = processes
        # Processes are spawned, because forking a process in which JAX's threads run may hang.
        context = multiprocessing.get_context('spawn')
        self._executor = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) if processes else None
        self._ahead: dict[int, list[concurrent.futures.Future]] = {}

    def _start(self, number: int) -> None:
        if number in self._ahead:
            return
        seed, size, count, options = self._arguments
        # The slices are small, so that all processes have about the same amount of work.
        edges = np.linspace(0, count, 4 * self._workers + 1).astype(int)
        self._ahead[number] = [
            self._executor.submit(paint_pool, seed, number, range(start, stop), size, **options)
            for start, stop in zip(edges[:-1], edges[1:], strict=True)
        ]

    def pool(self, number: int) -> Pool:
        """Returns the pool with this number, and starts painting the next one if there are host processes."""
        if self._executor is None:
            seed, size, count, options = self._arguments
            return paint_pool(seed, number, range(count), size, **options)
        self._start(number)
        self._start(number + 1)
        parts = [future.result() for future in self._ahead.pop(number)]
        images = np.concatenate([part.images for part in parts])
        return Pool(images, [text for part in parts for text in part.captions])

    def close(self) -> None:
        """Ends the host processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
