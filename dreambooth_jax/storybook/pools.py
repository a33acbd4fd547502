"""Pools of painted images with captions: host processes paint the next one while the device trains on this one.

A pool is a pure function of (seed, its number), so a resumed pretraining sees the same images again.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Sequence

import numpy as np

from dreambooth_jax.storybook import captions, draw, world


@dataclasses.dataclass(frozen=True)
class Pool:
    """Images uint8[N, size, size, 3] and one caption each."""

    images: np.ndarray
    captions: list[str]


def paint_pool(
    seed: int, number: int, rows: range, size: int, rare_tokens: Sequence[str] = (), rare_token_rate: float = 0.0
) -> Pool:
    """Paints some rows of a pool; row i is the same whichever rows are painted with it."""
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
      seed, size (pixels), pool_size: of the pools.
      processes: host processes; 0 paints in the calling one, when a pool is asked for.
      caption_options: rare_tokens and rare_token_rate of `captions.caption`.
    """

    def __init__(self, seed: int, size: int, pool_size: int, *, processes: int = 1, **caption_options):
        self._arguments = (seed, size, pool_size, caption_options)
        self._workers = processes
        # 'spawn': a fork of a process in which JAX's threads run may hang.
        context = multiprocessing.get_context('spawn')
        self._executor = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) if processes else None
        self._ahead: dict[int, list[concurrent.futures.Future]] = {}

    def _start(self, number: int) -> None:
        if number in self._ahead:
            return
        seed, size, count, options = self._arguments
        # Small slices, so that several processes share a pool evenly.
        edges = np.linspace(0, count, 4 * self._workers + 1).astype(int)
        self._ahead[number] = [
            self._executor.submit(paint_pool, seed, number, range(start, stop), size, **options)
            for start, stop in zip(edges[:-1], edges[1:], strict=True)
        ]

    def pool(self, number: int) -> Pool:
        """The pool of that number; the next one is begun."""
        if self._executor is None:
            seed, size, count, options = self._arguments
            return paint_pool(seed, number, range(count), size, **options)
        self._start(number)
        self._start(number + 1)
        parts = [future.result() for future in self._ahead.pop(number)]
        images = np.concatenate([part.images for part in parts])
        return Pool(images, [text for part in parts for text in part.captions])

    def close(self) -> None:
        """Ends the processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
