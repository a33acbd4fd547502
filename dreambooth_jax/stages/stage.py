"""What every training stage gives to the trainer: a loss per image, and nothing else.

A stage knows what a batch example means (which image, which prompt, which noise); the trainer (training/step.py) knows
how to weigh, average and optimise. Neither imports the other: a program joins them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Params = Mapping[str, Mapping[str, jax.Array]]  # component name -> dotted path -> array


class Stage(Protocol):
    """One way to turn examples of images into a loss."""

    def loss(
        self, params: Params, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of every example, unweighted and never averaged over the batch (DESIGN.md, decision 4).

        Args:
          params: the trained components, for example {'unet': {...}}.
          frozen: what lives on the device and is not trained: images, prompt embeddings, frozen networks.
          batch: arrays of length B; `image` i32[B] says which of `frozen['images']` each example holds.
          keys: PRNG keys [B], one an example, so that an example's random numbers do not depend on the batch around it.
        Returns: f32[B] and its named parts, each f32[B].
        """
        ...
