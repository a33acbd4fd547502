"""Styles: one for each artist, a function of the seed, told apart by palette, that leave their image as it is."""

import itertools
import random

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.storybook import draw, world
from dreambooth_jax.storybook.draw_style import STYLE_PAINTERS, apply_style


@pytest.fixture(scope='module')
def image():
    return Image.fromarray(draw.paint(world.Scene(class_noun='dog', context='on the beach', seed=3), 64))


def styled(style, image, seed=0):
    return np.asarray(apply_style(style, image, random.Random(seed)), int)


def test_there_is_a_painter_for_every_artist_and_no_other():
    assert tuple(STYLE_PAINTERS) == world.STYLES


def test_without_a_style_the_image_itself_is_given_back(image):
    assert apply_style(None, image, random.Random(0)) is image


@pytest.mark.parametrize('style', world.STYLES)
def test_a_style_is_a_function_of_image_and_seed(style, image):
    before = np.asarray(image).copy()
    first = styled(style, image)
    assert first.shape == before.shape
    np.testing.assert_array_equal(first, styled(style, image))
    np.testing.assert_array_equal(np.asarray(image), before)
    assert np.abs(first - styled(style, image, seed=1)).max() > 0
    assert np.abs(first - before).mean() > 10


@pytest.mark.parametrize('style', world.STYLES)
def test_what_is_shown_stays_recognisable(style, image):
    other = Image.fromarray(draw.paint(world.Scene(class_noun='vase', context='in the jungle', seed=3), 64))
    same, different = (styled(style, one, seed) for one, seed in ((image, 1), (other, 1)))
    first = styled(style, image)
    assert np.abs(first - same).mean() < np.abs(first - different).mean()


def test_styles_differ_in_their_mean_colours_at_32_pixels(image):
    small = image.reduce(2)
    means = {style: styled(style, small).mean(axis=(0, 1)) for style in world.STYLES}
    for one, other in itertools.combinations(means, 2):
        assert np.abs(means[one] - means[other]).max() > 8, (one, other)


@pytest.mark.parametrize('style', world.STYLES)
@pytest.mark.parametrize('value', [0, 255])
def test_an_image_of_one_colour_can_be_styled(style, value):
    found = styled(style, Image.new('RGB', (32, 32), (value,) * 3))
    assert found.shape == (32, 32, 3) and found.min() >= 0 and found.max() <= 255
