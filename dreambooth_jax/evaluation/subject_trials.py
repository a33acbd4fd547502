"""Trainings of the thirty subjects by one recipe, each measured, for the experiments.

The models of the package train on Storybook's painted photos and are measured by its classifier and by DINO; other
models train on real photos of the same subjects and are measured by DINO and CLIP.

A trial is a subject and the settings in which its training differs from configs/subject.py. Its run and its numbers are
kept in a working folder, so that an experiment that was ended goes on, and two experiments that share the folder share
the trials that both have.
"""

import dataclasses
import hashlib
import re
import runpy
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax.config import BUILT_IN, ConfigError, of_run
from dreambooth_jax.evaluation import experiment, protocol, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.encoders import FeatureDistance, load_encoder
from dreambooth_jax.evaluation.evaluator import MASKED, Diversity, Likeness
from dreambooth_jax.evaluation.trial_photos import TrialPhotos
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.run_settings import settings_of
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.system import cpu_devices
from dreambooth_jax.text.prompts import evaluation_prompts
from dreambooth_jax.weights.encoder_folders import usual_encoders

IDENTIFIER = 'sks'  # of configs/subject.py
# The subjects that recipes are chosen on, those of experiments/evaluation, named before anything was measured. Reports
# are of the other twenty.
CHOSEN_ON = (
    'dog',
    'cat',
    'shiny_sneaker',
    'vase',
    'rc_car',
    'backpack',
    'teapot',
    'bear_plushie',
    'pink_sunglasses',
    'clock',
)
# Title of each of the two in tables -> whether it was chosen on.
GROUPS = {'the ten that the recipe was chosen on': True, 'the other twenty': False}
# What tables say of a trial: name in words -> function of its scores, None where it was not measured. DINO and PRES are
# shares of the photos' likeness among each other; DIV is 1 minus the likeness of images of one prompt. The classifier
# does not see if a subject is whole, or there twice.
SHARES = {
    'subject named': lambda scores: scores.get('subject_named'),
    'context named': lambda scores: scores.get('context_named'),
    'accessory named': lambda scores: scores.get('accessory_named'),
    'class prompt taken for the subject': lambda scores: scores.get('class_images', {}).get('taken_for_subject'),
    'class prompt named its class': lambda scores: scores.get('class_images', {}).get('class_named'),
    'DINO, as a share of the photos': lambda scores: scores['likeness']['dino'],
    'DINO without background, the same': lambda scores: scores['likeness'].get(f'dino{MASKED}'),
    'PRES, the same': lambda scores: scores['likeness'].get('dino_pres'),
    'DIV, by DINO': lambda scores: scores['likeness'].get('dino_div'),
    'CLIP-T': lambda scores: scores['likeness'].get('clip_t'),
}
_SHOWN = 2  # images of each prompt that are kept
_LONGEST = 60  # characters of a folder's name


class TrialModel(NamedTuple):
    """What is trained, and on what.

    Attributes:
      model: what stands after the subject in --config=configs/subject.py:SUBJECT,MODEL.
      weights: folder or hub id of the model, in place of that of the settings; None: theirs.
      photos: the photos of the subjects; painted ones are of the models of the package alone.
      encoders: 'dino' and 'clip' -> folder or hub id; None or absent: Storybook's for the models of the package, else
        the published ones.
    """

    model: str
    weights: str | None = None
    photos: TrialPhotos = TrialPhotos()
    encoders: Mapping[str, str | None] = {}


class Trial(NamedTuple):
    """What was measured of one trained subject.

    Attributes:
      scores: the result of storybook_scores.subject_scores, for the models of the package; under 'likeness' shares
        (SHARES); 'measured' (experiment.kept).
      images: prompt -> uint8[n, H, W, 3]: of the subject, of it in the snow, and of its class.
      photo: a photo of the subject, uint8[H, W, 3].
      phrases: prior.phrases of the training.
    """

    scores: dict[str, Any]
    images: dict[str, np.ndarray]
    photo: np.ndarray
    phrases: tuple[str, ...]


