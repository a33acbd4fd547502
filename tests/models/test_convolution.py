"""The convolution with a kernel gradient of its own: the values and gradients of JAX's, added up where it pays."""

import jax
import numpy as np
import pytest

from dreambooth_jax.models import convolution

PAD = ((1, 1), (1, 1))
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def arrays(outputs, batch=5, inputs=3):
    rng = np.random.default_rng(0)
    return tuple(
        rng.normal(size=shape).astype(np.float32) for shape in ((batch, 4, 6, inputs), (3, 3, inputs, outputs))
    )


def with_gradients(convolve, x, kernel, *arguments, **options):
    def product(x, kernel):
        found = convolve(x, kernel, *arguments, **options)
        return jax.numpy.sum(jax.numpy.sin(found)), found

    (_, found), back = jax.value_and_grad(product, argnums=(0, 1), has_aux=True)(x, kernel)
    return found, *back


@pytest.fixture
def slices(monkeypatch):
    """The number of images in each part of a kernel gradient, in order."""
    counts, whole = [], convolution._kernel_gradient

    def spied(kernel, padding, x, gradient):
        counts.append(len(x))
        return whole(kernel, padding, x, gradient)

    monkeypatch.setattr(convolution, '_kernel_gradient', spied)
    return counts


@pytest.mark.parametrize(
    ('outputs', 'positions', 'parts'),
    [
        (17, 48, [2, 2, 1]),  # 24 positions an image
        (17, 1, [1, 1, 1, 1, 1]),
        (17, 10_000, [5]),
        (16, 48, [5]),  # few channels: at once
    ],
)
def test_a_kernel_gradient_is_added_up_over_slices_of_the_batch(slices, monkeypatch, outputs, positions, parts):
    monkeypatch.setattr(convolution, 'SLICE_POSITIONS', positions)
    x, kernel = arrays(outputs)
    options = {'dimension_numbers': LAYOUT}
    expected = with_gradients(jax.lax.conv_general_dilated, x, kernel, (1, 1), PAD, **options)
    found = with_gradients(convolution.convolve, x, kernel, (1, 1), PAD, **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert slices == parts


def test_there_are_never_many_slices(slices, monkeypatch):
    monkeypatch.setattr(convolution, 'SLICE_POSITIONS', 1)
    monkeypatch.setattr(convolution, 'MOST_SLICES', 2)
    x, kernel = arrays(17)
    with_gradients(convolution.convolve, x, kernel, (1, 1), PAD)
    assert slices == [3, 2]


@pytest.mark.parametrize(
    ('strides', 'padding', 'options'),
    [
        ((2, 2), PAD, {}),
        ((1, 1), 'SAME', {}),
        ((1, 1), PAD, {'rhs_dilation': (2, 2)}),
        ((1, 1), PAD, {'lhs_dilation': (2, 1)}),
        ((1, 1), PAD, {'feature_group_count': 3}),
    ],
)
def test_other_convolutions_are_those_of_jax(slices, strides, padding, options):
    x, kernel = arrays(18)
    kernel = kernel[:, :, :1] if 'feature_group_count' in options else kernel
    options = {**options, 'dimension_numbers': LAYOUT}
    expected = jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    found = convolution.convolve(x, kernel, strides, padding, **options)
    np.testing.assert_array_equal(found, expected)
    shapes = jax.eval_shape(
        lambda *given: with_gradients(convolution.convolve, *given, strides, padding, **options), x, kernel
    )
    assert shapes[2].shape == kernel.shape and slices == []
