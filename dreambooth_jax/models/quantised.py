"""Frozen kernels in 8 or 4 bits, for LoRA: one scale for each block, computed back to numbers right before a product.

A quantised layer is a Linear or Conv that has two arrays instead of its kernel. They are a network's parameters like
all others, so that they are placed, sharded, counted and looked up in loops (scanned.py) without further ado:

    <path>.kernel_codes     int8: i8[..., in, out]; nf4: u8[..., in / 2, out], two codes in a byte, the first one in its
                            upper half
    <path>.kernel_scales    f32[..., blocks, out], one for each BLOCK consecutive inputs of an output; the last block of
                            a kernel may be shorter

    int8    value = code * scale with scale = largest magnitude of the block / 127, code in -127..127
    nf4     value = NF4[code] * scale with scale = largest magnitude of the block

The kernel is computed in f32 and then has the dtype that its layer computes in. It is computed again in the backward
pass, so that between both only codes and scales are stored. Norms, biases, embeddings and narrow kernels stay as they
are.

Source: Dettmers et al. 2023 (QLoRA), section 3 and appendix E; without its second quantisation, that of the scales.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models.functional import Constant, held, put_layer, take_attributes

INT8, NF4 = KINDS = ('int8', 'nf4')
BLOCK = 64  # inputs that share a scale, as in QLoRA
# Kernels with fewer inputs or outputs stay as they are: the layers at a network's ends, which are small but sensitive.
LEAST_WIDTH = 8
# The values of NF4: quantiles of the normal distribution, divided by the largest one (QLoRA, appendix E).
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_HALFWAY = (np.float32(NF4_VALUES[1:]) + np.float32(NF4_VALUES[:-1])) / 2  # where the nearest value changes
_CODES, _SCALES = '_codes', '_scales'  # ends of the names of what replaces a kernel


class Quantised(NamedTuple):
    """A kernel's codes and scales, on the host; see the module for their shapes."""

    codes: np.ndarray
    scales: np.ndarray


