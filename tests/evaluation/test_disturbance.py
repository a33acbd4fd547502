"""Disturbed images differ from the painted ones, each in its own way, and stay images."""

import jax
import numpy as np
import pytest

from dreambooth_jax.evaluation.disturbance import blurred, disturb, some

AMOUNTS = dict(blur=1.0, coarse=0.9, noise=0.05)


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.float32) / 255


@jax.jit
def by_key(images, key):
    return disturb(images, key, **AMOUNTS)


@pytest.fixture(scope='module')
def disturbed(images):
    return np.asarray(by_key(images, jax.random.key(0)))


def test_every_fourth_image_stays_as_it_is_and_the_others_do_not(images, disturbed):
    changes = np.abs(disturbed - images).max(axis=(1, 2, 3))
    is_kept = np.arange(8) % 4 == 0
    assert (changes[is_kept] < 1e-6).all() and (changes[~is_kept] > 0.05).all()


def test_results_are_images_of_256_levels(disturbed):
    assert disturbed.min() >= 0 and disturbed.max() <= 1
    np.testing.assert_allclose(disturbed * 255, np.round(disturbed * 255), atol=1e-3)


def test_equal_images_are_disturbed_differently(images):
    same = np.repeat(images[:1], 8, axis=0)
    found = np.asarray(by_key(same, jax.random.key(1)))
    assert len({image.tobytes() for image in found}) == 7  # two of them are kept


def test_blurring_keeps_flat_images_and_spreads_a_point():
    flat = np.full((1, 6, 6, 3), 0.3, np.float32)
    np.testing.assert_allclose(blurred(flat), flat, rtol=1e-6)
    point = np.zeros((1, 5, 5, 1), np.float32)
    point[0, 2, 2] = 16
    np.testing.assert_allclose(blurred(point)[0, 1:4, 1:4, 0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])


def test_amounts_are_zero_or_in_their_range_as_often_as_asked():
    found = np.asarray(some(jax.random.key(2), 4000, 0.25, 0.5, 0.75)).ravel()
    chosen = found[found != 0]
    assert abs(len(chosen) / 4000 - 0.25) < 0.03 and chosen.min() >= 0.5 and chosen.max() <= 0.75
