"""Trainings of Storybook's thirty subjects by one recipe, each measured by the classifier, for the experiments.

A trial is a subject and the settings in which its training differs from configs/subject.py. Its run and its numbers are
kept in a working folder, so that an experiment that was ended goes on, and two experiments that share the folder share
the trials that both have.
"""

import hashlib
import re
import runpy
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.config import of_run
from dreambooth_jax.evaluation import experiment, protocol, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.encoders import load_encoder
from dreambooth_jax.evaluation.evaluator import MASKED, Likeness
from dreambooth_jax.evaluation.storybook_scores import SUBJECT_SHARES
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.run_settings import settings_of
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import SUBJECTS, reference_scenes
from dreambooth_jax.system import cpu_devices
from dreambooth_jax.text.prompts import evaluation_prompts
from dreambooth_jax.weights.encoder_folders import STORYBOOK_ENCODERS

IDENTIFIER = 'sks'  # of configs/subject.py
# What tables say of a trial: name in words -> function of its scores. The likeness is that of Likeness, as a share of
# the likeness of the photos among each other; the classifier does not see whether a subject is there once and whole.
SHARES = {
    **SUBJECT_SHARES,
    'DINO, as a share of the photos': lambda scores: scores['likeness']['dino'],
    'DINO without background, the same': lambda scores: scores['likeness'][f'dino{MASKED}'],
}
_SHOWN = 2  # images of each prompt that are kept
_LONGEST = 60  # characters of a folder's name


class Trial(NamedTuple):
    """What was measured of one trained subject.

    Attributes:
      scores: the result of storybook_scores.subject_scores; under 'likeness' shares (SHARES); 'measured'
        (experiment.kept).
      images: prompt -> uint8[n, H, W, 3]: of the subject, of it in the snow, and of its class.
      phrases: prior.phrases of the training.
    """

    scores: dict[str, Any]
    images: dict[str, np.ndarray]
    phrases: tuple[str, ...]


