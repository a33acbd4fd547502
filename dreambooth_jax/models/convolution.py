"""A convolution whose kernel gradient is also fast on CPUs.

XLA's CPU backend computes the gradient of a kernel as one matrix product whose inner dimension is all positions of all
images, and the packed operands do not fit into the caches. At 32x32 this takes three times as long as adding up the
same products over slices of the batch with some thousand positions each. With few output channels the single product is
faster. On other platforms JAX's own gradient is used. Measured by experiments/speed/convolution.py.
"""

import functools

import jax
import jax.numpy as jnp

SLICE_POSITIONS = 4096  # output positions in one partial sum
MOST_SLICES = 16  # more slices only take longer to compile
FEW_CHANNELS = 16  # up to this many output channels the single product is faster

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """Computes what `jax.lax.conv_general_dilated` computes for nnx.Conv; only the computation of the gradient differs.

    Convolutions with strides, groups, dilation or a named padding are passed on to JAX unchanged.

    Args:
      x: f[B, H, W, C].
      kernel: f[h, w, C, D].
      strides: as in conv_general_dilated.
      padding: as in conv_general_dilated.
      **options: further arguments of conv_general_dilated.

    Returns:
      f[B, H', W', D].
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
    # A slice has as many images as SLICE_POSITIONS allows, or more if there would be more than MOST_SLICES slices.
    rows = max(1, SLICE_POSITIONS // (height * width), -(-batch // MOST_SLICES))
    parts = [
        _kernel_gradient(kernel, padding, x[first : first + rows], gradient[first : first + rows])
        for first in range(0, batch, rows)
    ]
    return functools.reduce(jnp.add, parts)


_convolve.defvjp(_forward, _backward)