class SubjectTrials:
    """Trains and measures subjects, each once.

    Args:
      trained: the model that is fine-tuned, and the photos.
      config: configs/subject.py.
      workdir: the working folder.
      num_images: images per prompt.
      class_images: images of the class prompt.
      sampling: seed and batch_size of the measured images; all else about them is as the recipe generates samples.

    Attributes:
      classifier: the shipped classifier; None where it does not know the subjects.

    Raises:
      ConfigError: if a model of another world is to be trained without photos.
    """

    def __init__(
        self,
        trained: TrialModel,
        config: Path,
        workdir: Path,
        *,
        num_images: int,
        class_images: int,
        sampling: Mapping[str, int],
    ):
        model = trained.model
        is_known = model in BUILT_IN and trained.photos.are_painted
        if model not in BUILT_IN and trained.photos.are_painted:
            raise ConfigError(f'--model={model} knows nothing painted; give --photos, a folder of photos per subject')
        self._model, self._config = model, config
        # Painted and real photos of one subject are trials of their own.
        self._workdir = workdir / (model if trained.photos.are_painted else f'{model}_photos')
        self._recipe = runpy.run_path(str(config))['get_config']
        self._photos = trained.photos
        self._given = {} if trained.weights is None else {'model': trained.weights}
        name = trained.weights or self._recipe(f'{next(iter(SUBJECTS))},{model}').model
        cpu_devices.use(settings_of(name).cpu_devices)
        self._base = Cascade.load(name, super_resolution_model='none')
        self._at_size = {None: self._base}
        self._weights = experiment.fingerprint_of(self._base.base)
        self.classifier = Classifier.load() if is_known else None
        self._marker = self.classifier and experiment.fingerprint(self.classifier.naming_params)
        self._amounts = {'num_images': num_images, 'class_images': class_images}
        # Where no classifier sees what is asked for, CLIP says whether the prompt was followed.
        usual = usual_encoders(model in BUILT_IN)
        encoders = {name: trained.encoders.get(name) or usual[name] for name in ('dino', 'clip')}
        self._likeness = [Likeness(name='dino', encoder=load_encoder(encoders['dino']), **self._amounts)]
        if self.classifier is None:
            clip = load_encoder(encoders['clip'])
            self._likeness.append(Likeness(name='clip_i', encoder=clip, prompt_name='clip_t', **self._amounts))
        self._sampling = dict(sampling)

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
        scores, images = self._scores(subject, name, called, cascade, options)
        photos, _ = self._photos.of(subject, next(iter(images.values())).shape[1])
        return Trial(scores, images, photos[0], () if run is None else of_run.settings(run).prior.phrases)

    def trained(self, subject: str, settings: Mapping[str, Any] | None) -> tuple[Cascade, SamplingOptions, Path | None]:
        """Trains one subject, unless that was done before.

        Args:
          subject, settings: as in `measure`.

        Returns:
          The model, how the recipe samples it, and the run's folder, None of the untrained model.
        """
        if settings is None:
            recipe = self._recipe(f'{subject},{self._model}')
            sampling = {option: recipe.samples[option] for option in ('steps', 'guidance_scale', 'sampler')}
            base = self._base_at(recipe.data.resolution)
            return base, settings_of(self._model).options(base, sampling | self._sampling), None
        run = self._run(subject, settings)
        cascade = experiment.with_base_of(self._base_at(of_run.settings(run).data.resolution), run)
        return cascade, settings_of(str(run)).options(cascade, self._sampling), run

    def _base_at(self, size: int | None) -> Cascade:
        """Returns the untrained model for images of a size, so that trials of one size share compiled programs."""
        if size not in self._at_size:
            self._at_size[size] = dataclasses.replace(self._base, size=size, programs={}, _encoded={})
        return self._at_size[size]

    def _run(self, subject: str, settings: Mapping[str, Any]) -> Path:
        noun, name = SUBJECTS[subject].class_noun, folder_name(settings) or 'recipe'
        given = {'super_resolution_model': 'none', 'super_resolution.steps': 0, 'samples.every': 0}
        given |= self._given | self._photos.settings(subject) | settings
        if given.get('prior.kind', self._recipe(f'{subject},{self._model}').prior.kind) == 'images':
            # Subjects of a class share its images, as long as these are generated alike.
            alike = folder_name({name: value for name, value in settings.items() if name.startswith('prior.')})
            given.setdefault('prior.dir', self._workdir / 'prior' / alike / noun.replace(' ', '_'))
        config = f'{self._config}:{subject},{self._model}'
        return experiment.train_once(self._workdir / name / subject, config, given, weights=self._weights)

    def _scores(self, subject: str, name: str, called: str, cascade: Cascade, options: SamplingOptions):
        noun = SUBJECTS[subject].class_noun
        of = {'weights': experiment.fingerprint_of(cascade.base), 'classifier': self._marker, 'called': called}
        of |= {option: getattr(options, option) for option in ('steps', 'guidance_scale', 'sampler', 'seed')}
        of |= {'encoder': ' '.join(each.encoder.fingerprint for each in self._likeness), **self._amounts}
        shown = [f'a {called}', f'a {called} in the snow', f'a {noun}']

        def make():
            scores, images = {'subject': subject, 'called': called}, {}
            if self.classifier is None:
                prompts = [f'a {called}', *(prompt.text(called) for prompt in evaluation_prompts(noun))]
                for texts, count in ((prompts, 'num_images'), ([f'a {noun}'], 'class_images')):
                    storybook_scores.generate(cascade, texts, self._amounts[count], images, options)
            else:
                scores = storybook_scores.subject_scores(
                    cascade, self.classifier, subject, called, options, gallery=images, **self._amounts
                )
            scores['likeness'] = self._like(subject, called, images)
            return scores, {prompt: images[prompt][:_SHOWN] for prompt in shown}

        return experiment.kept(self._workdir / 'parts' / name, subject, of, make)

    def _like(self, subject: str, called: str, images: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns how like the photos and the prompts images are, prompt -> uint8[n, H, W, 3]."""
        noun = SUBJECTS[subject].class_noun
        photos, masks = self._photos.of(subject, images[f'a {called}'].shape[1])
        known = protocol.Subject(
            name=subject,
            instance_prompt=f'a {called}',
            class_prompt=f'a {noun}',
            photos=tuple(photos),
            masks=tuple(masks),
            prompts=tuple(
                protocol.Asked(prompt.kind, prompt.text(called), prompt.text(noun))
                for prompt in evaluation_prompts(noun)
            ),
        )

        def generated(texts, count):
            return np.stack([images[text][:count] for text in texts])

        found = {}
        for likeness in self._likeness:
            columns = likeness(generated, known)
            values = {name: float(column.values.mean()) for name, column in columns.items()}
            # A single photo is like no other one; its likeness to itself is the whole then.
            ceilings = {name: of['others'] or of['with_self'] for name, of in likeness.ceilings(known).items()}
            found |= {name: values[name] / most for name, most in ceilings.items()}
            found[f'{likeness.name}_pres'] = values[f'{likeness.name}_pres'] / ceilings[likeness.name]
            if likeness.prompt_name:
                found[likeness.prompt_name] = values[likeness.prompt_name]
        if self._amounts['num_images'] > 1:
            distance = FeatureDistance(self._likeness[0].encoder)
            of_prompts = Diversity(distance=distance, num_images=self._amounts['num_images'])
            found['dino_div'] = float(of_prompts(generated, known)['div'].values.mean())
        return found


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


def measured(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the titles of those SHARES that any of some scores has."""
    scores = list(scores)
    return [title for title, share in SHARES.items() if any(share(of) is not None for of in scores)]


def told(scores: Mapping[str, Any]) -> list[str]:
    """Returns what was measured of a trial in words, such as 'subject named 80 %'."""
    return [f'{title} {experiment.percent(SHARES[title](scores))}' for title in measured([scores])]


def summary_cells(found: Mapping[str, Any], titles: Iterable[str]) -> list[str]:
    """Returns the cells of a table's line for a `summary`: the number of subjects, then the shares of these titles."""
    return [str(found['subjects']), *(_cell(found.get(title)) for title in titles)]


def _cell(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return '-'
    error = '' if share['standard_error'] is None else f' ± {100 * share["standard_error"]:.0f}'
    least, greatest = map(experiment.percent, share['of'])
    return f'{100 * share["mean"]:.0f}{error} % ({least} to {greatest})'
