"""The subjects' pictures of a run: photos from folders, or paintings of Storybook's built-in subjects."""

import numpy as np
from absl import logging

from dreambooth_jax.config import DreamBoothConfig, SettingsError
from dreambooth_jax.data.images import MAX_ZOOM
from dreambooth_jax.data.subjects import read_subject
from dreambooth_jax.data.table import Examples, join_masks
from dreambooth_jax.storybook import draw, subjects


def read(config: DreamBoothConfig, size: int, *, crops: int | None = None, max_zoom: float = MAX_ZOOM) -> Examples:
    """All subjects' pictures and the prompt of each: its caption if it has one, else the subject's instance prompt.

    Args:
      size: side of the square pictures, in pixels.
      crops: of each photo; None: config.data.crops. max_zoom: of random ones (data/images.py).
    Returns: N pictures, uint8[N, size, size, 3], with masks if any of them has one.
    Raises: PictureError for a folder, picture or mask that cannot be used; files that are no pictures are skipped with
      a warning. SettingsError for an unknown built-in subject.
    """
    groups = []
    for concept in config.concepts():
        if concept.instance_dir is None:
            if concept.subject not in subjects.SUBJECTS:
                known = ', '.join(subjects.SUBJECTS)
                raise SettingsError(f'config.data.subject is {concept.subject!r} but must be one of {known}')
            painted = [draw.paint(scene, size) for scene in subjects.reference_scenes(concept.subject)]
            groups.append(Examples(np.stack(painted), [concept.instance_prompt] * len(painted)))
            continue
        found = read_subject(
            concept.instance_dir, size, concept.instance_prompt, crops=crops or config.data.crops, max_zoom=max_zoom,
            seed=config.seed)  # fmt: skip
        for name, reason in found.skipped.items():
            logging.warning('%s in %s is skipped: it is %s', name, concept.instance_dir, reason)
        groups.append(Examples(found.images, found.prompts, found.masks))
    return Examples(
        np.concatenate([group.images for group in groups]),
        [prompt for group in groups for prompt in group.prompts],
        join_masks(groups),
    )
