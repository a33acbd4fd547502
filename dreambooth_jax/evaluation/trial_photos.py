"""The photos of the experiments' subjects: painted, or a folder of photos for each, as the paper's data set has."""

from pathlib import Path

import numpy as np

from dreambooth_jax.data import provenance
from dreambooth_jax.data.decode import decode_image
from dreambooth_jax.data.images import ImageError, open_photo
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import captions, reference_scenes

_SIDE = 128  # of painted photos in files, in pixels


class TrialPhotos:
    """Photos of the thirty subjects.

    Args:
      folder: holds a folder for each subject, with its name; None: Storybook's painted photos.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder

    @property
    def are_painted(self) -> bool:
        return self._folder is None

    def settings(self, subject: str) -> dict[str, Path]:
        """Returns the settings that train on the photos; none are needed for painted ones."""
        return {} if self._folder is None else {'data.instance_dir': self._folder / subject}

    def of(self, subject: str, side: int) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Returns the photos, uint8[H, W, 3] each, and their masks, uint8[H, W] each, or None where there is none.

        Args:
          side: of painted photos, in pixels; others are as they are.

        Raises:
          ImageError: if the subject has no folder of photos, or one of them cannot be read.
        """
        if self._folder is None:
            scenes = reference_scenes(subject)
            return [draw.paint(scene, side) for scene in scenes], [draw.paint_mask(scene, side) for scene in scenes]
        files = self._files(subject)
        masks = [open_photo(file.path, file.mask).weights if file.mask else None for file in files]
        photos = [np.asarray(decode_image(file.path)) for file in files]
        return photos, [None if mask is None else np.asarray(mask) for mask in masks]

    def write(self, subject: str, count: int, folder: Path, prompt: str) -> None:
        """Writes the first `count` photos of a subject, or all if it has fewer, to a folder.

        Painted ones have captions that begin with `prompt`, such as 'a sks dog'; others the captions and masks that
        they have. Raises as `of`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._folder is None:
            photos = zip(reference_scenes(subject)[:count], captions(subject, prompt, count), strict=True)
            for number, (scene, caption) in enumerate(photos):
                provenance.save(draw.paint(scene, _SIDE), folder / f'{number}.png', source=provenance.PAINTED)
                (folder / f'{number}.txt').write_text(caption)
            return
        for file in self._files(subject)[:count]:
            for path in (file.path, file.mask):
                if path:
                    (folder / path.name).write_bytes(path.read_bytes())
            if file.caption:
                (folder / f'{file.path.name}.txt').write_text(file.caption)

    def _files(self, subject: str):
        files, _ = list_images(self._folder / subject)
        if not files:
            raise ImageError(f'the folder {self._folder / subject} holds no photo of {subject}; put some there')
        return files
