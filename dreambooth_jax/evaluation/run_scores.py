"""Scores one run: what it is measured with, and the content of scores.json.

The run is read by whoever calls (`Opened`), so that nothing here depends on how runs are trained.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config import BUILT_IN, BUILT_IN_NAMES, ConfigError, DreamBoothConfig, SubjectConfig, to_dict
from dreambooth_jax.data import provenance
from dreambooth_jax.data.content_credentials import Sign
from dreambooth_jax.evaluation import encoders
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.evaluator import Diversity, Evaluator, Likeness, Naming, summary
from dreambooth_jax.evaluation.protocol import Album, Subject
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.storybook import storybook_folder
from dreambooth_jax.training import memory
from dreambooth_jax.weights.encoder_folders import PUBLISHED_ENCODERS, usual_encoders

CLASSIFIER = 'classifier'
_NOT_OF_MODELS = ('seed', 'data', 'prior', 'optimizer', 'checkpoint', 'samples', 'export')  # groups of settings
RUN, BASE = 'run', 'base'  # the models that are scored: what was trained, and what the run began with


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run that is ready to be scored.

    Attributes:
      models: RUN and, unless the floor is left out, BASE -> the model.
      subjects: what it was trained on.
      options: how images are sampled.
      origins: lines of text that say where its weights come from.
      metadata: what the files of its images say of themselves, as in Origin.
      sign: signs these files; None: they are not signed.
    """

    models: Mapping[str, Cascade]
    subjects: Sequence[Subject]
    options: SamplingOptions
    origins: Sequence[str]
    metadata: str = provenance.FULL
    sign: Sign | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """What runs are measured with.

    Attributes:
      evaluators: one after the other.
      used: name -> fingerprint of each network that they use.
      num_images: images per prompt.
      class_images: images of the class prompt.
    """

    evaluators: Sequence[Evaluator]
    used: Mapping[str, str]
    num_images: int
    class_images: int


class BaseModels:
    """The models that runs began with. The last one is kept: the next run mostly shares it and its programs."""

    def __init__(self):
        self._key, self._model = None, None

    def of(self, config: DreamBoothConfig) -> Cascade:
        """Returns the model that a run with these settings began with; raises what Cascade.of raises."""
        # The settings that no model depends on are left out. Of those that remain some matter to none either: then it
        # is read twice, but never is one model taken for another.
        parts = {name: value for name, value in to_dict(config).items() if name not in _NOT_OF_MODELS}
        key = json.dumps([parts, config.data.resolution])
        if key != self._key:
            self._key, self._model = None, None  # freed before the next one is read
            self._key, self._model = key, Cascade.of(config)
        return self._model

    def side(self, config: DreamBoothConfig, base_alone: bool = False) -> int:
        """Returns the side in pixels of the images of a run with these settings.

        Args:
          base_alone: whether the base stage's images are meant, not those of the last stage.
        """
        model = self.of(config)
        return model.base_size if base_alone or model.super_resolution is None else model.super_resolution_size


def sampling(
    config: DreamBoothConfig, cascade: Cascade, batch_size: int | None = None, base_alone: bool = False
) -> SamplingOptions:
    """Returns how the images of a run are sampled: as its samples are.

    Args:
      batch_size: images at once; None: that of the samples.
      base_alone: whether the base stage's images are wanted, which are quicker, though its model has a second stage.
    """
    options = SamplingOptions.of_samples(config.samples, config.super_resolution)
    if base_alone and cascade.super_resolution is not None:
        options = dataclasses.replace(options, super_resolution=False)
    return dataclasses.replace(options, batch_size=batch_size or options.batch_size)


def is_built_in(config: DreamBoothConfig) -> bool:
    """Whether any subject of a run is painted, not read from photos."""
    return any(_is_built_in(one) for one in config.subjects())


def _is_built_in(subject: SubjectConfig) -> bool:
    return subject.instance_dir is None and subject.tfds is None


