"""Bars as long as the shares they stand for."""

import numpy as np

from dreambooth_jax.evaluation.bars import bars


def lengths(image, colour):
    """The number of pixels of a colour in every row of pixels that has more than the legend's."""
    found = (np.asarray(image) == np.array(colour, np.uint8)).all(-1).sum(1)
    return found[found > 20]


def test_a_bar_is_as_long_as_its_share_and_nothing_without_one():
    shares = {'before': {'subject': 0.5, 'context': None}, 'after': {'subject': 1.0, 'context': 0.25}}
    image = bars(shares)
    before, after = (lengths(image, colour) for colour in ((0x9A, 0x9A, 0x9A), (0x2F, 0x6F, 0xB0)))
    assert set(before) == {181} and set(after) == {361, 91}


def test_an_error_is_a_line_over_the_end_of_the_bar():
    shares, errors = {'all': {'subject': 0.5, 'context': 0.5}}, {'all': {'subject': 0.1, 'context': None}}
    plain, lined = (np.asarray(image).astype(int) for image in (bars(shares), bars(shares, errors)))
    rows, columns = np.nonzero((lined == 0).all(-1) & (plain != 0).any(-1) & (np.arange(plain.shape[1]) < 437))
    assert len(set(rows)) == 1 and columns.min() == 220 + 144 and columns.max() == 220 + 216
