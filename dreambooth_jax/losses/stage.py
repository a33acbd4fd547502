"""What every training stage gives to the trainer: a loss per example, and nothing else.

A stage knows what an example of a batch means (which image, which prompt, which noise). The trainer (training/step.py)
knows how to weight, average and optimize. Neither imports the other; a program joins them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Params = Mapping[str, Mapping[str, jax.Array]]  # component name -> dotted path -> array


class Stage(Protocol):
    """A stage turns examples of images into a loss."""

    def loss(
        self, params: Params, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of every example, unweighted and not averaged over the batch.

        Args:
          params: component -> its trained parameters.
          frozen: the data on the device that is not trained: images, prompt embeddings, frozen networks.
          batch: arrays of length B; `image` i32[B] is the index of each example's image.
          keys: PRNG keys [B], one per example, so that an example's random numbers do not depend on the rest of the
            batch.

        Returns:
          f32[B] and its named parts, each f32[B].
        """
        ...
