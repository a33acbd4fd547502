"""What a run begins or goes on with: all that is read and checked before anything is generated, trained or written."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.data import training_marks
from dreambooth_jax.data.content_credentials import Sign
from dreambooth_jax.data.table import Examples
from dreambooth_jax.finetune import consent, examples, instance_images, pinned, samples_model
from dreambooth_jax.finetune.extension import Extension, extended
from dreambooth_jax.finetune.initial import initial
from dreambooth_jax.finetune.stage import check_lora_targets, check_schedules
from dreambooth_jax.finetune.standing import standing
from dreambooth_jax.generation import class_images, signed_files
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.training import dtypes, hosts, inputs, placement, run
from dreambooth_jax.training.callbacks import Chosen
from dreambooth_jax.training.inputs import Inputs
from dreambooth_jax.training.placement import Placement


class Ready(NamedTuple):
    """A run that may begin or go on.

    Attributes:
      config: the settings, with the commits of hub models.
      original: the model before the run.
      cascade: the model that it starts from, with the new word of textual inversion, if there is one (initial.py).
      instance: the subjects' images, as examples.read_instance returns them.
      inputs: what the run learns from, in the order in which it uses it.
      extension: by which its base stage has more steps than its settings file says.
      chosen: the choice of the base stage's checkpoint, if it stands (standing.py).
      sampled_on: the model that generates samples with the adapters (samples_model.py); None: the one that trains.
      sign: signs its samples, on the first host alone, which writes them; None: they are not signed.
    """

    config: DreamBoothConfig
    original: Cascade
    cascade: Cascade
    instance: dict[str, list[Examples]]
    inputs: Inputs
    extension: Extension
    chosen: Chosen | None
    sampled_on: Cascade | None
    sign: Sign | None

    @property
    def class_photos(self) -> list[str] | None:
        """File names of the user's own class images, in the order to use; None: there are none."""
        return self.inputs.order.get(inputs.CLASS_PHOTOS)

    def placement(self, devices: Sequence[jax.Device] | None = None) -> Placement:
        """Returns how the run uses the devices; None: all that are here."""
        options = {} if devices is None else {'devices': devices}
        settings = self.config.parallel
        return placement.make_placement(settings.mode, fsdp_min_bytes=settings.fsdp_min_bytes, **options)

    def photos(self) -> list[tuple[np.ndarray, ...]]:
        """Returns the photos of every subject as they are (instance_images.whole), if they are scored."""
        return instance_images.whole(self.config, self.original.base_size) if self.config.evaluation.every else []


def read(config: DreamBoothConfig, workdir: Path, more: int | None = None) -> Ready:
    """Reads the model and the images of a run, and checks that the settings fit them and the run's folder.

    Args:
      more: by how many steps a finished run is extended (extension.py); None: by none.

    Raises:
      ConfigError: if a setting does not fit the model, or differs from the run's and would change what is learned, or
        if the photos show people and nothing says that they have agreed.
      WeightsError, ImageError, TokenizerError: if something cannot be read, or a photo is marked "do not train".
      CredentialsError: if samples are to be signed and cannot be.
    """
    consent.check(config)
    sign = hosts.on_first(lambda: signed_files.signer_of(config.samples), 'sign the samples')
    config, extension = extended(config, workdir, more)
    config, original = pinned.read_pinned(config, workdir)
    check_schedules(config, original)
    check_lora_targets(config, original)
    cascade, hashes = initial(config, original, dtype=dtypes.compute_dtype(config.parallel))
    # A run that was begun before must continue with the same models and photos.
    models = {BASE: original.base}
    if config.super_resolution.steps and original.super_resolution is not None:
        models[SUPER_RESOLUTION] = original.super_resolution
    photos = instance_images.photos(config)
    if own := class_images.own_photos(config):
        photos[inputs.CLASS_PHOTOS] = own
    for files in photos.values():
        training_marks.refuse([file.path for file in files], config.data.consent)
    found = inputs.find(models, photos)
    learned_from = run.check(config, workdir, found._replace(models={**found.models, **hashes}))
    instance = examples.read_instance(config, cascade, learned_from.order)
    chosen = standing(config, workdir, extension)
    sampled_on = samples_model.read(config, cascade)
    config = pinned.with_commit_of_samples(config, sampled_on)
    return Ready(config, original, cascade, instance, learned_from, extension, chosen, sampled_on, sign)
