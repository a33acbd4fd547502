"""Scores from features: their definitions, counted another way, and what must never be averaged wrongly."""

import numpy as np
import pytest

from dreambooth_jax.evaluation import scores


def features(*rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def some():
    rng = np.random.default_rng(0)
    return lambda count: features(*rng.normal(size=(count, 5)))


def test_fidelity_is_the_mean_over_all_pairs(some):
    images, photos = some(6), some(4)
    pairs = [float(image @ photo) for image in images for photo in photos]
    np.testing.assert_allclose(scores.fidelity(images, photos).mean(), np.mean(pairs), atol=1e-6)


def test_the_ceiling_leaves_out_pairs_with_itself_and_says_what_they_would_make(some):
    photos = some(4)
    others = [float(photos[i] @ photos[j]) for i in range(4) for j in range(4) if i != j]
    found = scores.ceiling(photos)
    np.testing.assert_allclose(found['others'], np.mean(others), atol=1e-6)
    np.testing.assert_allclose(found['with_self'], (sum(others) + 4) / 16, atol=1e-6)
    assert scores.ceiling(photos[:1])['others'] is None


def test_photos_score_as_their_ceiling_with_self(some):
    photos = some(5)
    np.testing.assert_allclose(scores.fidelity(photos, photos).mean(), scores.ceiling(photos)['with_self'])


def test_prompt_fidelity_takes_each_image_with_its_own_prompt_and_may_be_negative():
    images, texts = features([1, 0], [0, 1]), features([-1, 0], [1, 1])
    np.testing.assert_allclose(scores.prompt_fidelity(images, texts), [-1, np.sqrt(0.5)], atol=1e-6)


def test_a_copy_is_one(some):
    photos = some(3)
    np.testing.assert_allclose(scores.copy_score(photos[[2, 0]], photos), 1, atol=1e-6)
    assert (scores.copy_score(some(4), photos) < 0.999).all()


def average_precision(order):
    """By its definition, of a list that says of each entry of the gallery whether it is a photo."""
    return np.mean([np.mean(order[: rank + 1]) for rank, photo in enumerate(order) if photo])


def test_retrieval_is_the_average_precision_of_the_photos(some):
    images, photos, others = some(8), some(3), some(20)
    for image, found in zip(images, scores.retrieval(images, photos, others), strict=True):
        gallery = [(float(image @ one), True) for one in photos] + [(float(image @ one), False) for one in others]
        order = [photo for _, photo in sorted(gallery, reverse=True)]
        assert found == pytest.approx(average_precision(order))


def test_retrieval_of_a_photo_among_strangers_is_one_and_of_equals_is_not():
    photos, others = features([1, 0.1], [1, -0.1]), features([0, 1], [0, -1])
    np.testing.assert_allclose(scores.retrieval(photos, photos, others), 1)
    # A look-alike that is the photo itself comes first: nobody can tell them apart.
    assert scores.retrieval(photos[:1], photos[:1], photos[:1])[0] == 0.5


def test_a_score_is_a_mean_over_prompts_not_over_images():
    found = scores.score([1, 1, 1, 0], ['a', 'a', 'a', 'b'])
    assert (found.value, found.images) == (0.5, 4)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = scores.interval(rng.normal(0.7, 0.1, 25))
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_images_of_one_prompt_do_not_narrow_the_interval():
    few = scores.score([0.0, 1.0, 0.5], ['a', 'b', 'c'])
    many = scores.score([0.0, 1.0, 0.5] * 50, ['a', 'b', 'c'] * 50)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_one_prompt_has_no_interval():
    assert scores.score([0.2, 0.4], ['a', 'a']) == scores.Score(value=pytest.approx(0.3), low=None, high=None, images=2)


@pytest.mark.parametrize(
    ('call', 'sentence'),
    [
        (lambda: scores.cosines(np.ones((1, 2)), features([1, 0])), 'features must have length 1, not between 1.41'),
        (lambda: scores.score([1.0], ['a', 'b']), 'there are 1 values and 2 groups; there must be one group per value'),
        (lambda: scores.score([], []), 'there are 0 values and 0 groups; there must be one group per value'),
        (
            lambda: scores.prompt_fidelity(features([1, 0]), features([1, 0], [0, 1])),
            'there are 1 images and 2 prompts; there must be one prompt per image',
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(sentence)
