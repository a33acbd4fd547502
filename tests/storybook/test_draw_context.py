"""Every context can be painted, differs from every other one, and is the same picture at every size."""

import random

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.storybook import world
from dreambooth_jax.storybook.draw_context import CONTEXT_PAINTERS, paint_context, paint_foreground

IN_FRONT = (
    'in the snow',
    'floating on top of water',
    'floating in an ocean of milk',
    'on top of green grass with sunflowers around it',
)


def pixels(context, seed=0, side=64):
    return np.asarray(paint_context(context, side, random.Random(seed)), float)


def test_there_is_a_painter_for_every_context_and_no_other():
    assert tuple(CONTEXT_PAINTERS) == world.CONTEXTS


@pytest.mark.parametrize('context', [None, *world.CONTEXTS])
def test_a_seed_determines_the_image_at_every_size(context):
    first = pixels(context)
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, pixels(context))
    assert np.abs(first - pixels(context, seed=1)).mean() > 0.5
    large = pixels(context, side=128).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(large - first).mean() < 12  # the edges of shapes


def test_contexts_are_told_apart_at_32_pixels():
    """By a nearest mean of a few images, without the middle, where a subject stands."""
    frame = np.ones((32, 32), bool)
    frame[8:28, 8:24] = False

    def seen(context, seed):
        return pixels(context, seed, 32)[frame].ravel()

    means = {context: np.mean([seen(context, seed) for seed in range(4)], axis=0) for context in world.CONTEXTS}

    def nearest(image):
        return min(means, key=lambda context: np.abs(means[context] - image).sum())

    right = [nearest(seen(context, seed)) == context for context in world.CONTEXTS for seed in (11, 12)]
    assert np.mean(right) >= 0.9


def test_a_plain_backdrop_has_little_colour():
    for seed in range(5):
        image = pixels(None, seed)
        assert np.ptp(image, axis=2).max() < 70 and image.mean() > 80


@pytest.mark.parametrize('context', [None, *world.CONTEXTS])
def test_few_contexts_have_something_in_front_of_the_subject(context):
    image = Image.new('RGB', (64, 64), (90, 60, 30))
    before = np.asarray(image).copy()
    found = paint_foreground(context, image, random.Random(0))
    np.testing.assert_array_equal(np.asarray(image), before)  # the image that was given is left as it is
    if context not in IN_FRONT:
        assert found is image
        return
    changed = (np.asarray(found) != before).any(axis=2)
    assert 0.01 < changed.mean() < 0.4
    if context.startswith('floating'):
        assert not changed[:48].any() and changed[56:].all()  # the foot alone
