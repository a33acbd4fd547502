"""A convolution whose kernel gradient is fast on CPUs too.

XLA's CPU backend turns the gradient of a kernel into one matrix product whose inner dimension is every position of
every image, and its packing falls out of the caches: at 32x32 it runs three times slower than the sum of the same
products over slices of the batch of some thousand positions. With few output channels it is the other way round. On
other platforms the usual gradient is kept.
Measured by experiments/speed/convolution.py.
"""

import functools

import jax
import jax.numpy as jnp

SLICE_POSITIONS = 4096  # output positions of one partial sum
MOST_SLICES = 16  # more only lengthen compilation
FEW_CHANNELS = 16  # up to so many outputs the single product is the fast one

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` as nnx.Conv calls it: f[B, H, W, C] with f[h, w, C, D]; only the gradient differs.

    Strided and otherwise unusual convolutions go to JAX as they are.
    """
    usual = options.get('feature_group_count', 1) == 1 and all(
        dilation in (None, 1, (1, 1)) for dilation in (options.get('lhs_dilation'), options.get('rhs_dilation'))
    )
    if not usual or tuple(strides) != (1, 1) or isinstance(padding, str):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, tuple(map(tuple, padding)))


def _plain(x, kernel, padding):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, padding):
    return _plain(x, kernel, padding)


def _forward(x, kernel, padding):
    return _plain(x, kernel, padding), (x, kernel)


def _backward(padding, residuals, gradient):
    x, kernel = residuals
    of_x = jax.vjp(lambda x: _plain(x, kernel, padding), x)[1](gradient)[0]
    of_kernel = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_sliced_kernel_gradient, kernel, padding),
        default=functools.partial(_kernel_gradient, kernel, padding),
    )
    return of_x, of_kernel


def _kernel_gradient(kernel, padding, x, gradient):
    return jax.vjp(lambda kernel: _plain(x, kernel, padding), kernel)[1](gradient)[0]


def _sliced_kernel_gradient(kernel, padding, x, gradient):
    batch, height, width, channels = gradient.shape
    if channels <= FEW_CHANNELS:
        return _kernel_gradient(kernel, padding, x, gradient)
    rows = max(1, SLICE_POSITIONS // (height * width), -(-batch // MOST_SLICES))
    parts = [
        _kernel_gradient(kernel, padding, x[first : first + rows], gradient[first : first + rows])
        for first in range(0, batch, rows)
    ]
    return functools.reduce(jnp.add, parts)


_convolve.defvjp(_forward, _backward)
