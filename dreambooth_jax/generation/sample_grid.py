"""The samples of a run: a grid to compare, and its images as they are.

<folder>/<step>.png             on top the subject's images, then per prompt our images beside the base model's, small
<folder>/<step>/000_00.png ...  our images, whole: number of the prompt, number of the image; from the last stage
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from dreambooth_jax.config import ConfigError
from dreambooth_jax.data.content_credentials import CredentialsError, Sign
from dreambooth_jax.generation import signed_files
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.origin import Origin
from dreambooth_jax.monitoring import grids
from dreambooth_jax.training import hosts, memory, requests
from dreambooth_jax.training.callbacks import OnRequest
from dreambooth_jax.training.loop import TrainingError
from dreambooth_jax.training.state import TrainState


class SampleGrid:
    """Generates images of the same prompts from the same noise at any step of a run.

    Args:
      original: the model before fine-tuning; its images are generated once and shown beside ours. None: ours alone.
      references: the subject's images, uint8[H, W, 3] each.
      prompts: one line of the grid each.
      options: how the images are sampled.
      num_images: images per prompt.
      origin: what the files say of the model that trains; None: only that a model generated them.
      sign: signs them; None: they are not signed.
    """

    def __init__(
        self,
        original: Cascade | None,
        references: Sequence[np.ndarray],
        prompts: Sequence[str],
        options: SamplingOptions,
        *,
        num_images: int,
        origin: Origin | None = None,
        sign: Sign | None = None,
    ):
        self.original, self.references, self.prompts = original, list(references), list(prompts)
        self.options, self.num_images, self.origin, self.sign = options, num_images, origin, sign
        self._answers = None

    def _generate(self, cascade: Cascade) -> list[list[list[np.ndarray]]]:
        """Returns the images as lists [stage][prompt][image number]; the devices are free of the model afterwards."""
        batch_size = self.options.batch_size or cascade.usual_batch_size
        smaller = [f'--config.samples.batch_size={batch_size // 2}'] if batch_size > 1 else []
        try:
            with memory.explained('samples are generated', smaller):
                generated = cascade.generate(self.prompts, self.options, num_images=self.num_images, progress=False)
        finally:
            cascade.release()  # the training, or the other model, needs the place
        stages = [stage for stage in (generated.base, generated.super_resolution) if stage is not None]
        shape = (len(self.prompts), self.num_images)
        return [list(stage.reshape(*shape, *stage.shape[1:])) for stage in stages]

    def save_if_possible(
        self, cascade: Cascade, path: Path, title: str, step: int | None = None, before: Cascade | None = None
    ) -> None:
        """Saves the grid, or warns if the images cannot be generated or signed.

        A training must not end because of its samples, such as when the certificate has expired.

        Args:
          cascade, path, title, step, before: as for `save`.

        Raises:
          OSError: if the disk does not take the file.
          JaxRuntimeError, OutOfMemory: with several hosts, because a host that goes on alone would wait for the others
            for ever.
        """
        try:
            self.save(cascade, path, title, step, before)
        except (TrainingError, ConfigError, CredentialsError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, (jax.errors.JaxRuntimeError, memory.OutOfMemory)) and jax.process_count() > 1:
                raise
            logging.warning('no samples of %s, training goes on: %s', title, error)

    def save(
        self, cascade: Cascade, path: Path, title: str, step: int | None = None, before: Cascade | None = None
    ) -> np.ndarray:
        """Generates with the present weights and writes our images as PNG files, and then the grid.

        The grid is marked as generated as a whole, the subject's photos at its top included. The images lie in a folder
        of its name.

        Args:
          cascade: the model with these weights.
          path: the file.
          title: a line of text at the top.
          step: the step of the training, for the file; None: it is not known.
          before: the same model as `original`, which generates in its place; None: `original` itself does.

        Returns:
          The pixels of the grid, uint8[H, W, 3].
        """
        ours = self._generate(cascade)
        groups = dict(zip(('ours, base stage', 'ours, super-resolution'), ours, strict=False))
        if self.original is not None:
            if self._answers is None:
                self._answers = self._generate(before or self.original)[-1]
            groups['the base model'] = self._answers
        headings = [name for name in groups for _ in range(self.num_images)]
        rows = [[image for group in groups.values() for image in group[i]] for i in range(len(self.prompts))]
        width = len(headings)
        references = [self.references[i : i + width] for i in range(0, len(self.references), width)]
        sheet = grids.contact_sheet(
            [*references, *rows],
            [*('the subject' if i == 0 else '' for i in range(len(references))), *self.prompts],
            headings=headings,
            headings_from=len(references),
            title=title,
        )
        if jax.process_index() == 0:
            images_of(path).mkdir(parents=True, exist_ok=True)
            for index, (prompt, images) in enumerate(zip(self.prompts, ours[-1], strict=True)):
                for number, pixels in enumerate(images):
                    facts = self.origin and self.origin.facts(prompt, number, step=step)
                    signed_files.write(pixels, images_of(path) / f'{index:03d}_{number:02d}.png', facts, self.sign)
            facts = self.origin and self.origin.facts('\n'.join(self.prompts), step=step)
            signed_files.write(sheet, path, facts, self.sign)
        return np.asarray(sheet)


def images_of(grid: Path) -> Path:
    """Returns the folder of a grid's images."""
    return grid.with_suffix('')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveSamples(OnRequest):
    """Saves a grid of the present weights: a callback of training (training/callbacks.py).

    Several hosts generate together, and the first one writes.

    Attributes:
      grid: generates the images.
      cascade_of: training state -> the model with its weights.
      folder: gets <step>.png and <step>/.
      title: what is trained, for the title of the grid.
      every: as in Callback.
      before: as for SampleGrid.save.
    """

    grid: SampleGrid
    cascade_of: Callable[[TrainState], Cascade]
    folder: Path
    title: str
    every: int = 0
    before: Cascade | None = None
    request: str = requests.SAMPLE

    def __call__(self, step: int, state: TrainState) -> None:
        title = f'{self.title}, step {step}'
        self.grid.save_if_possible(self.cascade_of(state), self._path(step), title, step, self.before)

    def missed(self, step: int) -> bool:
        return bool(hosts.of_first(not self._path(step).is_file()))

    def _path(self, step: int) -> Path:
        return self.folder / f'{step:06d}.png'
