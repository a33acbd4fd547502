"""Contact sheets: their size, and that images are shown as they are."""

import numpy as np
import pytest

from dreambooth_jax.monitoring.grids import GAP, LABEL_WIDTH, LINE, contact_sheet

SIDE = 32


def images(count, side=8, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8))


def cell(sheet, row, column, top=0):
    x, y = LABEL_WIDTH + column * (SIDE + GAP), top + GAP + row * (SIDE + GAP)
    return np.asarray(sheet)[y : y + SIDE, x : x + SIDE]


@pytest.mark.parametrize(
    'title, headings, extra', [(None, (), 0), ('step 3', (), LINE), ('step 3', ('a', 'b', 'b'), 2 * LINE)]
)
def test_sheet_has_room_for_its_rows_columns_title_and_headings(title, headings, extra):
    sheet = contact_sheet([images(3), images(2)], ['one', 'two'], side=SIDE, title=title, headings=headings)
    assert sheet.size == (LABEL_WIDTH + 3 * (SIDE + GAP) + GAP, extra + 2 * (SIDE + GAP) + GAP)


def test_small_images_are_enlarged_without_smoothing():
    rows = [images(2, seed=1), images(1, seed=2)]
    sheet = contact_sheet(rows, ['', ''], side=SIDE, title='title')
    for row, column in ((0, 0), (0, 1), (1, 0)):
        shown = np.kron(rows[row][column], np.ones((4, 4, 1), np.uint8))
        np.testing.assert_array_equal(cell(sheet, row, column, top=LINE), shown)
    assert (cell(sheet, 1, 1, top=LINE) == 255).all()  # a row may be shorter


def test_images_of_that_size_are_untouched_and_larger_ones_reduced():
    same, large = images(1, SIDE)[0], np.full((4 * SIDE, 4 * SIDE, 3), 90, np.uint8)
    sheet = contact_sheet([[same, large]], [''], side=SIDE)
    np.testing.assert_array_equal(cell(sheet, 0, 0), same)
    assert (cell(sheet, 0, 1) == 90).all()


def test_images_that_are_no_squares_keep_their_ratio_in_the_middle():
    tall, wide = np.zeros((16, 8, 3), np.uint8), np.zeros((64, 128, 3), np.uint8)
    sheet = contact_sheet([[tall, wide]], [''], side=SIDE)
    expected = np.full((SIDE, SIDE, 3), 255, np.uint8)
    expected[:, SIDE // 4 : -SIDE // 4] = 0
    np.testing.assert_array_equal(cell(sheet, 0, 0), expected)
    np.testing.assert_array_equal(cell(sheet, 0, 1), expected.swapaxes(0, 1))


def test_label_is_written_beside_its_row_and_nowhere_else():
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    sheet = np.asarray(contact_sheet([[blank], [blank]], ['', 'a long sentence ' * 20], side=SIDE))
    assert (sheet[: GAP + SIDE] == 255).all()
    assert (sheet[GAP + SIDE :, :LABEL_WIDTH] < 128).any()


def test_headings_stand_above_the_row_that_they_start_at():
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rows, labels = [[blank] * 2] * 2, ['', '']
    sheet = np.asarray(contact_sheet(rows, labels, side=SIDE, headings=('first', 'second'), headings_from=1))
    below_first_row = GAP + SIDE + GAP
    assert (sheet[:below_first_row] == 255).all() and (sheet[below_first_row + LINE :] == 255).all()
    heading = sheet[below_first_row : below_first_row + LINE]
    assert (heading[:, LABEL_WIDTH : LABEL_WIDTH + SIDE] < 128).any()
    assert (heading[:, LABEL_WIDTH + SIDE + GAP :] < 128).any()


@pytest.mark.parametrize('side', [24, 32, 64])
def test_headings_of_narrow_columns_do_not_run_into_each_other(side):
    blank = np.full((side, side, 3), 255, np.uint8)
    headings = ('ours, base stage', 'ours, super-resolution', 'ours, super-resolution', 'the base model')
    sheet = np.asarray(contact_sheet([[blank] * 4], [''], side=side, headings=headings))
    headed = sheet[: -side - GAP]
    assert len(headed) > GAP + LINE and (sheet[len(headed) :] == 255).all()
    for before in (1, 3, 4):  # columns before which a heading ends
        gap = LABEL_WIDTH + before * (side + GAP) - GAP
        assert (headed[:, gap : gap + GAP - 1] == 255).all()  # a letter may begin a pixel early
    lines = [headed[GAP + n * LINE :][:LINE] for n in range((len(headed) - GAP) // LINE)]
    assert all((line < 128).any() for line in lines)  # none is empty


def test_a_word_that_no_column_holds_is_cut():
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    sheet = contact_sheet([[blank] * 2], [''], side=SIDE, headings=('incomprehensibilities', 'b'))
    short = contact_sheet([[blank] * 2], [''], side=SIDE, headings=('a', 'b'))
    assert sheet.size == short.size  # one line
    between = slice(LABEL_WIDTH + SIDE, LABEL_WIDTH + SIDE + GAP)
    assert (np.asarray(sheet)[:, between] == 255).all()


def test_every_row_needs_its_label():
    with pytest.raises(ValueError):
        contact_sheet([images(1), images(1)], ['one'])


def test_sheet_without_images_is_small_and_no_error():
    assert contact_sheet([], []).size == (LABEL_WIDTH + GAP, GAP)