def quantise(kernel: np.ndarray, kind: str) -> Quantised:
    """Rounds every value of a kernel to the nearest that its block has.

    Args:
      kernel: f[..., in, out] on the host, of any floating-point dtype; for 'nf4', `in` is even.
      kind: one of KINDS.
    """
    *outer, width, outputs = kernel.shape
    scales = np.empty((*outer, -(-width // BLOCK), outputs), np.float32)
    codes = np.empty(kernel.shape, np.int8 if kind == INT8 else np.uint8)
    # Block by block, so that only a part of the kernel exists in f32.
    for number in range(scales.shape[-2]):
        rows = np.s_[..., number * BLOCK : (number + 1) * BLOCK, :]
        values = np.asarray(kernel[rows], np.float32)
        largest = np.max(np.abs(values), axis=-2, keepdims=True)
        values = values / np.where(largest == 0, 1, largest)
        codes[rows] = np.rint(values * 127) if kind == INT8 else np.searchsorted(_HALFWAY, values)
        scales[..., number, :] = largest[..., 0, :] / (127 if kind == INT8 else 1)
    if kind == NF4:
        codes = codes[..., 0::2, :] << 4 | codes[..., 1::2, :]
    return Quantised(codes, scales)


def dequantise(codes: jax.Array, scales: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns the kernel f[..., in, out] of codes and scales, computed in f32 and then given the dtype."""
    values = codes.astype(jnp.float32) if codes.dtype == jnp.int8 else _nf4(codes)
    *outer, width, outputs = values.shape
    wide = jnp.broadcast_to(scales[..., :, None, :], (*scales.shape[:-1], BLOCK, outputs))
    return (values * wide.reshape(*outer, -1, outputs)[..., :width, :]).astype(dtype)


def _nf4(codes):
    """Returns NF4's values f32[..., 2 n, out] of the codes in bytes u8[..., n, out]."""
    # In a loop XLA on CPU would make arrays as large as the kernel before it, one for each constant in the table. After
    # the barrier they are no constants to it: they come with the codes of a turn.
    codes, table = jax.lax.optimization_barrier((codes, jnp.float32(NF4_VALUES)))
    *outer, half, outputs = codes.shape
    pairs = codes[..., :, None, :] >> jnp.array([[4], [0]], jnp.uint8)
    indices = pairs.reshape(*outer, 2 * half, outputs)
    # A tree of choices, one level for each bit: TPUs look tables up slowly, and everywhere it joins the product.
    found = list(table)
    for bit in range(4):
        is_set = (indices >> bit) & 1 == 1
        found = [jnp.where(is_set, high, low) for low, high in zip(found[::2], found[1::2], strict=True)]
    return found[0]


def keeping(shapes: Mapping[str, Any], kind: str) -> Callable[[str, np.ndarray], Quantised | np.ndarray]:
    """Returns what keeps one parameter after the other as the quantised network needs it.

    Args:
      shapes: the parameters of that network, abstract or not.
      kind: one of KINDS.

    Returns:
      (name, array of the plain network on the host) -> the kernel quantised, or, if it is no such kernel, what
      functional.held makes of the array.
    """
    kernels = kernel_names(shapes)

    def keep(name, value):
        if name in kernels:
            return quantise(value, kind)
        return held(name, value)

    return keep


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters in which some kernels may be Quantised, as the network has them: by arrays."""
    found = {}
    for name, value in params.items():
        if isinstance(value, Quantised):
            found |= {name + _CODES: value.codes, name + _SCALES: value.scales}
        else:
            found[name] = value
    return found


def kernel_names(params: Mapping[str, Any]) -> set[str]:
    """Returns the names '<path>.kernel' of the kernels that are quantised among a network's parameters."""
    ending = f'.kernel{_CODES}'
    return {name.removesuffix(_CODES) for name in params if name.endswith(ending)}


def kernel_of(params: Mapping[str, Any], name: str) -> jax.Array:
    """Returns the kernel of this name, '<path>.kernel', in f32 if it is quantised."""
    return jnp.asarray(params[name]) if name in params else dequantise(params[name + _CODES], params[name + _SCALES])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(window, shape, x, codes, scales):
    """Multiplies x by the kernel of codes and scales; only x has a gradient.

    Args:
      window: strides and padding of a convolution; None: a matrix product.
      shape: of x, for the backward pass.
    """
    kernel, x = _kernel_for(x, codes, scales)
    return _multiply(window, x, kernel)


def _product_forward(window, shape, x, codes, scales):
    return _product(window, shape, x, codes, scales), (codes, scales)


def _product_backward(window, shape, stored, gradient):
    kernel, gradient = _kernel_for(gradient, *stored)
    transposed = jax.linear_transpose(
        lambda x: _multiply(window, x, kernel), jax.ShapeDtypeStruct(shape, gradient.dtype)
    )
    return *transposed(gradient), None, None


def _kernel_for(x, codes, scales):
    """Returns the kernel in the dtype of x, and x; the kernel is not computed before x is there.

    Without that barrier the compiler may keep the kernel of the forward pass for the backward pass, or compute those of
    all layers at the beginning.
    """
    x, codes, scales = jax.lax.optimization_barrier((x, codes, scales))
    return dequantise(codes, scales, x.dtype), x


_product.defvjp(_product_forward, _product_backward)


def _multiply(window, x, kernel):
    if window is None:
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class _QuantisedLayer:
    """Common part of the quantised layers: it takes the attributes of the plain layer, all but its kernel."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, kind: str):
        take_attributes(self, layer, without=('kernel',))
        *outer, width, outputs = layer.kernel[...].shape
        rows, dtype = (width, jnp.int8) if kind == INT8 else (width // 2, jnp.uint8)
        self.kernel_codes = Constant(jnp.zeros((*outer, rows, outputs), dtype))
        self.kernel_scales = Constant(jnp.zeros((*outer, -(-width // BLOCK), outputs), jnp.float32))

    @property
    def kernel(self) -> jax.Array:
        """The kernel in f32, for what needs more of it than its product."""
        return dequantise(self.kernel_codes[...], self.kernel_scales[...])

    def __call__(self, x):
        bias = None if self.bias is None else self.bias[...]
        x, bias = self.promote_dtype((x, bias), dtype=self.dtype)
        result = _product(self._window, x.shape, x, self.kernel_codes[...], self.kernel_scales[...])
        return result if bias is None else result + bias


class QuantisedLinear(_QuantisedLayer, nnx.Linear):
    """A Linear layer with a quantised kernel: f[..., in] -> f[..., out]."""

    _window = None


class QuantisedConv(_QuantisedLayer, nnx.Conv):
    """A Conv layer with a quantised kernel: f[B, H, W, in] -> f[B, H', W', out]."""

    @property
    def _window(self):
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else tuple(self.strides)
        return strides, self.padding if isinstance(self.padding, str) else tuple(map(tuple, self.padding))


_QUANTISED = {nnx.Linear: QuantisedLinear, nnx.Conv: QuantisedConv}


def quantise_layers(model: nnx.Module, kind: str) -> nnx.Module:
    """Gives quantised kernels, all zero, to every Linear and Conv layer of a network that can have one, in place.

    Args:
      model: the network, abstract or not (inside nnx.eval_shape).
      kind: one of KINDS.

    Returns:
      The same model.

    Raises:
      ValueError: one sentence, for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f'frozen_dtype is {kind!r} but must be one of {KINDS} or None.')
    modules = dict(nnx.iter_modules(model))
    for path, layer in modules.items():
        if path and type(layer) in _QUANTISED and _can_be_quantised(layer):
            put_layer(modules[path[:-1]], path[-1], _QUANTISED[type(layer)](layer, kind))
    return model


def _can_be_quantised(layer) -> bool:
    wide = min(layer.in_features, layer.out_features) >= LEAST_WIDTH and layer.in_features % 2 == 0
    return wide and (isinstance(layer, nnx.Linear) or is_plain_convolution(layer))


def is_plain_convolution(layer: nnx.Conv) -> bool:
    """Whether a convolution has two dimensions, neither groups nor dilation, and padding that JAX knows."""
    dilations = {layer.input_dilation, layer.kernel_dilation}
    plain = len(layer.kernel_size) == 2 and layer.feature_group_count == 1 and layer.mask is None
    padded = not isinstance(layer.padding, (str, int)) or layer.padding in ('SAME', 'VALID')
    return plain and padded and dilations <= {1, (1, 1)}
