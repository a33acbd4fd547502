"""What each step of a stage is fed: a bucket of images, the examples, and the image that each example shows.

It joins the schedule of the buckets (buckets.py) with the examples of a batch (pairs.py). The description of the
examples is the same for all buckets; only the bucket's own data on the device differs. Without aspect buckets there is
one bucket, and the result is that of pairs.py alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.data import pairs
from dreambooth_jax.data.buckets import bucket_of_step

# Which class examples are held to a teacher: they show the instance images, and those that are not show class images.
# 'half': every other one, counted over all steps.
Taught = Literal['none', 'half', 'all']


@dataclasses.dataclass(frozen=True)
class Feed:
    """The images of every step, a pure function of (seed, step).

    Attributes:
      seed: of the run.
      steps: how many steps will be taken; the images of earlier steps do not depend on it.
      counts: the number of instance images of each bucket, each > 0.
      num_class: the number of class images. Each bucket has all of them, after its instance images.
      taught: which class examples show the instance images of the step's bucket, and are held to a teacher, instead of
        class images.
    """

    seed: int
    steps: int
    counts: Sequence[int]
    num_class: int
    taught: Taught = 'none'

    def bucket(self, step: int) -> int:
        """Returns the index of the bucket whose data the step uses."""
        return bucket_of_step(self.seed, step, self.counts)[0]

    def steps_per_dispatch(self, wanted: int | None) -> int | None:
        """Returns `wanted`, or 1 if the next step may use the data of another bucket."""
        return wanted if len(self.counts) == 1 else 1

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `pick` needs on the device beside a bucket's images.

        turns, i32[steps], holds the turn of each step (buckets.bucket_of_step).
        """
        turns = [bucket_of_step(self.seed, step, self.counts)[1] for step in range(self.steps)]
        return {'turns': np.array(turns, np.int32)}

    def batch(
        self, instance_examples: int, class_examples: int, prior_weight: float, devices: int, parts: int = 1
    ) -> dict[str, np.ndarray]:
        """Returns the examples of every step (pairs.make_batch), padded so that the devices share them evenly.

        Without class images there are no class examples, unless they show the instance images.

        Args:
          instance_examples, class_examples: how many of each a batch has.
          prior_weight: lambda, >= 0.
          devices: the number of devices.
          parts: the number of micro-batches that the examples of each device are cut into.
        """
        num_class = sum(self.counts) if self.taught == 'all' else self.num_class
        examples = class_examples if num_class else 0
        batch = pairs.make_batch(instance_examples, examples, sum(self.counts), num_class, prior_weight)
        batch = pairs.pad_examples(batch, devices * parts)
        # A teacher may compute class examples only. They then cost more, so every device gets an equal share.
        return batch if self.taught == 'none' else pairs.deal_examples(batch, devices)

    def pick(self, key, step, batch, frozen):
        """Returns the examples of a step with their `image`, an index into the bucket's own array.

        This is the `pick` of training.make_train_step.

        If there is a teacher, they also have `taught`, bool[B], which of them are held to it, and `turn`, i32[B]: a
        taught example goes through the class prompts of its image in turn.

        Examples that show instance images go through those of the bucket, one turn of the bucket after the other. The
        others go through the class images, which every bucket has, step by step. So each group is seen epoch by epoch,
        whatever the order of the buckets.

        Args:
          frozen: the data of the step's bucket: `prompt_of` i32[images] and `arrays`.
        """
        num_instance = len(frozen['prompt_of']) - self.num_class
        is_class = batch['is_instance'] == 0
        # How many examples of the group were before, in steps of this bucket and in all steps.
        in_bucket, overall = (at * batch['examples'] + batch['position'] for at in (frozen['turns'][step], step))
        taught = is_class & (self.taught == 'all')
        if self.taught == 'half':
            taught = is_class & (overall % 2 == 1)
            in_bucket = jnp.where(is_class, in_bucket // 2, in_bucket)
            overall = overall // 2
        own = ~is_class | taught
        count = jnp.where(own, in_bucket, overall)
        examples = {**batch, 'size': jnp.where(own, num_instance, batch['size']), 'position': count}
        index = pairs.image_index(key, 0, examples, max(self.counts) + self.num_class)
        again = {} if self.taught == 'none' else {'taught': taught, 'turn': count}
        # In the description, class images follow the instance images of all buckets; here those of this bucket alone.
        return {**batch, **again, 'image': index - batch['first'] + jnp.where(own, 0, num_instance)}
