"""Evaluators: what is measured of a subject in the images of a model, and what a number means.

An evaluator takes `generate` and a subject and returns columns: one number per image, so that means over prompts, over
kinds of prompts and over subjects are made in one place (`summary`). To add one, write a class like those here and name
it in `run_scores.load_measures`.

Sources: Ruiz et al. 2023, sections 4.1 and 4.3, and what scores.py names.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dreambooth_jax.evaluation import preprocessing, scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.encoders import Encoder, FeatureDistance, PerceptualDistance
from dreambooth_jax.evaluation.protocol import Generate, Subject
from dreambooth_jax.storybook import subjects
from dreambooth_jax.text.prompts import ACCESSORY, CONTEXT

MASKED = '_masked'  # the end of a score's name: photos without their background


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One number for each of N images.

    Attributes:
      values: f64[N].
      prompts: the prompt of each image.
      kinds: the kind of each prompt (text.prompts.KINDS), or the word 'class' for images of the class.
    """

    values: np.ndarray
    prompts: Sequence[str]
    kinds: Sequence[str]


class Evaluator(Protocol):
    """What is measured of a subject."""

    def __call__(self, generate: Generate, subject: Subject) -> dict[str, Column]:
        """Returns name -> the numbers of this model's images of this subject."""

    def ceilings(self, subject: Subject) -> dict[str, dict[str, float | None]]:
        """Returns name -> what the photos themselves have, in the form of scores.ceiling; {} if it says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Likeness:
    """How like the subject's photos the images are, by one encoder: fidelity, copies, retrieval and PRES.

    Where photos have masks, the fidelity to those photos without their background stands beside it (MASKED): a run that
    has learned a place with its subject is not rewarded for it. The generated images stay whole.

    With an encoder that reads texts too, also how like its prompt every image is (CLIP-T): without the identifier in
    the prompt, as in the paper, and with it.

    Attributes:
      name: of the fidelity in tables, such as 'dino'; the other scores' names begin with it.
      encoder: encodes images.
      num_images: images per prompt.
      class_images: images of the class prompt.
      prompt_name: of the likeness to the prompt, such as 'clip_t'; None: it is not measured.
    """

    name: str
    encoder: Encoder
    num_images: int
    class_images: int
    prompt_name: str | None = None
    _known: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, generate: Generate, subject: Subject) -> dict[str, Column]:
        embed, of = self.encoder.embed_images, _columns(subject, self.num_images)
        photos, bare, others = self._embedded(subject)
        images = embed(_flat(generate([asked.text for asked in subject.prompts], self.num_images)))
        of_class = embed(_flat(generate([subject.class_prompt], self.class_images)))
        look_alikes = np.concatenate([of_class, others])
        whole_class = {'prompts': [subject.class_prompt] * len(of_class), 'kinds': ['class'] * len(of_class)}
        found = {
            self.name: of(scores.fidelity(images, photos)),
            f'{self.name}_copy': of(scores.copy_score(images, photos)),
            f'{self.name}_retrieval': of(scores.retrieval(images, photos, look_alikes)),
            f'{self.name}_pres': Column(values=scores.fidelity(of_class, photos), **whole_class),
        }
        if len(bare):
            found[f'{self.name}{MASKED}'] = of(scores.fidelity(images, bare))
        if self.prompt_name is None:
            return found
        plain, text = (
            np.repeat(self.encoder.embed_texts([getattr(asked, part) for asked in subject.prompts]), self.num_images, 0)
            for part in ('plain', 'text')
        )
        return found | {
            self.prompt_name: of(scores.prompt_fidelity(images, plain)),
            f'{self.prompt_name}_with_identifier': of(scores.prompt_fidelity(images, text)),
        }

    def ceilings(self, subject: Subject) -> dict[str, dict[str, float | None]]:
        """Returns name -> scores.ceiling of the photos, whole and without their background."""
        photos, bare, _ = self._embedded(subject)
        found = {self.name: scores.ceiling(photos)}
        return found | ({f'{self.name}{MASKED}': scores.ceiling(bare)} if len(bare) else {})

    def _embedded(self, subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the features of the photos, of those without background and of the look-alikes, f32[N, D] each.

        They are kept until another subject comes, since several models are asked for one subject.
        """
        if self._known.get('subject') is not subject:
            groups = (subject.photos, photos_without_background(subject), subject.look_alikes)
            self._known.update(subject=subject, features=tuple(map(self.encoder.embed_images, groups)))
        return self._known['features']


