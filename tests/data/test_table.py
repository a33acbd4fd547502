"""The table of a run's images: instance images first, each prompt stored once, masks and sizes of all groups."""

import numpy as np
import pytest

from dreambooth_jax.data.table import Examples, distinct_prompts, join, make_table, shrink_masks


def images(count, side=8, value=0):
    return np.full((count, side, side, 3), value, np.uint8)


def test_instance_images_come_first_and_prompts_once_after_the_empty_one():
    mine = Examples(images(2, value=1), ['a sks dog', 'a sks dog in the snow'])
    table = make_table(mine, Examples(images(3, value=2), ['a dog', '', 'a dog']))
    assert table.images[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 2]
    assert (table.num_instance, table.num_class) == (2, 3)
    assert table.prompts == ['', 'a sks dog', 'a sks dog in the snow', 'a dog']
    assert table.prompt_of.tolist() == [1, 2, 3, 0, 3] and table.prompt_of.dtype == np.int32
    assert table.masks is table.class_prompt_of is None


def test_prompts_keep_the_order_in_which_they_are_first_met():
    assert distinct_prompts(['b', 'a', '', 'b', 'c']) == ['', 'b', 'a', 'c']
    assert distinct_prompts([]) == ['']


@pytest.mark.parametrize(('side', 'size'), [(12, (8, 12)), (8, (8, 8))])
def test_class_images_are_fitted_to_the_size_of_the_instance_images(side, size):
    mine = Examples(np.zeros((1, *size, 3), np.uint8), ['a sks dog'])
    theirs = images(2, side, value=9)
    table = make_table(mine, Examples(theirs, ['a dog'] * 2))
    assert table.images.shape == (3, *size, 3) and (table.images[1:] == 9).all()


def test_class_images_that_cannot_fill_an_instance_image_are_an_error():
    with pytest.raises(ValueError, match='^images of 8 x 8 pixels are too small for 9 x 9$'):
        make_table(Examples(images(1, 9), ['a sks dog']), Examples(images(1, 8), ['a dog']))


def test_class_images_count_in_full_in_the_table():
    rng = np.random.default_rng(0)
    mine = Examples(rng.integers(0, 256, (2, 8, 8, 3), np.uint8), ['a', 'b'], np.full((2, 8, 8, 1), 3, np.uint8))
    theirs = Examples(rng.integers(0, 256, (3, 8, 8, 3), np.uint8), ['c'] * 3)
    table = make_table(mine, theirs)
    assert table.masks[:2].max() == 3 and table.masks[2:].min() == 255 and len(table.masks) == 5
    assert table.prompt_arrays.keys() == {'prompt_of'} and table.masks is not None
    assert make_table(mine._replace(masks=None), theirs).masks is None


def test_the_subjects_images_are_shown_again_under_their_class_prompts_and_not_copied():
    dogs, cats = (tuple(f'a {noun}{words}' for words in ('', ' in the snow')) for noun in ('dog', 'cat'))
    images = np.zeros((3, 8, 8, 3), np.uint8)
    mine = Examples(images, ['a sks dog', 'a dog', 'a sks cat'], class_prompts=[dogs, dogs, cats])
    table = make_table(mine, shown_again=True)
    assert table.prompts == ['', 'a sks dog', 'a dog', 'a sks cat', 'a dog in the snow', 'a cat', 'a cat in the snow']
    assert table.prompt_of.tolist() == [1, 2, 3] and table.class_prompt_of.tolist() == [[2, 4], [2, 4], [5, 6]]
    assert table.prompt_arrays.keys() == {'prompt_of', 'class_prompt_of'}
    assert len(table.images) == table.num_instance == 3 and table.num_class == 0
    assert join([mine, mine._replace(class_prompts=[cats] * 3)]).class_prompts == [dogs, dogs, cats, cats, cats, cats]
    assert make_table(mine).prompts == ['', 'a sks dog', 'a dog', 'a sks cat']


def test_masks_of_latents_are_means_that_lose_nothing():
    masks = np.zeros((1, 16, 24, 1), np.uint8)
    masks[0, :8, :8], masks[0, :8, 8:12], masks[0, 15, 23] = 255, 255, 1
    np.testing.assert_array_equal(shrink_masks(masks, 8)[0, ..., 0], [[255, 128, 0], [0, 0, 1]])