class SubjectTrials:
    """Trains and measures subjects, each once.

    Args:
      model: the model that is fine-tuned, one of those that ship with the package.
      config: configs/subject.py.
      workdir: the working folder.
      num_images: images per prompt.
      class_images: images of the class prompt.
      sampling: seed and batch_size of the measured images; all else about them is as the recipe generates samples.

    Attributes:
      classifier: the shipped classifier.
    """

    def __init__(
        self,
        model: str,
        config: Path,
        workdir: Path,
        *,
        num_images: int,
        class_images: int,
        sampling: Mapping[str, int],
    ):
        cpu_devices.use(settings_of(model).cpu_devices)
        self._model, self._config, self._workdir = model, config, workdir / model
        self._recipe = runpy.run_path(str(config))['get_config']
        self._base, self.classifier = Cascade.load(model, super_resolution_model='none'), Classifier.load()
        self._weights = experiment.fingerprint_of(self._base.base)
        self._likeness = Likeness(
            name='dino',
            encoder=load_encoder(STORYBOOK_ENCODERS['dino']),
            num_images=num_images,
            class_images=class_images,
        )
        self._amounts = {'num_images': num_images, 'class_images': class_images}
        self._sampling = dict(sampling)
        self._marker = experiment.fingerprint(self.classifier.naming_params)

    def measure(self, subject: str, settings: Mapping[str, Any] | None, called: str | None = None) -> Trial:
        """Trains and measures one subject, unless that was done before.

        Args:
          subject: one of the thirty.
          settings: dotted name -> value, those that differ from the recipe; None: the model is measured untrained, and
            sampled as the recipe samples.
          called: the words for the subject in the prompts; None: the identifier and the class noun.
        """
        called = f'{IDENTIFIER} {SUBJECTS[subject].class_noun}' if called is None else called
        cascade, options, run = self.trained(subject, settings)
        name = 'untrained' if settings is None else folder_name(settings) or 'recipe'
        found = self._scores(subject, name, called, cascade, options)
        return Trial(*found, () if run is None else of_run.settings(run).prior.phrases)

    def trained(self, subject: str, settings: Mapping[str, Any] | None) -> tuple[Cascade, SamplingOptions, Path | None]:
        """Trains one subject, unless that was done before.

        Args:
          subject, settings: as in `measure`.

        Returns:
          The model, how the recipe samples it, and the run's folder, None of the untrained model.
        """
        if settings is None:
            samples = self._recipe(f'{subject},{self._model}').samples
            sampling = {option: samples[option] for option in ('steps', 'guidance_scale', 'sampler')}
            return self._base, settings_of(self._model).options(self._base, sampling | self._sampling), None
        run = self._run(subject, settings)
        cascade = experiment.with_base_of(self._base, run)
        return cascade, settings_of(str(run)).options(cascade, self._sampling), run

    def _run(self, subject: str, settings: Mapping[str, Any]) -> Path:
        noun, name = SUBJECTS[subject].class_noun, folder_name(settings) or 'recipe'
        given = {'super_resolution_model': 'none', 'super_resolution.steps': 0, 'samples.every': 0, **settings}
        if given.get('prior.kind', self._recipe(f'{subject},{self._model}').prior.kind) == 'images':
            # Subjects of a class share its images, as long as these are generated alike.
            alike = folder_name({name: value for name, value in settings.items() if name.startswith('prior.')})
            given.setdefault('prior.dir', self._workdir / 'prior' / alike / noun.replace(' ', '_'))
        config = f'{self._config}:{subject},{self._model}'
        return experiment.train_once(self._workdir / name / subject, config, given, weights=self._weights)

    def _scores(self, subject: str, name: str, called: str, cascade: Cascade, options: SamplingOptions):
        of = {'weights': experiment.fingerprint_of(cascade.base), 'classifier': self._marker, 'called': called}
        of |= {option: getattr(options, option) for option in ('steps', 'guidance_scale', 'sampler', 'seed')}
        of |= {'encoder': self._likeness.encoder.fingerprint, **self._amounts}
        shown = [f'a {called}', f'a {called} in the snow', f'a {SUBJECTS[subject].class_noun}']

        def make():
            images = {}
            scores = storybook_scores.subject_scores(
                cascade, self.classifier, subject, called, options, gallery=images, **self._amounts
            )
            scores['likeness'] = self._like(subject, called, images)
            return scores, {prompt: images[prompt][:_SHOWN] for prompt in shown}

        return experiment.kept(self._workdir / 'parts' / name, subject, of, make)

    def _like(self, subject: str, called: str, images: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the likeness of images, prompt -> uint8[n, H, W, 3], to the subject's photos, as shares."""
        noun, scenes = SUBJECTS[subject].class_noun, reference_scenes(subject)
        side = images[f'a {called}'].shape[1]
        known = protocol.Subject(
            name=subject,
            instance_prompt=f'a {called}',
            class_prompt=f'a {noun}',
            photos=tuple(draw.paint(scene, side) for scene in scenes),
            masks=tuple(draw.paint_mask(scene, side) for scene in scenes),
            prompts=tuple(
                protocol.Asked(prompt.kind, prompt.text(called), prompt.text(noun))
                for prompt in evaluation_prompts(noun)
            ),
        )
        found = self._likeness(lambda texts, count: np.stack([images[text][:count] for text in texts]), known)
        ceilings = self._likeness.ceilings(known)
        return {name: float(found[name].values.mean() / of['others']) for name, of in ceilings.items()}


def folder_name(settings: Mapping[str, Any]) -> str:
    """Returns the name of a folder for what differs from the recipe; '' if nothing does."""
    name = re.sub(r'[^\w.+-]+', '_', '_'.join(f'{name}={value}' for name, value in settings.items()))
    return name if len(name) < _LONGEST else f'{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}'


def summary(scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the scores of several subjects have in common.

    Returns:
      subjects: how many they are; for each share of SHARES that any of them has a dict: mean, over the
      subjects; standard_error, None of a single one; of, the least and the greatest.
    """
    scores = list(scores)
    found = {'subjects': len(scores)}
    for title, share in SHARES.items():
        values = [value for value in map(share, scores) if value is not None]
        if values:
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            found[title] = {'mean': statistics.mean(values), 'standard_error': error, 'of': [min(values), max(values)]}
    return found


def summary_cells(found: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a table's line for a `summary`: the number of subjects, then the shares."""
    return [str(found['subjects']), *(_cell(found.get(title)) for title in SHARES)]


def _cell(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return '-'
    error = '' if share['standard_error'] is None else f' ± {100 * share["standard_error"]:.0f}'
    least, greatest = map(experiment.percent, share['of'])
    return f'{100 * share["mean"]:.0f}{error} % ({least} to {greatest})'
