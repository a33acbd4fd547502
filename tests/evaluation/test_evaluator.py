"""Evaluators: their columns, counted another way, and how they are summed up."""

import dataclasses
import itertools

import numpy as np
import pytest

from dreambooth_jax.evaluation import evaluator, storybook_scores
from dreambooth_jax.evaluation.protocol import Asked, Subject
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.text import prompts as prompt_lists
from dreambooth_jax.text.prompts import OBJECT_PROMPTS
from tests.evaluation.test_storybook_scores import LABELS, FakeCascade, FakeClassifier
from tests.evaluation.test_storybook_scores import image as labelled

PROMPTS = (
    Asked('context', 'a sks dog in the snow', 'a dog in the snow'),
    Asked('context', 'a sks dog on the beach', 'a dog on the beach'),
    Asked('property', 'a red sks dog', 'a red dog'),
)
COUNT, OF_CLASS = 3, 5


def image(text, number):
    return np.random.default_rng([*text.encode(), number]).integers(0, 256, (4, 4, 3), np.uint8)


def generate(prompts, num_images):
    return np.stack([[image(prompt, number) for number in range(num_images)] for prompt in prompts])


class Encoder:
    """An image is embedded as its mean colour, a text as the mean colour of its first image."""

    @staticmethod
    def embed_images(images):
        found = [np.asarray(pixels, np.float32).mean(axis=(0, 1)) for pixels in images]
        return np.stack([row / np.linalg.norm(row) for row in found]) if found else np.zeros((0, 3), np.float32)

    def embed_texts(self, texts):
        return self.embed_images([image(text, 0) for text in texts])


class Distance:
    @staticmethod
    def distances(first, second):
        return np.array([np.abs(one.astype(int) - other).mean() for one, other in zip(first, second, strict=True)])


@pytest.fixture(scope='module')
def subject():
    photos, others = ([image(name, number) for number in range(4)] for name in ('photos', 'others'))
    return Subject(
        name='sks dog',
        instance_prompt='a sks dog',
        class_prompt='a dog',
        photos=tuple(photos),
        prompts=PROMPTS,
        look_alikes=tuple(others),
    )


@pytest.fixture(scope='module')
def columns(subject):
    measure = evaluator.Likeness(
        name='clip_i', encoder=Encoder(), num_images=COUNT, class_images=OF_CLASS, prompt_name='clip_t'
    )
    return measure(generate, subject)


def cosine(one, other):
    one, other = (Encoder.embed_images([pixels])[0].astype(float) for pixels in (one, other))
    return float(one @ other)


def test_every_column_has_a_number_for_every_image(columns):
    assert {name: len(column.values) for name, column in columns.items()} == {
        'clip_i': 9,
        'clip_i_copy': 9,
        'clip_i_retrieval': 9,
        'clip_i_pres': 5,
        'clip_t': 9,
        'clip_t_with_identifier': 9,
    }
    assert list(columns['clip_i'].kinds) == ['context'] * 6 + ['property'] * 3
    assert list(columns['clip_i'].prompts) == [asked.text for asked in PROMPTS for _ in range(COUNT)]
    assert set(columns['clip_i_pres'].kinds) == {'class'} and set(columns['clip_i_pres'].prompts) == {'a dog'}


def test_numbers_belong_to_their_images(columns, subject):
    images = [image(asked.text, number) for asked in PROMPTS for number in range(COUNT)]
    like = [[cosine(pixels, photo) for photo in subject.photos] for pixels in images]
    np.testing.assert_allclose(columns['clip_i'].values, np.mean(like, axis=1), atol=1e-6)
    np.testing.assert_allclose(columns['clip_i_copy'].values, np.max(like, axis=1), atol=1e-6)
    of_class = [image('a dog', number) for number in range(OF_CLASS)]
    pres = [np.mean([cosine(pixels, photo) for photo in subject.photos]) for pixels in of_class]
    np.testing.assert_allclose(columns['clip_i_pres'].values, pres, atol=1e-6)


