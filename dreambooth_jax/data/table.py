"""The pictures of a run with their prompts, as arrays for the device: instance pictures, then class pictures."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
    """Pictures and prompts, each prompt once.

    Attributes:
      pictures: uint8[N, H, W, 3].
      prompt_of: i32[N], each picture's place in `prompts`.
      prompts: the first is the empty prompt, which dropped rows see.
      num_instance: pictures [0, num_instance) are the subject's; the rest are class pictures.
    """

    pictures: np.ndarray
    prompt_of: np.ndarray
    prompts: list[str]
    num_instance: int

    @property
    def num_class(self) -> int:
        """How many class pictures there are."""
        return len(self.pictures) - self.num_instance


def make_table(
    instance: tuple[np.ndarray, Sequence[str]], class_pictures: tuple[np.ndarray, Sequence[str]] | None = None
) -> Table:
    """Joins instance and class pictures (uint8[N, H, W, 3], one prompt each) into one table.

    Raises: ValueError if their sizes differ.
    """
    groups = [instance] if class_pictures is None else [instance, class_pictures]
    if len({images.shape[1:] for images, _ in groups}) > 1:
        raise ValueError(
            f'instance pictures are {instance[0].shape[1]} pixels wide but class pictures {class_pictures[0].shape[1]}'
        )
    texts = [text for _, prompts in groups for text in prompts]
    prompts = ['', *dict.fromkeys(text for text in texts if text)]
    place = {text: i for i, text in enumerate(prompts)}
    return Table(
        pictures=np.concatenate([images for images, _ in groups]),
        prompt_of=np.array([place[text] for text in texts], np.int32),
        prompts=prompts,
        num_instance=len(instance[0]),
    )
