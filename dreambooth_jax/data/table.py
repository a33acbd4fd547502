"""The images of a run and their prompts, as arrays for the device: the instance images, then the class images."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax.data.images import fit


class Examples(NamedTuple):
    """Images of one size with their prompts.

    Attributes:
      images: uint8[N, H, W, 3].
      prompts: N prompts.
      masks: uint8[N, H, W, 1], how much each pixel counts (255: in full); None: all count in full.
      class_prompts: for each image the prompts of its subject's class, equally many, under which class examples show it
        in turn; None if they are not needed.
    """

    images: np.ndarray
    prompts: Sequence[str]
    masks: np.ndarray | None = None
    class_prompts: Sequence[Sequence[str]] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Images and prompts, with each prompt stored once.

    Attributes:
      images: uint8[N, H, W, 3].
      prompt_of: i32[N], the index of each image's prompt in `prompts`.
      prompts: the first is the empty prompt, which dropped examples see.
      num_instance: images [0, num_instance) show the subject; the others are class images.
      masks: uint8[N, H, W, 1], 255 where a pixel counts in full, as in the whole of a class image; None: all pixels do.
      class_prompt_of: i32[N, V], the indices of the prompts under which class examples show the subject's image in
        turn; those of class images are not used. None if no class example shows the subject.
    """

    images: np.ndarray
    prompt_of: np.ndarray
    prompts: list[str]
    num_instance: int
    masks: np.ndarray | None = None
    class_prompt_of: np.ndarray | None = None

    @property
    def num_class(self) -> int:
        """The number of class images."""
        return len(self.images) - self.num_instance

    @property
    def prompt_arrays(self) -> dict[str, np.ndarray]:
        """The arrays about prompts, which every stage needs on the device."""
        again = {} if self.class_prompt_of is None else {'class_prompt_of': self.class_prompt_of}
        return {'prompt_of': self.prompt_of, **again}


def make_table(instance: Examples, class_images: Examples | None = None, *, shown_again: bool = False) -> Table:
    """Joins instance and class images into one table.

    Class images of another size are fitted to the size of the instance images. So each aspect bucket has a copy of all
    of them: the examples of one step have one shape, and the weight of the prior must not depend on which images a
    bucket has.

    Args:
      instance: the subject's images.
      class_images: None if there are none.
      shown_again: whether class examples show the instance images under their class prompts, instead of class images
        or beside them.
    """
    examples = instance
    if class_images is not None:
        fitted = fit(class_images.images, instance.images.shape[1:3])
        examples = join([instance, class_images._replace(images=fitted)])
    under = instance.class_prompts if shown_again else ()
    prompts = distinct_prompts([*examples.prompts, *itertools.chain(*under)])
    index = {text: i for i, text in enumerate(prompts)}
    again = np.zeros((len(examples.images), len(under[0]) if under else 0), np.int32)
    for row, turns in enumerate(under):
        again[row] = [index[text] for text in turns]
    return Table(
        images=examples.images,
        prompt_of=np.array([index[text] for text in examples.prompts], np.int32),
        prompts=prompts,
        num_instance=len(instance.images),
        masks=examples.masks,
        class_prompt_of=again if shown_again else None,
    )


def distinct_prompts(prompts: Sequence[str]) -> list[str]:
    """Returns the prompts of a table whose images have these: the empty one first, then each of the others once."""
    return ['', *dict.fromkeys(text for text in prompts if text)]


def join(groups: Sequence[Examples]) -> Examples:
    """Concatenates images of one size.

    If any group has masks, the images of the others count in full.
    """
    masks = None
    if any(group.masks is not None for group in groups):
        masks = np.concatenate(
            [
                np.full((*group.images.shape[:3], 1), 255, np.uint8) if group.masks is None else group.masks
                for group in groups
            ]
        )
    images = np.concatenate([group.images for group in groups])
    class_prompts = None
    if all(group.class_prompts is not None for group in groups):
        class_prompts = [prompt for group in groups for prompt in group.class_prompts]
    return Examples(images, [prompt for group in groups for prompt in group.prompts], masks, class_prompts)


def shrink_masks(masks: np.ndarray, factor: int) -> np.ndarray:
    """Returns masks for latents.

    A value is the mean over a factor x factor box, rounded up so that nothing that counts is lost.

    Args:
      masks: uint8[N, H, W, 1].
      factor: the side of a latent in pixels; it divides H and W.

    Returns:
      uint8[N, H // factor, W // factor, 1].
    """
    count, height, width, _ = masks.shape
    boxes = masks.reshape(count, height // factor, factor, width // factor, factor, 1)
    return np.ceil(boxes.mean(axis=(2, 4))).astype(np.uint8)