def test_prompts_are_compared_without_the_identifier_and_with_it(columns):
    for name, part in (('clip_t', 'plain'), ('clip_t_with_identifier', 'text')):
        wanted = [
            cosine(image(asked.text, number), image(getattr(asked, part), 0))
            for asked in PROMPTS
            for number in range(COUNT)
        ]
        np.testing.assert_allclose(columns[name].values, wanted, atol=1e-6)
    assert columns['clip_t_with_identifier'].values[0] == pytest.approx(1)


def test_class_images_and_other_subjects_are_look_alikes(columns, subject):
    gallery = [*(image('a dog', number) for number in range(OF_CLASS)), *subject.look_alikes]
    photos = [cosine(image(PROMPTS[0].text, 0), photo) for photo in subject.photos]
    others = [cosine(image(PROMPTS[0].text, 0), other) for other in gallery]
    order = [photo for _, photo in sorted([(c, True) for c in photos] + [(c, False) for c in others], reverse=True)]
    precision = np.mean([np.mean(order[: rank + 1]) for rank, photo in enumerate(order) if photo])
    assert columns['clip_i_retrieval'].values[0] == pytest.approx(precision)


def test_without_a_name_for_it_nothing_is_said_of_prompts(subject):
    found = evaluator.Likeness(name='dino', encoder=Encoder(), num_images=1, class_images=2)(generate, subject)
    assert list(found) == ['dino', 'dino_copy', 'dino_retrieval', 'dino_pres']


def test_diversity_is_the_mean_over_pairs_of_one_prompt(subject):
    column = evaluator.Diversity(distance=Distance(), num_images=COUNT)(generate, subject)['div']
    told = evaluator.summary({'div': column})['div']
    for asked in PROMPTS:
        pairs = itertools.combinations([image(asked.text, number) for number in range(COUNT)], 2)
        wanted = np.mean([Distance.distances([one], [other])[0] for one, other in pairs])
        assert told['prompts'][asked.text] == pytest.approx(wanted)


def test_a_summary_has_means_over_prompts_of_all_and_of_each_kind():
    column = evaluator.Column(
        values=np.array([1.0, 0.0, 0.5, 0.5]), prompts=['a', 'a', 'b', 'c'], kinds=['x', 'x', 'x', 'y']
    )
    told = evaluator.summary({'score': column})['score']
    assert told['prompts'] == {'a': 0.5, 'b': 0.5, 'c': 0.5}
    assert (told['value'], told['images']) == (0.5, 4) and told['low'] <= 0.5 <= told['high']
    assert told['kinds']['y'] == {'value': 0.5, 'low': None, 'high': None, 'images': 1}
    assert told['kinds']['x']['images'] == 3


def test_photos_with_a_mask_are_compared_without_their_background_too(subject):
    masks = [None, np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8), None]
    masks[1][:2] = 255
    masked = dataclasses.replace(subject, masks=tuple(masks))
    measure = evaluator.Likeness(name='dino', encoder=Encoder(), num_images=COUNT, class_images=OF_CLASS)
    columns = measure(generate, masked)
    half = subject.photos[1].copy()
    half[2:] = (124, 116, 104)
    wanted = [
        np.mean([cosine(image(asked.text, number), bare) for bare in (half, subject.photos[2])])
        for asked in PROMPTS
        for number in range(COUNT)
    ]
    np.testing.assert_allclose(columns['dino_masked'].values, wanted, atol=1e-6)
    np.testing.assert_array_equal(columns['dino'].values, measure(generate, subject)['dino'].values)
    ceilings = measure.ceilings(masked)
    assert ceilings['dino_masked']['others'] == pytest.approx(cosine(half, subject.photos[2]))
    assert ceilings['dino'] == measure.ceilings(subject)['dino']
    assert set(measure.ceilings(subject)) == {'dino'}


