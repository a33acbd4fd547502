"""What is measured of photos: widths of edges, letters, shared lines, likeness, bars."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dreambooth_jax.data import photo_measures
from dreambooth_jax.storybook import draw, subjects
from tests.support.made_photos import array, scene, written

# Sharpness


def test_sharp_edges_have_no_width_whatever_their_contrast():
    for number in range(3):
        assert photo_measures.edge_width(array(number)) == 0
    assert photo_measures.edge_width((array(0) * 0.3).astype(np.uint8)) == 0


@pytest.mark.parametrize('width', [1.5, 2, 3])
def test_the_width_is_about_that_of_the_blur(width):
    blurred = ndimage.gaussian_filter(array(0), (width, width, 0))
    assert 0.7 * width < photo_measures.edge_width(blurred) < 1.2 * width


@pytest.mark.parametrize('axis', [0, 1])
def test_edges_that_are_blurred_in_one_direction_are_wide(axis):
    moved = ndimage.uniform_filter1d(array(0).astype(np.float32), 9, axis=axis).astype(np.uint8)
    assert photo_measures.edge_width(moved) > 1.5


def test_a_sharp_subject_before_a_blurred_background_is_sharp_and_the_other_way_round_by_the_mask():
    image, inside = array(0), np.zeros((384, 384, 1), np.uint8)
    inside[96:-96, 96:-96] = 255
    blurred = ndimage.gaussian_filter(image, (4, 4, 0))
    assert photo_measures.edge_width(np.where(inside, image, blurred)) < 0.5
    behind = np.where(inside, blurred, image)
    assert photo_measures.edge_width(behind) < 0.5 and photo_measures.edge_width(behind, inside) > 2


def test_an_image_without_edges_has_no_width():
    assert photo_measures.edge_width(np.full((64, 64, 3), 90, np.uint8)) is None
    stripes = np.tile(np.repeat([0, 255], 8).astype(np.uint8)[:, None], (4, 64))  # of one direction
    assert photo_measures.edge_width(np.dstack([stripes] * 3)) is None


# Lettering


@pytest.mark.parametrize('top', [0.03, 0.92])
def test_a_line_of_letters_at_an_edge_is_found_where_it_is(top):
    found = photo_measures.lettering(written(array(1), 'Photo by Jane Doe', (0.05, top)), 8)
    assert found and all(top - 0.02 < box[1] < box[3] < top + 0.12 and box[0] < 0.3 for box in found)


def test_letters_in_the_middle_short_words_and_other_images_are_none():
    assert photo_measures.lettering(written(array(1), 'Photo by Jane Doe', (0.05, 0.45)), 8) == []
    assert photo_measures.lettering(written(array(1), 'Jane'), 8) == []
    assert [photo_measures.lettering(array(number), 8) for number in range(5)] == [[]] * 5


def test_dark_letters_are_found_too():
    dark = 255 - written(255 - array(1, background=(200, 200, 190)), 'Photo by Jane Doe')
    assert photo_measures.lettering(dark, 8)


# What is the same on several images


def test_lines_that_lie_on_all_images_are_counted():
    images = [array(number) for number in range(5)]
    assert photo_measures.shared_drawing(images, 4) == 0
    stamped = [written(image, 'SAMPLE', (0.2, 0.4), 0.15, 140) for image in images]
    assert photo_measures.shared_drawing(stamped, 4) > 1000
    assert photo_measures.shared_drawing([*stamped[:4], images[4]], 4) < 20


def test_hashes_of_a_photo_outlast_what_is_done_to_it_and_differ_from_those_of_others():
    image, hashes = scene(0), [photo_measures.perceptual_hashes(array(number)) for number in range(6)]
    bent = [
        np.asarray(image.resize((150, 150)).resize(image.size)),
        np.clip(np.asarray(image) * 1.2, 0, 255).astype(np.uint8),
        np.asarray(image)[:, ::-1],
    ]
    for one in bent:
        assert (
            photo_measures.hash_distance(hashes[0], photo_measures.perceptual_hashes(np.ascontiguousarray(one))) < 0.1
        )
    others = [photo_measures.hash_distance(hashes[i], hashes[j]) for i in range(6) for j in range(i)]
    assert min(others) > 0.35


def test_colours_at_the_border_and_in_the_middle_are_told_apart():
    places = [array(number, background=(60, 120, 60)) for number in range(2)] + [array(5, background=(120, 60, 60))]
    border = np.stack([photo_measures.border_colours(image) for image in places])
    np.testing.assert_allclose(np.linalg.norm(border, axis=1), 1)
    assert border[0] @ border[1] > 0.9 and border[0] @ border[2] < 0.2
    centre = np.stack([photo_measures.centre_colours(image) for image in places])
    assert centre[0] @ centre[1] > 0.9 and centre[0] @ centre[2] > 0.4  # the disc is the same on all


# Bars


@pytest.mark.parametrize('colour', [0, 255, 128])
@pytest.mark.parametrize('axis', [0, 1])
def test_bars_are_found_to_the_pixel_or_two(colour, axis):
    inside = array(0, (384, 288))
    bars = np.full((48, 384, 3), colour, np.uint8)
    image = np.concatenate([bars, inside, bars])
    shown = Image.fromarray(image if axis == 0 else np.ascontiguousarray(image.transpose(1, 0, 2)))
    box = photo_measures.without_bars(shown.resize((1536, 1536)))
    wanted = (0, 192, 1536, 1344) if axis == 0 else (192, 0, 1344, 1536)
    assert all(abs(side - right) <= 8 for side, right in zip(box, wanted, strict=True))
    assert box[axis == 0] >= 192  # nothing of the bar is left


def test_a_plain_background_and_one_bar_alone_are_no_bars():
    plain = np.full((200, 200, 3), 255, np.uint8)
    plain[60:140, 60:140] = 30
    assert photo_measures.without_bars(Image.fromarray(plain)) is None
    assert photo_measures.without_bars(Image.fromarray(np.full((64, 64, 3), 9, np.uint8))) is None
    below = np.concatenate([array(0, (384, 336)), np.zeros((48, 384, 3), np.uint8)])
    assert photo_measures.without_bars(Image.fromarray(below)) is None
    assert photo_measures.without_bars(scene(3)) is None


def test_paintings_of_storybook_are_sharp_and_have_no_bars():
    for name in ('dog', 'clock', 'red_cartoon'):
        for one in subjects.reference_scenes(name):
            image = draw.paint(one, 128)
            assert (photo_measures.edge_width(image) or 0) < 0.6
            assert photo_measures.without_bars(Image.fromarray(image)) is None
