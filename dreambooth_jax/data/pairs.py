"""The examples of a training batch: which instance and class images a step sees, and with what weight.

A batch has `num_instance_examples` instance examples, followed by `num_class_examples` class examples. Its description
(`make_batch`) is made once and placed on the devices. A step then selects images by index, so nothing moves between
host and device, and there is no iterator state: `image_index` is a pure function of (key, step, example).

Prior preservation, mean(instance) + lambda * mean(class), is a weight per example. So the loss
is mean(weight * loss) for any split of the examples over devices. The image array holds the instance images first, then
the class images. A group is identified by the index of its first image.
"""

import jax
import jax.numpy as jnp
import numpy as np


def make_batch(
    num_instance_examples: int,
    num_class_examples: int,
    num_instance_images: int,
    num_class_images: int,
    prior_weight: float,
) -> dict[str, np.ndarray]:
    """Describes the B = num_instance_examples + num_class_examples examples of every step.

    Args:
      num_instance_examples: > 0.
      num_class_examples: >= 0.
      num_instance_images: > 0; their indices are [0, num_instance_images).
      num_class_images: > 0 if there are class examples; their indices follow.
      prior_weight: lambda, >= 0.

    Returns:
      Arrays [B] slot i32: the example's index in the global batch; weight f32: B / num_instance_examples, or
      prior_weight * B / num_class_examples; is_instance f32: 1 for instance examples, 0 for class examples; first i32,
      size i32: the index of the first image of the example's group, and how many images the group has; position i32,
      examples i32: the example's index among the examples of its group, and how many these are.

    Raises:
      ValueError: if a number is out of range.
    """
    if num_instance_examples < 1 or num_class_examples < 0:
        raise ValueError(
            'a batch needs at least one instance example and no negative number of class examples, got '
            f'{num_instance_examples} and {num_class_examples}'
        )
    # A group without images would divide by 0 in `image_index`, on the device, where nothing is reported.
    for kind, examples, images in (
        ('instance', num_instance_examples, num_instance_images),
        ('class', num_class_examples, num_class_images),
    ):
        if examples and images < 1:
            raise ValueError(f'the batch has {examples} {kind} examples but there are {images} {kind} images')
    if not prior_weight >= 0:
        raise ValueError(f'prior_weight must be >= 0, got {prior_weight}')
    # The mean over the batch divides by B, so B / group size makes it the mean over each group.
    total = num_instance_examples + num_class_examples
    groups = [(num_instance_examples, 0, num_instance_images, 1.0, 1.0)]
    if num_class_examples:
        groups.append((num_class_examples, num_instance_images, num_class_images, prior_weight, 0.0))
    parts = [
        {
            'weight': np.full(examples, weight * total / examples, np.float32),
            'is_instance': np.full(examples, is_instance, np.float32),
            'first': np.full(examples, first, np.int32),
            'size': np.full(examples, size, np.int32),
            'position': np.arange(examples, dtype=np.int32),
            'examples': np.full(examples, examples, np.int32),
        }
        for examples, first, size, weight, is_instance in groups
    ]
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {'slot': np.arange(total, dtype=np.int32), **batch}


def pad_examples(batch: dict[str, np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    """Repeats examples with weight 0 until their number is a multiple of `multiple`, such as the number of devices.

    The other weights are multiplied by padded / unpadded, so that mean(weight * loss) over all examples does not
    change.
    """
    count = len(batch['slot'])
    padding = -count % multiple
    if not padding:
        return batch
    padded = {name: np.concatenate([examples, np.resize(examples, padding)]) for name, examples in batch.items()}
    padded['weight'] = padded['weight'] * np.float32((count + padding) / count)
    padded['weight'][count:] = 0.0
    return padded


def deal_examples(batch: dict[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """Returns the same examples reordered: each device gets every `devices`-th example, and so its share of each group.

    Args:
      batch: the examples; their number is a multiple of `devices`. They keep their slots, and so their random numbers.
    """
    return {name: examples.reshape(-1, devices).T.reshape(-1) for name, examples in batch.items()}


def most_class_examples(batch: dict[str, np.ndarray], devices: int, parts: int = 1) -> int:
    """Returns the largest number of class examples in any micro-batch.

    Args:
      batch: the examples of all devices, one device after the other.
      devices: how many there are; it divides the number of examples.
      parts: the number of micro-batches of a device; part j has its examples j, j + parts, ...
    """
    return int((batch['is_instance'].reshape(devices, -1, parts) == 0).sum(axis=1).max())


def image_index(
    key: jax.Array, step: jax.Array, batch: dict[str, jax.Array], max_size: int, *, shuffle: bool = True
) -> jax.Array:
    """Returns the index in the image array of every example's image at one step, i32[B].

    Each group goes through its images epoch by epoch, and every image occurs once in each epoch.

    Args:
      key: the run's key for this purpose. The result for an example depends only on the key, on `step` and on the
        example's own fields, so it is the same on any number of devices and after a restart.
      step: i32[], or i32[B] if the examples count their steps differently.
      batch: the fields of `make_batch`, for all examples or for some of them.
      max_size: static, at least the largest `size`.
      shuffle: whether each group and epoch has a new random order; False keeps the order of the images.
    """
    size = batch['size']
    # How many examples the group had before this one, since the first step.
    seen = step * batch['examples'] + batch['position']
    epoch, index = seen // size, seen % size
    if not shuffle:
        return batch['first'] + index

    def pick(first, size, epoch, index):
        order_key = jax.random.fold_in(jax.random.fold_in(key, first), epoch)
        lots = jax.random.bits(order_key, (max_size,), jnp.uint32) >> 1
        # Indices beyond the group sort after all others, so the first `size` entries are a permutation of the group.
        lots = jnp.where(jnp.arange(max_size) < size, lots, jnp.uint32(2**32 - 1))
        return first + jnp.argsort(lots)[index].astype(jnp.int32)

    return jax.vmap(pick)(batch['first'], size, epoch, index)
