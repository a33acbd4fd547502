"""Images inside a page."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation.embedded_images import Detail, EmbeddedImages, Shown, TooLarge, evenly
from tests.support import image_metadata

DETAIL = Detail(side=100, grid_side=100, grids=1, class_images=1, per_prompt=1, with_base=True)


def embedded(limit=10**9):
    return EmbeddedImages(detail=DETAIL, limit=limit)


def decoded(markup):
    return [
        Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r'data:image/webp;base64,([^"]+)', markup)
    ]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_small_images_are_kept_bit_by_bit():
    pixels = noise(32, 24)
    (image,) = decoded(embedded().image(Shown(pixels, 'x'), 100))
    np.testing.assert_array_equal(np.asarray(image.convert('RGB')), pixels)


def test_large_images_keep_their_ratio_and_their_look(tmp_path):
    pixels = np.zeros((400, 200, 3), np.uint8)
    pixels[:200] = (250, 120, 10)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    markup = embedded().image(Shown(tmp_path / 'photo.png', 'x'), 100)
    (image,) = decoded(markup)
    assert image.size == (50, 100) and 'width="50" height="100"' in markup
    assert np.abs(np.asarray(image.convert('RGB'), int)[10, 25] - (250, 120, 10)).max() < 8


def test_generated_and_painted_images_keep_their_marks_and_photos_have_none(tmp_path):
    path = tmp_path / 'x.png'
    provenance.save(noise(32, 32), path, provenance.Facts(prompt='p', steps=1, sampler='s', guidance_scale=1, seed=0))
    for side in (16, 100):  # made smaller, and as it is
        for mark in (provenance.GENERATED, provenance.PAINTED, None):
            markup = embedded().image(Shown(path, 'x', mark), side)
            (data,) = (base64.b64decode(text) for text in re.findall(r'base64,([^"]+)', markup))
            assert image_metadata.iptc(data) == ({} if mark is None else {'DigitalSourceType': mark})
    assert Shown(path, 'x').mark == provenance.GENERATED


def test_every_image_has_its_words_and_a_button():
    markup = embedded().thumbnails([Shown(noise(8, 8), 'a "red" dog'), Shown(noise(8, 8), '<b>')])
    assert markup.count('<button') == 2 and 'alt="a &quot;red&quot; dog"' in markup and '<b>' not in markup


def test_what_is_taken_is_counted_and_limited():
    one = embedded()
    markup = one.thumbnails([Shown(noise(40, 40), 'x'), Shown(noise(50, 50), 'y')])
    assert one.taken == sum(len(text) for text in re.findall(r'base64,([^"]+)', markup))
    with pytest.raises(TooLarge):
        embedded(limit=one.taken - 1).thumbnails([Shown(noise(40, 40), 'x'), Shown(noise(50, 50), 'y')])


@pytest.mark.parametrize(
    ('count', 'chosen'), [(10, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [4])]
)
def test_some_are_chosen_evenly(count, chosen):
    assert evenly(range(5), count) == chosen and evenly([], count) == []
