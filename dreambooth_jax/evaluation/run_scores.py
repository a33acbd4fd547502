"""Scores one run: what it is measured with, and the content of scores.json.

The run is read by whoever calls (`Opened`), so that nothing here depends on how runs are trained.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config import STORYBOOK, ConfigError, DreamBoothConfig
from dreambooth_jax.evaluation import encoders, scores
from dreambooth_jax.evaluation.evaluator import Diversity, Evaluator, Likeness, summary
from dreambooth_jax.evaluation.protocol import Album, Subject
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training import memory
from dreambooth_jax.weights.encoder_folders import STORYBOOK_ENCODERS

CLASSIFIER = 'classifier'
PUBLISHED = {
    'dino': 'facebook/dino-vits16',
    'dinov2': 'facebook/dinov2-small',
    'clip': 'openai/clip-vit-base-patch32',
}
RUN, BASE = 'run', 'base'  # the models that are scored: what was trained, and what the run began with


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run that is ready to be scored.

    Attributes:
      models: RUN and, unless the floor is left out, BASE -> the model.
      subjects: what it was trained on.
      options: how images are sampled.
      origins: lines of text that say where its weights come from.
    """

    models: Mapping[str, Cascade]
    subjects: Sequence[Subject]
    options: SamplingOptions
    origins: Sequence[str]


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
    is_storybook = config.model == STORYBOOK
    is_known = is_storybook and all(one.instance_dir is None and one.tfds is None for one in config.subjects())
    if metrics is None:
        metrics = ['dino', 'clip', *([CLASSIFIER] if is_known else [])]
    if CLASSIFIER in metrics and not is_known:
        what = 'was trained on photos' if is_storybook else f'began with {config.model!r}'
        raise ConfigError(
            f'--metrics has {CLASSIFIER}, which knows the built-in subjects of {STORYBOOK!r} alone, but the run {what}; '
            f'leave {CLASSIFIER} out'
        )
    usual = PUBLISHED | {CLASSIFIER: "Storybook's classifier"} | (STORYBOOK_ENCODERS if is_storybook else {})
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
    for name in PUBLISHED:
        if name in chosen:
            encoder = encoders.load_encoder(chosen[name])
            fingerprints[name] = encoder.fingerprint
            names = {'name': 'clip_i', 'prompt_name': 'clip_t'} if name == 'clip' else {'name': name}
            found.append(Likeness(encoder=encoder, **names, **counts))
    if 'lpips' in chosen:
        distance = encoders.load_lpips(chosen['lpips'])
        fingerprints['lpips'] = distance.fingerprint
        found.append(Diversity(distance=distance, num_images=num_images))
    return Measures(evaluators=found, used=fingerprints, **counts)


def score(run: Opened, measures: Measures, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Scores a run; images are generated where they are missing.

    Args:
      folders: RUN and BASE -> the folder that keeps the images of that model.

    Returns:
      The content of scores.json.

    Raises:
      TrainingError: if the memory of the device is full.
      ConfigError, OSError: as Album.
    """
    measured, images = {}, {}
    for title, model in run.models.items():
        generate = Album(model, run.options, folders[title], title)
        with memory.explained('images are generated', ['--batch_size=1'], kept=True):
            measured[title] = {
                subject.name: summary({k: v for one in measures.evaluators for k, v in one(generate, subject).items()})
                for subject in run.subjects
            }
        model.release()
        images[title] = f'{generate.folder.parent.name}/{generate.folder.name}'
    ceilings = {
        one.name: {subject.name: scores.ceiling(one.encoder.embed_images(subject.photos)) for subject in run.subjects}
        for one in measures.evaluators
        if isinstance(one, Likeness)
    }
    return {
        'models': measured,
        'ceiling': ceilings,
        'subjects': {
            subject.name: {'live': subject.is_live, 'prompts': {asked.text: asked.kind for asked in subject.prompts}}
            for subject in run.subjects
        },
        'images': images,
        'weights': list(run.origins),
        'encoders': dict(measures.used),
        'images_per_prompt': measures.num_images,
        'class_images': measures.class_images,
        'sampling': vars(run.options),
    }