def choose(config: DreamBoothConfig, metrics: Sequence[str] | None, given: Mapping[str, str | None]) -> dict[str, str]:
    """Chooses what a run is measured with.

    Args:
      config: the settings of the run.
      metrics: names of metrics; None: dino and clip, and the classifier where it knows what the run shows.
      given: metric -> the folder, hub id or file that is to be used; None or absent: Storybook's own for a run of the
        Storybook model, else the published one.

    Returns:
      metric -> what it is measured with.

    Raises:
      ConfigError: if the classifier is asked for and does not know what the run shows.
    """
    is_storybook = config.model in BUILT_IN
    is_known = is_storybook and all(map(_is_built_in, config.subjects()))
    if metrics is None:
        metrics = ['dino', 'clip', *([CLASSIFIER] if is_known else [])]
    if CLASSIFIER in metrics and not is_known:
        what = 'was trained on photos' if is_storybook else f'began with {config.model!r}'
        raise ConfigError(
            f'--metrics has {CLASSIFIER}, which knows the built-in subjects of {BUILT_IN_NAMES} alone, but the run '
            f'{what}; leave {CLASSIFIER} out'
        )
    usual = usual_encoders(is_storybook) | {CLASSIFIER: "Storybook's classifier"}
    return {name: given.get(name) or usual[name] for name in metrics}


def load_measures(chosen: Mapping[str, str], *, num_images: int, class_images: int) -> Measures:
    """Loads what runs are measured with.

    Args:
      chosen: as `choose` returns it.
      num_images: images per prompt.
      class_images: images of the class prompt.

    Raises:
      WeightsError: if a network cannot be read.
    """
    counts = {'num_images': num_images, 'class_images': class_images}
    found, fingerprints = [], {}
    for name in PUBLISHED_ENCODERS:
        if name in chosen:
            encoder = encoders.load_encoder(chosen[name])
            fingerprints[name] = encoder.fingerprint
            names = {'name': 'clip_i', 'prompt_name': 'clip_t'} if name == 'clip' else {'name': name}
            found.append(Likeness(encoder=encoder, **names, **counts))
    if 'lpips' in chosen:
        distance = encoders.load_lpips(chosen['lpips'])
        fingerprints['lpips'] = distance.fingerprint
        found.append(Diversity(distance=distance, num_images=num_images))
    if CLASSIFIER in chosen:
        fingerprints[CLASSIFIER] = _content(storybook_folder() / 'classifier')
        found.append(Naming(classifier=Classifier.load(), **counts))
    return Measures(evaluators=found, used=fingerprints, **counts)


def _content(folder: Path) -> str:
    """Returns a hash of the files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(b''.join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def score(run: Opened, measures: Measures, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Scores a run; images are generated where they are missing.

    Args:
      folders: RUN and BASE -> the folder that keeps the images of that model.

    Returns:
      The content of scores.json. Its 'images' are the models' folders of images, from the folder around `folders`.

    Raises:
      TrainingError: if the memory of the device is full.
      ConfigError, OSError, CredentialsError: as Album.
    """
    measured, albums = {}, {}
    for title, model in run.models.items():
        generate = Album(model, run.options, folders[title], title, run.metadata, run.sign)
        albums[title] = f'{folders[title].name}/{generate.folder.name}'
        with memory.explained('images are generated', ['--batch_size=1'], kept=True):
            measured[title] = {
                subject.name: summary({k: v for one in measures.evaluators for k, v in one(generate, subject).items()})
                for subject in run.subjects
            }
        model.release()
    ceilings: dict[str, dict[str, Any]] = {}
    for subject in run.subjects:
        for name, found in (item for one in measures.evaluators for item in one.ceilings(subject).items()):
            ceilings.setdefault(name, {})[subject.name] = found
    return {
        'models': measured,
        'ceiling': ceilings,
        'images': albums,
        'subjects': {
            subject.name: {'live': subject.is_live, 'prompts': {asked.text: asked.kind for asked in subject.prompts}}
            for subject in run.subjects
        },
        'weights': list(run.origins),
        'encoders': dict(measures.used),
        'images_per_prompt': measures.num_images,
        'class_images': measures.class_images,
        'sampling': vars(run.options),
    }