def photos_without_background(subject: Subject) -> list[np.ndarray]:
    """Returns those photos of a subject that have a mask, without their background."""
    pairs = zip(subject.photos, subject.masks, strict=True) if subject.masks else ()
    return [preprocessing.without_background(photo, mask) for photo, mask in pairs if mask is not None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diversity:
    """DIV: how different the images of one prompt are. Each image has its mean distance from the prompt's others.

    Attributes:
      distance: LPIPS, as in the paper, or an encoder's distance.
      num_images: images per prompt, at least 2.
    """

    distance: PerceptualDistance | FeatureDistance
    num_images: int

    def __call__(self, generate: Generate, subject: Subject) -> dict[str, Column]:
        images = generate([asked.text for asked in subject.prompts], self.num_images)
        pairs = list(itertools.combinations(range(self.num_images), 2))
        first, second = (_flat(images[:, [pair[side] for pair in pairs]]) for side in (0, 1))
        found = self.distance.distances(first, second).reshape(len(images), len(pairs))
        tables = np.zeros((len(images), self.num_images, self.num_images))
        for (i, j), values in zip(pairs, found.T, strict=True):
            tables[:, i, j] = tables[:, j, i] = values
        return {'div': _columns(subject, self.num_images)(tables.sum(axis=2).ravel() / (self.num_images - 1))}

    def ceilings(self, subject: Subject) -> dict[str, dict[str, float | None]]:
        """Returns {}: photos are of no prompt."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Naming:
    """What the classifier of Storybook sees in the images of a built-in subject.

    Its columns are 1 where it names the subject, the class, and the context and the accessory that the prompt asks for,
    else 0; `taken_for_subject` is the same for images of the class, which should not be the subject.

    Attributes:
      classifier: a Classifier, or an object with its method `name`.
      num_images: images per prompt.
      class_images: images of the class prompt.
    """

    classifier: Classifier
    num_images: int
    class_images: int

    def __call__(self, generate: Generate, subject: Subject) -> dict[str, Column]:
        seen = self.classifier.name(_flat(generate([asked.text for asked in subject.prompts], self.num_images)))
        of_class = self.classifier.name(_flat(generate([subject.class_prompt], self.class_images)))
        class_noun = subjects.SUBJECTS[subject.built_in].class_noun
        of = _columns(subject, self.num_images)
        found = {
            'subject_named': of([label == subject.built_in for label in seen.subject]),
            'class_named': of([label == class_noun for label in seen.class_noun]),
        }
        # What the prompt says after the class noun, such as 'in the snow'.
        words = [asked.plain.removeprefix(subject.class_prompt).strip() for asked in subject.prompts]
        asked_for = [word for word in words for _ in range(self.num_images)]
        for kind, name, labels in (
            (CONTEXT, 'context_named', seen.context),
            (ACCESSORY, 'accessory_named', seen.accessory),
        ):
            whole = of([label == word for label, word in zip(labels, asked_for, strict=True)])
            rows = [row for row, own in enumerate(whole.kinds) if own == kind]
            if rows:
                found[name] = Column(
                    values=whole.values[rows],
                    prompts=[whole.prompts[row] for row in rows],
                    kinds=[kind] * len(rows),
                )
        found['taken_for_subject'] = Column(
            values=np.asarray([label == subject.built_in for label in of_class.subject], np.float64),
            prompts=[subject.class_prompt] * self.class_images,
            kinds=['class'] * self.class_images,
        )
        return found

    def ceilings(self, subject: Subject) -> dict[str, dict[str, float | None]]:
        """Returns the shares of the subject's own images in which it names subject and class."""
        seen = self.classifier.name(np.stack(subject.photos))
        named = {
            'subject_named': np.mean([label == subject.built_in for label in seen.subject]),
            'class_named': np.mean(
                [label == subjects.SUBJECTS[subject.built_in].class_noun for label in seen.class_noun]
            ),
        }
        return {name: {'others': float(share), 'with_self': float(share)} for name, share in named.items()}


def summary(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Returns name -> value, low, high and images of all of it; under 'kinds' the same for each kind of prompt, and
    under 'prompts' the mean of each prompt. JSON can hold it."""

    def told(values, prompts):
        return dataclasses.asdict(scores.score(values, prompts))

    found = {}
    for name, column in columns.items():
        prompts, kinds = np.asarray(column.prompts), np.asarray(column.kinds)
        found[name] = told(column.values, prompts) | {
            'kinds': {
                kind: told(column.values[kinds == kind], prompts[kinds == kind]) for kind in dict.fromkeys(kinds)
            },
            'prompts': {prompt: float(column.values[prompts == prompt].mean()) for prompt in dict.fromkeys(prompts)},
        }
    return found


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])


def _columns(subject: Subject, num_images: int):
    prompts = [asked.text for asked in subject.prompts for _ in range(num_images)]
    kinds = [asked.kind for asked in subject.prompts for _ in range(num_images)]
    return lambda values: Column(values=np.asarray(values, np.float64), prompts=prompts, kinds=kinds)
