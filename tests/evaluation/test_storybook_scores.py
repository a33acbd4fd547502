"""The scores count what a classifier says, with a classifier that reads its answers from the pixels and a model that
writes them.

An image's corner holds the numbers of its class, context, subject and accessory, and whether it has a fine mark.
"""

import dataclasses
import json

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.evaluation import storybook_scores
from dreambooth_jax.evaluation.classifier import HEADS, ClassifierConfig, Verdicts
from dreambooth_jax.evaluation.protocol import noise_of
from dreambooth_jax.generation.cascade import Images
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.storybook import world

LABELS = {head: getattr(ClassifierConfig(), head) for head in HEADS}
OPTIONS = SamplingOptions(steps=3, guidance_scale=2.0, sampler='ddim')
MARKED, UNMARKED = 200, 10


def image(class_noun='dog', context=None, subject=None, accessory=None, size=32, mark=False):
    pixels = np.zeros((size, size, 3), np.uint8)
    numbers = [LABELS[h].index(v) for h, v in zip(HEADS, (class_noun, context, subject, accessory), strict=True)]
    pixels[0, 0], pixels[0, 1] = numbers[:3], (numbers[3], MARKED if mark else UNMARKED, 0)
    return pixels


class FakeClassifier:
    """Reads what `image` wrote; sure of everything."""

    def name(self, images):
        assert images.dtype == np.uint8 and images.shape[1] in (32, 128)
        numbers = np.concatenate([images[:, 0, 0], images[:, 0, 1, :1]], axis=1)
        said = {head: [LABELS[head][n] for n in numbers[:, i]] for i, head in enumerate(HEADS)}
        sure = {head: np.eye(len(LABELS[head]), dtype=np.float32)[numbers[:, i]] for i, head in enumerate(HEADS)}
        return Verdicts(**said, probabilities=sure, labels=LABELS)

    def has_fine_mark(self, images):
        assert images.shape[1:] == (128, 128, 3)
        return (images[:, 0, 1, 1] == MARKED).astype(np.float32)


class FakeCascade:
    """Answers prompt and image number with the labels that `answer` gives."""

    super_resolution = object()

    def __init__(self, answer):
        self.answer, self.options, self.enlarged = answer, [], []

    def enlarge(self, low, prompts, options):
        """A fine mark for every other image of the subject, without noise on the low-resolution images alone."""
        self.enlarged.append((low, prompts, options))
        marked = ['sks' in prompt and options.noise_level == 0 and i % 2 == 0 for i, prompt in enumerate(prompts)]
        return np.stack([image(size=128, mark=mark) for mark in marked])

    def stream(self, prompts, requests, options):
        self.options.append(options)
        assert len({number for _, number in requests}) == len(requests)  # no two images from the same noise
        for position, (index, number) in enumerate(requests):
            first = noise_of(prompts[index], 0)
            made = image(**self.answer(prompts[index], number - first))
            yield range(position, position + 1), Images(made[None], None)


def test_base_scores_count_class_context_and_both():
    contexts = ('in the snow', 'on the beach')
    asked = {
        'a cat in the snow': ('cat', 'in the snow'),
        'a cat on the beach': ('cat', 'on the beach'),
        'a can in the snow': ('can', 'in the snow'),
        'a can on the beach': ('can', 'on the beach'),
    }

    def answer(prompt, number):
        class_noun, context = asked[prompt]
        if prompt == 'a cat on the beach' and number == 0:
            class_noun = 'dog'
        if prompt == 'a can in the snow':
            context = None
        if prompt == 'a can on the beach' and number == 1:
            class_noun, context = 'vase', 'in the snow'
        return {'class_noun': class_noun, 'context': context}

    cascade, generated = FakeCascade(answer), {}
    scores = storybook_scores.base_scores(
        cascade,
        FakeClassifier(),
        OPTIONS,
        classes=('cat', 'can'),
        contexts=contexts,
        num_images=2,
        gallery=generated,
    )
    assert scores['images'] == 8
    assert (scores['class_right'], scores['context_right'], scores['both_right']) == (0.75, 0.625, 0.5)
    assert scores['per_class']['cat'] == {'images': 4, 'class_right': 0.75, 'context_right': 1, 'both_right': 0.75}
    assert scores['per_context']['in the snow'] == {
        'images': 4,
        'class_right': 1,
        'context_right': 0.5,
        'both_right': 0.5,
    }
    assert cascade.options == [OPTIONS]
    assert list(generated) == list(asked) and generated['a cat in the snow'].shape == (2, 32, 32, 3)
    json.dumps(scores)


