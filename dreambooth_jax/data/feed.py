"""What a stage's steps are fed: which bucket of images each takes, its examples, and which image each example shows.

Joins the buckets' schedule (buckets.py) with the examples of a batch (pairs.py). The examples' description is the same
for all buckets; what differs lies in the bucket's own data on the device. Without aspect buckets there is one bucket,
and all of this is pairs.py alone.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.data import pairs
from dreambooth_jax.data.buckets import bucket_of_step


@dataclasses.dataclass(frozen=True)
class Feed:
    """The images of every step, a pure function of (seed, step).

    Attributes:
      seed: of the run.
      steps: that will be taken; those before do not depend on it.
      counts: instance images of each bucket, > 0.
      num_class: class images, of which each bucket has all, after its instance images.
      shown_again: class examples show the instance images instead, of the bucket whose turn it is.
    """

    seed: int
    steps: int
    counts: Sequence[int]
    num_class: int
    shown_again: bool = False

    def bucket(self, step: int) -> int:
        """Which bucket's data the step takes."""
        return bucket_of_step(self.seed, step, self.counts)[0]

    def steps_per_dispatch(self, wanted: int | None) -> int | None:
        """As many as wanted, but one where the next step may take other data."""
        return wanted if len(self.counts) == 1 else 1

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What `pick` needs beside a bucket's images on the device: turns i32[steps] of buckets.bucket_of_step."""
        turns = [bucket_of_step(self.seed, step, self.counts)[1] for step in range(self.steps)]
        return {'turns': np.array(turns, np.int32)}

    def batch(
        self, instance_examples: int, class_examples: int, prior_weight: float, devices: int, parts: int = 1
    ) -> dict[str, np.ndarray]:
        """The examples of every step (pairs.make_batch), padded for the devices; no class examples without class
        images.

        Args:
          parts: micro-batches that the examples of each device are cut into.
        """
        num_class = sum(self.counts) if self.shown_again else self.num_class
        examples = class_examples if num_class else 0
        batch = pairs.make_batch(instance_examples, examples, sum(self.counts), num_class, prior_weight)
        batch = pairs.pad_examples(batch, devices * parts)
        # Class examples that cost more than others are shared out evenly.
        return pairs.deal_examples(batch, devices) if self.shown_again else batch

    def pick(self, key, step, batch, frozen):
        """The examples of a step with their `image`, a place in the bucket's own array; see training.make_train_step.

        Rows that show instance images go through the bucket's own turn by turn, the others through the class
        images, which every bucket has, step by step: each group epoch by epoch, whatever the order of the buckets.

        Args:
          frozen: the data of the step's bucket: `prompt_of` i32[images] and `arrays`.
        """
        num_instance = len(frozen['prompt_of']) - self.num_class
        own = (batch['is_instance'] > 0) | self.shown_again
        examples = {**batch, 'size': jnp.where(own, num_instance, batch['size'])}
        at = jnp.where(own, frozen['turns'][step], step)
        index = pairs.image_index(key, at, examples, max(self.counts) + self.num_class)
        # The description counts the instance images of all buckets before the class images.
        return {**batch, 'image': index - batch['first'] + jnp.where(own, 0, num_instance)}
