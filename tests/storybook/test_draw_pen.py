"""The pen of subjects: unit coordinates to pixels, mirrored and squashed, and what counts as the body."""

import numpy as np
import pytest

from dreambooth_jax.storybook.draw_pen import REACH, WHITE, Look, Pen, mix

RED = (255, 0, 0)


def pen(flip=False, x=0.5, y=0.5, scale=0.5):
    return Pen(128, x, y, scale, flip)


def painted(p):
    """Where the layer is opaque, as coordinates (u, v) of the subject's unit box."""
    rows, columns = np.nonzero(np.asarray(p.layer)[..., 3])
    return (columns + 0.5 - p.cx) / p.unit, (rows + 0.5 - p.cy) / p.unit


def test_colours_are_mixed_by_share():
    assert mix((0, 0, 0), (200, 100, 50), 0.5) == (100, 50, 25)
    assert mix(RED, WHITE, 0.0) == RED and mix(RED, WHITE, 1.0) == WHITE


def test_shades_stay_visible_on_black():
    assert sum(Look((200, 100, 50), RED).dark) < 350 < sum(Look((200, 100, 50), RED).light)
    assert sum(Look((20, 20, 20), RED).dark) > 60  # lighter there


@pytest.mark.parametrize('flip', [False, True])
def test_a_point_lies_where_the_subject_is_and_is_mirrored_with_it(flip):
    p = pen(flip, x=0.4, y=0.6)
    column, row = p.at(0.25, -0.5)
    across = -1 if flip else 1
    assert column + p.left == pytest.approx(0.4 * 128 + across * 0.25 * 64)
    assert row + p.top == pytest.approx(0.6 * 128 - 0.5 * 64)


def test_the_layer_holds_all_that_is_in_reach():
    p = pen()
    for u, v in ((-REACH, -REACH), (REACH, REACH)):
        assert all(0 <= place <= length for place, length in zip(p.at(u, v), p.size, strict=True))


def test_shapes_cover_their_boxes():
    for draw in (
        lambda p: p.box(-0.25, 0.0, 0.25, 0.5, RED),
        lambda p: p.ellipse(0.0, 0.25, 0.25, 0.25, RED),
        lambda p: p.poly([(-0.25, 0.0), (0.25, 0.0), (0.25, 0.5), (-0.25, 0.5)], RED),
    ):
        p = pen()
        draw(p)
        u, v = painted(p)
        np.testing.assert_allclose([u.min(), u.max(), v.min(), v.max()], [-0.25, 0.25, 0.0, 0.5], atol=0.03)


def test_a_mirrored_pen_paints_the_mirrored_shape():
    layers = []
    for flip in (False, True):
        p = pen(flip)
        p.poly([(-0.4, -0.4), (0.3, 0.0), (-0.1, 0.5)], RED)
        layers.append(np.asarray(p.layer)[..., 3])
    mirrored = layers[1][:, ::-1]
    assert (layers[0] != mirrored).mean() < 0.01 < (layers[0] != layers[1]).mean()


def test_only_the_body_is_in_the_mask():
    p = pen()
    p.on_body = True
    p.box(-0.5, -0.5, 0.0, 0.5, RED)
    p.on_body = False
    p.box(0.1, -0.5, 0.5, 0.5, RED)
    p.line([(0.1, 0.0), (0.5, 0.0)], 0.1, RED)
    columns = np.nonzero(np.asarray(p.mask).any(axis=0))[0]
    assert columns.max() <= p.cx + 1
    assert (np.asarray(p.layer)[..., 3] > 0).sum() > 1.5 * (np.asarray(p.mask) > 0).sum()


def test_a_frame_squashes_and_moves_until_it_is_taken_away():
    p = pen()
    plain = p.at(0.4, 0.4)
    p.frame(su=0.5, dv=0.1)
    assert p.at(0.4, 0.4) == pytest.approx((p.cx + 0.2 * p.unit, p.cy + 0.5 * p.unit))
    p.frame()
    assert p.at(0.4, 0.4) == plain


def test_thin_lines_are_at_least_a_pixel_and_wide_ones_have_round_ends():
    p = pen()
    p.line([(-0.3, 0.0), (0.3, 0.0)], 0.001, RED)
    assert len(set(np.nonzero(np.asarray(p.layer)[..., 3])[0])) == 1
    p = pen()
    p.line([(-0.3, 0.0), (0.3, 0.0)], 0.2, RED)
    u, _ = painted(p)
    np.testing.assert_allclose([u.min(), u.max()], [-0.4, 0.4], atol=0.04)


def test_an_arc_goes_clockwise_from_the_right():
    p = pen()
    p.arc(0.0, 0.0, 0.4, 0.4, 0, 90, 0.02, RED)
    u, v = painted(p)
    assert u.min() > -0.05 and v.min() > -0.05 and max(u.max(), v.max()) > 0.35