def test_accessory_scores_count_what_is_worn():
    worn = {'a dog wearing a red hat': 'wearing a red hat', 'a dog wearing pink glasses': 'wearing a santa hat'}

    def answer(prompt, number):
        return {'class_noun': 'cat', 'accessory': worn[prompt] if number else None}

    made = {}
    found = storybook_scores.accessory_scores(
        FakeCascade(answer),
        FakeClassifier(),
        OPTIONS,
        class_noun='dog',
        accessories=('wearing a red hat', 'wearing pink glasses'),
        num_images=3,
        gallery=made,
    )
    assert list(made) == list(worn)
    assert [(cell['accessory'], cell['images'], cell['accessory_right']) for cell in found['cells']] == [
        ('wearing a red hat', 3, 2),
        ('wearing pink glasses', 3, 0),
    ]
    json.dumps(found)
    with pytest.raises(ConfigError, match="accessory 'a crown' is not of this world"):
        storybook_scores.accessory_scores(
            FakeCascade(answer), FakeClassifier(), OPTIONS, class_noun='dog', accessories=('a crown',)
        )


def test_cells_of_single_classes_join_to_the_scores_of_all():
    def answer(prompt, number):
        return {'class_noun': 'dog' if number else prompt.split()[1], 'context': 'in the snow'}

    def score(classes):
        return storybook_scores.base_scores(
            FakeCascade(answer), FakeClassifier(), OPTIONS, classes=classes, contexts=('in the snow',), num_images=2
        )

    parts = [cell for noun in ('cat', 'dog') for cell in score((noun,))['cells']]
    assert storybook_scores.base_summary(parts) == score(('cat', 'dog'))


def test_subject_scores_of_a_live_subject_split_by_what_prompts_ask_for():
    def answer(prompt, number):
        said = {'class_noun': 'dog', 'subject': 'dog2'}
        for context in world.CONTEXTS[:10]:
            if prompt.endswith(context) and context != 'in the snow':
                said['context'] = context
        for accessory in world.ACCESSORIES:
            if prompt.endswith(accessory) and number == 0:
                said['accessory'] = accessory
        if prompt == 'a red xyz dog':
            said['subject'] = None
        if prompt == 'a dog':  # two of eight are the subject, one is another
            said['subject'] = ('dog2', 'dog2', 'dog', *[None] * 5)[number]
            said['class_noun'] = 'cat' if number == 7 else 'dog'
        return said

    generated = {}
    scores = storybook_scores.subject_scores(
        FakeCascade(answer),
        FakeClassifier(),
        'dog2',
        'xyz dog',
        OPTIONS,
        num_images=2,
        class_images=8,
        gallery=generated,
    )
    assert scores['images'] == 50
    assert scores['subject_named'] == 0.96 and scores['class_named'] == 1
    assert scores['subject_named_by_kind'] == {'context': 1, 'accessory': 1, 'property': 0.8}
    assert scores['context_named'] == 0.9 and scores['accessory_named'] == 0.5
    assert scores['class_images'] == {
        'prompt': 'a dog',
        'images': 8,
        'taken_for_subject': 0.25,
        'taken_for_any_subject': 0.375,
        'subject_probability': 0.25,
        'class_named': 0.875,
    }
    assert len(scores['prompts']) == 26 and scores['prompts'][0]['prompt'] == 'a xyz dog'
    snow = next(row for row in scores['prompts'] if row['prompt'] == 'a xyz dog in the snow')
    assert snow == {
        'prompt': 'a xyz dog in the snow',
        'kind': 'context',
        'images': 2,
        'subject': 1,
        'class_noun': 1,
        'context': 0,
        'accessory': None,
        'subject_probability': 1,
    }
    assert generated['a dog'].shape[0] == 8
    json.dumps(scores)


