"""The images of a run with their prompts, as arrays for the device: instance images, then class images."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax.data.images import fit


class Examples(NamedTuple):
    """Images of one size.

    Attributes:
      images: uint8[N, H, W, 3].
      prompts: N of them.
      masks: uint8[N, H, W, 1], how much each pixel counts (255: in full); None: all of them.
      class_prompts: N prompts of the class that each image's subject belongs to; None where nobody asks.
    """

    images: np.ndarray
    prompts: Sequence[str]
    masks: np.ndarray | None = None
    class_prompts: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Images and prompts, each prompt once.

    Attributes:
      images: uint8[N, H, W, 3].
      prompt_of: i32[N], each image's place in `prompts`.
      prompts: the first is the empty prompt, which dropped examples see.
      num_instance: images [0, num_instance) are the subject's; the rest are class images.
      masks: uint8[N, H, W, 1], 255 where a pixel counts in full, as all of a class image does; None: all pixels do.
      class_prompt_of: i32[N], the place of the prompt under which class examples show the subject's images; None where
        they show class images, or where there are none.
    """

    images: np.ndarray
    prompt_of: np.ndarray
    prompts: list[str]
    num_instance: int
    masks: np.ndarray | None = None
    class_prompt_of: np.ndarray | None = None

    @property
    def num_class(self) -> int:
        """How many class images there are."""
        return len(self.images) - self.num_instance

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What of it a pixel stage takes to the device."""
        masks = {} if self.masks is None else {'masks': self.masks}
        return {'images': self.images, **self.prompt_arrays, **masks}

    @property
    def prompt_arrays(self) -> dict[str, np.ndarray]:
        """What of it every stage takes to the device."""
        again = {} if self.class_prompt_of is None else {'class_prompt_of': self.class_prompt_of}
        return {'prompt_of': self.prompt_of, **again}


def make_table(instance: Examples, class_images: Examples | None = None, *, shown_again: bool = False) -> Table:
    """Joins instance and class images into one table.

    Class images of another size are fitted to that of the instance images, so that each aspect bucket has a copy
    of them all: examples of one step have one shape, and the prior's weight must not depend on what lies in which
      bucket.

    Args:
      shown_again: class examples show the instance images, under their class prompts; there are no class images then.
    """
    examples = instance
    if class_images is not None:
        fitted = fit(class_images.images, instance.images.shape[1:3])
        examples = join([instance, class_images._replace(images=fitted)])
    under = instance.class_prompts if shown_again else ()
    prompts = ['', *dict.fromkeys(text for text in (*examples.prompts, *under) if text)]
    index = {text: i for i, text in enumerate(prompts)}
    return Table(
        images=examples.images,
        prompt_of=np.array([index[text] for text in examples.prompts], np.int32),
        prompts=prompts,
        num_instance=len(instance.images),
        masks=examples.masks,
        class_prompt_of=np.array([index[text] for text in under], np.int32) if shown_again else None,
    )


def join(groups: Sequence[Examples]) -> Examples:
    """Images of one size one after the other; if any group has masks, the others count in full."""
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
    """Masks for latents: the mean over each factor x factor box, rounded up so that nothing that counts is lost.

    Args:
      masks: uint8[N, H, W, 1].
      factor: side of a latent in pixels; divides H and W.
    Returns: uint8[N, H // factor, W // factor, 1].
    """
    count, height, width, _ = masks.shape
    boxes = masks.reshape(count, height // factor, factor, width // factor, factor, 1)
    return np.ceil(boxes.mean(axis=(2, 4))).astype(np.uint8)
