"""What a model of Storybook can do, measured by the classifier (classifier.py): classes, contexts, one subject, fine
marks.

Images are drawn by `Cascade.generate` and named by `Classifier.name`. Every result is made of plain numbers and lists,
so it can be written as JSON; shares lie in [0, 1] and are rounded to four digits. With n images a share p has a
standard error of sqrt(p (1 - p) / n): five points at a hundred images.

Shared arguments:
  cascade, classifier: Cascade and Classifier, or anything with their methods.
  drawn: a dict that is filled with the images behind the numbers, uint8[n, H, W, 3] by label, for contact sheets.
  options: of Cascade.generate, of which steps, guidance_scale and sampler must be given. Unless super_resolution=True
    is among them, images are those of the base stage.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dreambooth_jax.config import ConfigError
from dreambooth_jax.data import low_resolution
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
from dreambooth_jax.stages.text_conditioning import take
from dreambooth_jax.storybook import draw, subjects, world
from dreambooth_jax.text import prompts as prompt_lists
from dreambooth_jax.text.prompts import ACCESSORY, CONTEXT, PROPERTY, Prompt
from dreambooth_jax.weights import noise_schedules

INSTANCE = 'instance'  # kind of the plain prompt 'a sks dog', beside those of the 25
FOUND = 0.5  # a fine mark is found where the classifier gives it more than this
# What matters of `subject_scores`: a name in words -> the share.
SUBJECT_SHARES = {
    'subject named': lambda scores: scores['subject_named'],
    'context named': lambda scores: scores['context_named'],
    'accessory named': lambda scores: scores['accessory_named'],
    'class prompt taken for the subject': lambda scores: scores['class_images']['taken_for_subject'],
    'class prompt named its class': lambda scores: scores['class_images']['class_named'],
}
_SECOND_STAGE_STREAM = 3  # as in Cascade: the second stage's noise is not the first one's


def base_scores(
    cascade: Cascade,
    classifier: Classifier,
    *,
    classes: Sequence[str] = world.CLASSES,
    contexts: Sequence[str] = world.CONTEXTS,
    num_images: int = 4,
    made: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """How often 'a {class} {context}' is drawn as asked, without any identifier.

    Args:
      num_images: images per prompt. Others: see the module.
    Returns: what `base_summary` makes of all prompts.
    Raises: ConfigError for a class or context that is not of this world, and as Cascade.generate.
    """
    _check('class', classes, world.CLASSES)
    _check('context', contexts, world.CONTEXTS)
    asked = [(class_noun, context) for class_noun in classes for context in contexts]
    texts = [f'a {class_noun} {context}' for class_noun, context in asked]
    images = _generate(cascade, texts, num_images, made, options)
    verdicts = classifier.name(images)
    cells = []
    for i, (class_noun, context) in enumerate(asked):
        rows = slice(i * num_images, (i + 1) * num_images)
        right = [
            (found_class == class_noun, found_context == context)
            for found_class, found_context in zip(verdicts.class_noun[rows], verdicts.context[rows], strict=True)
        ]
        cells.append(
            {
                'class_noun': class_noun,
                'context': context,
                'images': num_images,
                'class_right': sum(c for c, _ in right),
                'context_right': sum(c for _, c in right),
                'both_right': sum(all(pair) for pair in right),
            }
        )
    return base_summary(cells)


def base_summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares over counts, so that measurements of several calls can be joined.

    Args:
      cells: counts of one prompt each: class_noun, context, images, class_right, context_right, both_right; those of
        several `base_scores` may be put one behind the other.
    Returns: images, and the shares class_right, context_right, both_right; the same under per_class and per_context
      for every one; and the cells.
    """

    def shares(part):
        count = sum(cell['images'] for cell in part)
        right = {name: sum(cell[name] for cell in part) for name in ('class_right', 'context_right', 'both_right')}
        return {'images': count, **{name: _rounded(value / count) for name, value in right.items()}}

    def grouped(field):
        names = dict.fromkeys(cell[field] for cell in cells)
        return {name: shares([cell for cell in cells if cell[field] == name]) for name in names}

    return {
        **shares(cells),
        'per_class': grouped('class_noun'),
        'per_context': grouped('context'),
        'cells': list(cells),
    }