def test_subject_scores_of_an_object_have_no_accessories():
    scores = storybook_scores.subject_scores(
        FakeCascade(lambda prompt, number: {'class_noun': 'vase'}),
        FakeClassifier(),
        'vase',
        'sks vase',
        OPTIONS,
        num_images=1,
        class_images=2,
    )
    assert scores['accessory_named'] is None and scores['subject_named_by_kind']['accessory'] is None
    assert scores['subject_named'] == scores['context_named'] == scores['class_images']['taken_for_subject'] == 0
    assert sum(row['kind'] == 'context' for row in scores['prompts']) == 20


@pytest.mark.parametrize(('called', 'prompt'), [('sks', 'a sks in the snow'), ('sks can', 'a sks can in the snow')])
def test_a_subject_may_be_called_by_another_noun_or_none(called, prompt):
    cascade = FakeCascade(lambda prompt, number: {'class_noun': 'vase', 'subject': 'vase' if 'sks' in prompt else None})
    scores = storybook_scores.subject_scores(
        cascade, FakeClassifier(), 'vase', called, OPTIONS, num_images=1, class_images=2
    )
    assert prompt in [row['prompt'] for row in scores['prompts']] and len(scores['prompts']) == 26
    assert scores['subject_named'] == scores['class_named'] == 1  # by what the images show, whatever they are called
    assert scores['class_images']['prompt'] == 'a vase' and scores['class_images']['taken_for_subject'] == 0


def test_fine_mark_scores_tell_the_stage_from_what_it_was_given(monkeypatch):
    monkeypatch.setattr(storybook_scores.draw, 'paint', lambda scene: image(size=128, mark=scene.fine_mark is not None))
    generated = {}
    cascade = FakeCascade(lambda prompt, number: {'subject': 'dog' if number else None})
    options = dataclasses.replace(OPTIONS, super_resolution_steps=7, super_resolution_guidance_scale=1.0)
    scores = storybook_scores.fine_mark_scores(
        cascade,
        FakeClassifier(),
        'dog',
        'sks',
        options,
        noise_levels=(0, 50),
        images=storybook_scores.FineMarkImages(num_images=2, num_prompts=3, class_images=2, held_out=4),
        gallery=generated,
    )
    assert {asked.super_resolution for asked in cascade.options} == {False}
    assert scores['real'] == {'with_mark': 1, 'without_mark': 0}
    assert scores['images'] == {'generated': 6, 'held_out': 4, 'class_images': 2}
    assert scores['low_named'] == 0.5
    found = [
        (cell['noise_level'], cell['generated'], cell['held_out'], cell['class_images'])
        for cell in scores['noise_levels']
    ]
    assert found == [(0, 0.5, 0.5, 0), (50, 0, 0, 0)]
    assert all(cell['held_out_error'] < 0.1 for cell in scores['noise_levels'])
    low, prompts, asked = cascade.enlarged[1]
    assert low.shape == (12, 32, 32, 3) and low.min() >= -1 and low.max() <= 1
    assert prompts[0] == prompts[1] == 'a sks dog' and prompts[6:8] == ['a dog', 'a dog']
    assert prompts[8].startswith('a sks dog ') and any(prompts[8].endswith(c) for c in world.CONTEXTS)
    assert asked == dataclasses.replace(options, noise_level=50)
    assert generated['held_out 50'].shape == (4, 128, 128, 3) and generated['class low'].shape == (2, 32, 32, 3)
    json.dumps(scores)


def test_unknown_names_are_refused_before_anything_is_generated():
    cascade = FakeCascade(lambda prompt, number: pytest.fail('drawn'))
    with pytest.raises(ConfigError, match="class 'unicorn'"):
        storybook_scores.base_scores(cascade, FakeClassifier(), OPTIONS, classes=('unicorn',))
    with pytest.raises(ConfigError, match="subject 'dog4'"):
        storybook_scores.subject_scores(cascade, FakeClassifier(), 'dog4', 'sks dog', OPTIONS)
    cascade.super_resolution = None
    with pytest.raises(ConfigError, match='second stage'):
        storybook_scores.fine_mark_scores(cascade, FakeClassifier(), 'dog', 'sks', OPTIONS)
