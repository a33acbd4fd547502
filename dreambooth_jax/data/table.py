"""The pictures of a run with their prompts, as arrays for the device: instance pictures, then class pictures."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Pictures of one size.

    Attributes:
      images: uint8[N, H, W, 3].
      prompts: N of them.
      masks: uint8[N, H, W, 1], how much each pixel counts (255: in full); None: all of them.
    """

    images: np.ndarray
    prompts: Sequence[str]
    masks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Pictures and prompts, each prompt once.

    Attributes:
      pictures: uint8[N, H, W, 3].
      prompt_of: i32[N], each picture's place in `prompts`.
      prompts: the first is the empty prompt, which dropped rows see.
      num_instance: pictures [0, num_instance) are the subject's; the rest are class pictures.
      masks: uint8[N, H, W, 1], 255 where a pixel counts in full, as all of a class picture does; None: all pixels do.
    """

    pictures: np.ndarray
    prompt_of: np.ndarray
    prompts: list[str]
    num_instance: int
    masks: np.ndarray | None = None

    @property
    def num_class(self) -> int:
        """How many class pictures there are."""
        return len(self.pictures) - self.num_instance

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What of it a pixel stage takes to the device."""
        masks = {} if self.masks is None else {'masks': self.masks}
        return {'pictures': self.pictures, 'prompt_of': self.prompt_of, **masks}


def make_table(instance: Examples, class_pictures: Examples | None = None) -> Table:
    """Joins instance and class pictures into one table.

    Raises: ValueError if their sizes differ.
    """
    groups = [instance] if class_pictures is None else [instance, class_pictures]
    if len({group.images.shape[1:] for group in groups}) > 1:
        ours, theirs = ('{1} x {0}'.format(*group.images.shape[1:3]) for group in groups)
        raise ValueError(f'instance pictures are {ours} pixels but class pictures {theirs}')
    texts = [text for group in groups for text in group.prompts]
    prompts = ['', *dict.fromkeys(text for text in texts if text)]
    place = {text: i for i, text in enumerate(prompts)}
    return Table(
        pictures=np.concatenate([group.images for group in groups]),
        prompt_of=np.array([place[text] for text in texts], np.int32),
        prompts=prompts,
        num_instance=len(instance.images),
        masks=join_masks(groups),
    )


def join_masks(groups: Sequence[Examples]) -> np.ndarray | None:
    """The masks of all groups, uint8[N, H, W, 1], 255 for those that have none; None if no group has any."""
    if all(group.masks is None for group in groups):
        return None
    return np.concatenate(
        [
            np.full((*group.images.shape[:3], 1), 255, np.uint8) if group.masks is None else group.masks
            for group in groups
        ]
    )


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