def subject_scores(
    cascade: Cascade,
    classifier: Classifier,
    subject_name: str,
    identifier: str,
    *,
    num_images: int = 4,
    class_images: int = 32,
    made: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """How well a model draws one subject by its identifier, and how much of it leaked into its class.

    Args:
      subject_name: one of the thirty; its class decides which 25 prompts are asked, live or object.
      identifier: the rare token that stands for it.
      num_images: images per prompt. class_images: images of the class prompt. Others: see the module.
    Returns:
      subject, identifier, images: what was measured, on how many images of the 25 prompts;
      subject_named, class_named: shares over the 25 prompts; subject_named_by_kind: the same per kind of prompt;
      context_named: share over the context prompts; accessory_named: over the accessory prompts, None for objects;
      prompts: one row for 'a sks dog', which is not in the shares above, and each of the 25: prompt, kind, images,
        the shares subject, class_noun and, where the prompt asks for one, context and accessory (else None), and
        subject_probability, the classifier's mean;
      class_images: of 'a dog': prompt, images, taken_for_subject (the drift), taken_for_any_subject,
        subject_probability, class_named.
    Raises: ConfigError for an unknown subject, and as Cascade.generate.
    """
    _check('subject', [subject_name], tuple(subjects.SUBJECTS))
    class_noun = subjects.SUBJECTS[subject_name].class_noun
    plain = Prompt(INSTANCE, 'a {identifier} {class_noun}')
    asked = [plain, *prompt_lists.evaluation_prompts(class_noun)]
    texts = [prompt.text(class_noun, identifier) for prompt in asked]
    verdicts = classifier.name(_generate(cascade, texts, num_images, made, options))
    probability = verdicts.probability('subject', subject_name)
    table = []
    for i, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
        rows = slice(i * num_images, (i + 1) * num_images)
        words = prompt.template.partition('{class_noun}')[2].strip()
        table.append(
            {
                'prompt': text,
                'kind': prompt.kind,
                'images': num_images,
                'subject': _share(verdicts.subject[rows], subject_name),
                'class_noun': _share(verdicts.class_noun[rows], class_noun),
                'context': _share(verdicts.context[rows], words) if prompt.kind == CONTEXT else None,
                'accessory': _share(verdicts.accessory[rows], words) if prompt.kind == ACCESSORY else None,
                'subject_probability': _rounded(probability[rows].mean()),
            }
        )

    def mean(field, kind=None):
        values = [row[field] for row in table if row['kind'] != INSTANCE and kind in (None, row['kind'])]
        return _rounded(np.mean(values)) if values else None

    return {
        'subject': subject_name,
        'identifier': identifier,
        'images': (len(asked) - 1) * num_images,
        'subject_named': mean('subject'),
        'subject_named_by_kind': {kind: mean('subject', kind) for kind in (CONTEXT, ACCESSORY, PROPERTY)},
        'class_named': mean('class_noun'),
        'context_named': mean('context', CONTEXT),
        'accessory_named': mean('accessory', ACCESSORY),
        'prompts': table,
        'class_images': _class_scores(cascade, classifier, subject_name, class_images, made, options),
    }


def _class_scores(cascade, classifier, subject_name, class_images, made, options):
    class_noun = subjects.SUBJECTS[subject_name].class_noun
    text = prompt_lists.class_prompt(class_noun)
    verdicts = classifier.name(_generate(cascade, [text], class_images, made, options))
    return {
        'prompt': text,
        'images': class_images,
        'taken_for_subject': _share(verdicts.subject, subject_name),
        'taken_for_any_subject': _rounded(1 - _share(verdicts.subject, None)),
        'subject_probability': _rounded(verdicts.probability('subject', subject_name).mean()),
        'class_named': _share(verdicts.class_noun, class_noun),
    }


def fine_mark_scores(
    cascade: Cascade,
    classifier: Classifier,
    subject_name: str,
    identifier: str,
    *,
    noise_levels: Sequence[int] = (0,),
    num_images: int = 2,
    num_prompts: int = 11,
    class_images: int = 8,
    held_out: int = 20,
    super_resolution_steps: int | None = None,
    super_resolution_guidance_scale: float | None = None,
    made: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """How often the second stage draws the subject's fine mark, which 32 px do not show.

    Three kinds of low image are enlarged at every level: those that the base stage draws for 'a sks dog' and the
    first context prompts; true ones, downsampled from held-out images of the subject, so that the base stage has no
    part in the result; and those of 'a dog', which should get no mark.

    Args:
      noise_levels: noise augmentation of the low image, times of image_noising_scheduler.
      num_images: images per prompt. num_prompts: 'a sks dog' and the first contexts, 1 to 11.
      class_images, held_out: images of the other two kinds.
      super_resolution_steps, super_resolution_guidance_scale: of the second stage; None: those of the options.
      drawn: gets 'generated low', 'class low', 'held_out low', 'held_out true', and 'generated 50' and so on.
    Returns:
      subject, identifier; images: how many of each kind;
      real: found in painted held-out images, the most that can be reached, and in the same without the mark;
      low_named: share of the base stage's images in which the classifier names the subject;
      noise_levels: per level noise_level, the shares generated, held_out and class_images in which the mark is found,
        and held_out_error, the mean absolute difference from the true image in levels of 255.
    Raises: ConfigError for an unknown subject, a model without second stage, a bad level or number of steps.
    """
    _check('subject', [subject_name], tuple(subjects.SUBJECTS))
    if cascade.super_resolution is None:
        raise ConfigError('fine marks are drawn by the second stage and this model has none; give one that has')
    class_noun = subjects.SUBJECTS[subject_name].class_noun
    asked = [Prompt(INSTANCE, 'a {identifier} {class_noun}'), *prompt_lists.evaluation_prompts(class_noun)[:10]]
    texts = [prompt.text(class_noun, identifier) for prompt in asked[:num_prompts]]
    class_text = prompt_lists.class_prompt(class_noun)
    scenes = subjects.held_out_scenes(subject_name, held_out)
    true, plain = (
        np.stack([draw.paint(dataclasses.replace(scene, **change)) for scene in scenes])
        for change in ({}, {'fine_mark': None})
    )
    generated = _generate(cascade, texts, num_images, None, options)
    class_low = _generate(cascade, [class_text], class_images, None, options)
    low = {
        'generated': _signed(generated),
        'class': _signed(class_low),
        'held_out': low_resolution.downsample(_signed(true), true.shape[1] // generated.shape[1]),
    }
    words = {
        'generated': [text for text in texts for _ in range(num_images)],
        'class': [class_text] * class_images,
        'held_out': [
            ' '.join(filter(None, (f'a {identifier} {class_noun}', scene.accessory, scene.context))) for scene in scenes
        ],
    }
    if made is not None:
        made.update({f'{kind} low': _to_uint8(images) for kind, images in low.items()})
        made['held_out true'] = true
    ends = np.cumsum([len(images) for images in low.values()])[:-1]
    shared = ('sampler', 'seed', 'batch_size', 'progress', 'negative_prompt')
    shared = {name: options[name] for name in shared if name in options}
    levels = []
    for level in noise_levels:
        enlarged = enlarge(
            cascade,
            np.concatenate(list(low.values())),
            sum(words.values(), []),
            noise_level=level,
            steps=super_resolution_steps or options['steps'],
            guidance_scale=super_resolution_guidance_scale or options['guidance_scale'],
            **shared,
        )
        parts = dict(zip(low, np.split(enlarged, ends), strict=True))
        if made is not None:
            made.update({f'{kind} {level}': images for kind, images in parts.items()})
        error = np.abs(parts['held_out'].astype(np.float32) - true).mean()
        levels.append(
            {
                'noise_level': level,
                'generated': _found(classifier, parts['generated']),
                'held_out': _found(classifier, parts['held_out']),
                'class_images': _found(classifier, parts['class']),
                'held_out_error': round(float(error), 2),
            }
        )
    return {
        'subject': subject_name,
        'identifier': identifier,
        'images': {'generated': len(generated), 'held_out': held_out, 'class_images': class_images},
        'real': {'with_mark': _found(classifier, true), 'without_mark': _found(classifier, plain)},
        'low_named': _share(classifier.name(generated).subject, subject_name),
        'noise_levels': levels,
    }


def enlarge(
    cascade: Cascade,
    low: np.ndarray,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    sampler: str,
    noise_level: int = 0,
    seed: int = 0,
    negative_prompt: str = '',
    batch_size: int = 8,
    progress: bool = True,
) -> np.ndarray:
    """The second stage alone, on any low images.

    Args:
      low: f32[N, h, w, 3] in [-1, 1].
      prompts: N, one for each.
      noise_level: time of image_noising_scheduler; 0 adds nothing. Others: as Cascade.generate.
    Returns: uint8[N, H, W, 3]; image i depends on its low image and prompt, on the seed, and on i.
    Raises: ConfigError for a noise level, sampler or number of steps that the model does not allow.
    """
    sampler = cascade.sampler(SUPER_RESOLUTION, steps, guidance_scale, sampler)
    highest = noise_schedules.highest_noise_level(cascade.super_resolution)
    if not 0 <= noise_level <= highest:
        raise ConfigError(f'noise_level is {noise_level}; it must be 0 to {highest}')
    text = cascade.encode([negative_prompt, *prompts], SUPER_RESOLUTION)
    keys = text_to_image.image_keys(seed, np.arange(len(low)))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _SECOND_STAGE_STREAM))(keys)
    made = []
    with tqdm(total=len(low), unit='image', desc='enlarging', disable=not progress, dynamic_ncols=True) as bar:
        for rows, used in text_to_image.padded_batches(len(low), batch_size):
            level = np.full(len(rows), noise_level, np.int32)
            images = sampler(
                cascade.super_resolution.unet.params,
                take(text, 1 + rows),
                take(text, np.zeros_like(rows)),
                keys[rows],
                low=low[rows],
                level=level,
            )
            made.append(text_to_image.to_uint8(images)[:used])
            bar.update(used)
    return np.concatenate(made)


def _generate(cascade, texts, num_images, made, options) -> np.ndarray:
    """uint8[N * num_images, H, W, 3] of the last stage that is asked for."""
    images = cascade.generate(texts, num_images=num_images, **{'super_resolution': False, **options}).final
    if made is not None:
        made.update(zip(texts, images.reshape(len(texts), num_images, *images.shape[1:]), strict=True))
    return images


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f'{what} {name!r} is not of this world; it must be one of {known}')


def _share(said: Sequence[str | None], right: str | None) -> float:
    return _rounded(np.mean([label == right for label in said]))


def _found(classifier: Classifier, images: np.ndarray) -> float:
    return _rounded((classifier.has_fine_mark(images) > FOUND).mean())


def _rounded(value) -> float:
    return round(float(value), 4)


def _signed(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip((np.asarray(images) + 1) * 127.5, 0, 255)).astype(np.uint8)