def test_the_classifier_says_of_each_image_what_storybook_scores_say_of_all():
    prompts = tuple(
        Asked(one.kind, one.text('dog', 'sks'), one.text('dog')) for one in prompt_lists.evaluation_prompts('dog')
    )
    dog = Subject(
        name='sks dog',
        instance_prompt='a sks dog',
        class_prompt='a dog',
        photos=tuple(labelled(subject=name) for name in ('dog', 'dog', 'dog', 'dog2')),
        prompts=prompts,
        built_in='dog',
    )

    def answer(text, number):
        digest = sum(text.encode()) + 7 * number
        words = text.partition('dog')[2].strip()
        return {
            'class_noun': ('dog', 'dog', 'cat')[digest % 3],
            'subject': ('dog', None, 'dog', 'dog2')[digest % 4],
            'context': words if digest % 2 and words in LABELS['context'] else None,
            'accessory': words if digest % 5 and words in LABELS['accessory'] else None,
        }

    def of_labels(texts, num_images):
        return np.stack([[labelled(**answer(text, number)) for number in range(num_images)] for text in texts])

    options = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim')
    wanted = storybook_scores.subject_scores(
        FakeCascade(answer), FakeClassifier(), 'dog', 'sks dog', options, num_images=3, class_images=11
    )
    naming = evaluator.Naming(classifier=FakeClassifier(), num_images=3, class_images=11)
    told = evaluator.summary(naming(of_labels, dog))
    for name in ('subject_named', 'class_named', 'context_named', 'accessory_named'):
        assert 0 < told[name]['value'] < 1 and told[name]['value'] == pytest.approx(wanted[name], abs=1e-4)
    for kind, share in wanted['subject_named_by_kind'].items():
        assert told['subject_named']['kinds'][kind]['value'] == pytest.approx(share, abs=1e-4)
    drift = told['taken_for_subject']
    assert drift['value'] == pytest.approx(wanted['class_images']['taken_for_subject'], abs=1e-4)
    assert (drift['images'], told['context_named']['images'], told['accessory_named']['images']) == (11, 30, 30)
    assert naming.ceilings(dog) == {
        'subject_named': {'others': 0.75, 'with_self': 0.75},
        'class_named': {'others': 1.0, 'with_self': 1.0},
    }


def test_of_objects_nothing_is_said_of_accessories():
    asked = tuple(Asked(one.kind, one.text('vase', 'sks'), one.text('vase')) for one in OBJECT_PROMPTS)
    vase = Subject(
        name='sks vase',
        instance_prompt='a sks vase',
        class_prompt='a vase',
        photos=(),
        prompts=asked,
        built_in='vase',
    )

    def of_labels(texts, num_images):
        return np.stack([[labelled(class_noun='vase', subject='vase')] * num_images for _ in texts])

    naming = evaluator.Naming(classifier=FakeClassifier(), num_images=1, class_images=2)
    assert set(naming(of_labels, vase)) == {'subject_named', 'class_named', 'context_named', 'taken_for_subject'}


def test_photos_are_embedded_once_for_all_models_of_a_subject(subject):
    embedded = []

    class Counting(Encoder):
        @staticmethod
        def embed_images(images):
            embedded.append(len(images))
            return Encoder.embed_images(images)

    measure = evaluator.Likeness(name='dino', encoder=Counting(), num_images=COUNT, class_images=OF_CLASS)
    first, again = measure(generate, subject), measure(generate, subject)
    measure.ceilings(subject)
    assert sorted(embedded) == [0, 4, 4, OF_CLASS, OF_CLASS, 9, 9]
    other = dataclasses.replace(subject, photos=subject.look_alikes, look_alikes=subject.photos)
    moved = measure(generate, other)
    for name, column in first.items():
        np.testing.assert_array_equal(column.values, again[name].values)
    assert np.any(first['dino'].values != moved['dino'].values)
    np.testing.assert_array_equal(measure(generate, subject)['dino'].values, first['dino'].values)
