"""Pools of painted images: a function of seed and number, whoever paints which part of it and when."""

import numpy as np
import pytest

from dreambooth_jax.storybook import pools

CAPTIONS = {'rare_tokens': ('sks', 'xyz'), 'rare_token_rate': 1.0}


def test_an_example_does_not_depend_on_those_painted_with_it():
    whole = pools.paint_pool(5, 2, range(6), 32)
    part = pools.paint_pool(5, 2, range(3, 6), 32)
    assert whole.images.shape == (6, 32, 32, 3) and whole.images.dtype == np.uint8 and len(whole.captions) == 6
    np.testing.assert_array_equal(part.images, whole.images[3:])
    assert part.captions == whole.captions[3:]


@pytest.mark.parametrize('other', [(6, 2), (5, 3)])
def test_seed_and_number_give_other_images(other):
    assert not np.array_equal(
        pools.paint_pool(5, 2, range(2), 32).images, pools.paint_pool(*other, range(2), 32).images
    )


def test_rare_tokens_come_into_captions_and_change_no_image():
    plain, rare = pools.paint_pool(5, 0, range(4), 32), pools.paint_pool(5, 0, range(4), 32, **CAPTIONS)
    np.testing.assert_array_equal(rare.images, plain.images)
    words = [set(caption.split()) & set(CAPTIONS['rare_tokens']) for caption in rare.captions]
    assert all(words) and not any('sks' in caption.split() for caption in plain.captions)


def test_painters_give_the_pools_of_their_seed_in_the_calling_process():
    painters = pools.Painters(5, 32, 4, processes=0, **CAPTIONS)
    for number in (3, 0):
        found, expected = painters.pool(number), pools.paint_pool(5, number, range(4), 32, **CAPTIONS)
        np.testing.assert_array_equal(found.images, expected.images)
        assert found.captions == expected.captions
    painters.close()


class Executor:
    """Paints at once, in this process, and counts what it was asked for."""

    def __init__(self):
        self.asked, self.closed = [], None

    def submit(self, function, seed, number, rows, size, **options):
        self.asked.append((number, rows))
        found = function(seed, number, rows, size, **options)
        return type('Done', (), {'result': lambda self: found})()

    def shutdown(self, **options):
        self.closed = options


def test_processes_paint_slices_of_this_pool_and_the_next_one_ahead(monkeypatch):
    executor = Executor()
    monkeypatch.setattr(pools.concurrent.futures, 'ProcessPoolExecutor', lambda *_, **__: executor)
    painters = pools.Painters(5, 32, 6, processes=2)
    found, expected = painters.pool(1), pools.paint_pool(5, 1, range(6), 32)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.captions == expected.captions
    assert [number for number, _ in executor.asked] == [1] * 8 + [2] * 8
    assert [row for number, rows in executor.asked if number == 2 for row in rows] == list(range(6))
    painters.pool(2)
    assert [number for number, _ in executor.asked[16:]] == [3] * 8  # pool 2 was there already
    painters.close()
    assert executor.closed == {'wait': False, 'cancel_futures': True}


@pytest.mark.slow  # a process of its own starts
def test_a_process_paints_what_this_one_would():
    painters = pools.Painters(5, 32, 3, processes=1)
    np.testing.assert_array_equal(painters.pool(0).images, pools.paint_pool(5, 0, range(3), 32).images)
    painters.close()
