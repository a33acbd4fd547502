"""AdamW's moments in fewer bytes: in bfloat16, or in 8 bits with one scale for every vector along the last axis.

The arithmetic of a step stays float32; a moment is compressed only between steps, one array at a time. A step changes
the second moment by (1 - b2) = 0.001 of itself, which is less than half a unit in the last place of either format. With
rounding to nearest it would never change. So all rounding is stochastic: up or down, with the probability that makes
the result right on average. The random bits are a hash of (steps taken, array, index in the array). So there is nothing
to save, they are the same on any number of devices, and a resumed run repeats them bit for bit.

Eight bits hold a small floating-point number: the leading bits of a float32 that was scaled by the largest magnitude
along its last axis. Encoding and decoding are a few integer operations on an array of the parameter's own shape. So a
step over hundreds of arrays compiles, and its moments are sharded as the parameters are. (The dynamic code of Dettmers
et al. 2022, 8-bit Optimizers via Block-wise Quantization, is a table over blocks of 256 numbers. Written as arithmetic,
it took the TPU compiler more memory than a machine with 24 GB has, and it followed float32 no more closely. The idea
comes from that paper, and so does the rule that small tensors stay float32.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreambooth_jax.training.order import after

KINDS = ('float32', 'bfloat16', 'int8')
SMALLEST = 4096  # elements; smaller arrays stay float32, as in the paper: they save little and are often sensitive


class Codes(NamedTuple):
    """A compressed array of shape [..., n].

    Attributes:
      codes: int8[..., n] for first moments, which have a sign; uint8[..., n] for second moments, which have none.
      scales: f32[...], one for the n numbers along the last axis; 0 where all of them are 0.
    """

    codes: jax.Array
    scales: jax.Array


def _leading_bits(x: jax.Array, noise: jax.Array, mantissa: int) -> jax.Array:
    """Returns the sign, the exponent and the first `mantissa` bits of the mantissa of f32 `x`, as u32.

    The magnitude is rounded up or down by `noise`, uniform u32 < 2^16, so that it is right on average.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise << (7 - mantissa))
    return bits >> (23 - mantissa)


class _Format:
    """A code of the integers 0 to `top` for f32 numbers from `least`, a power of 2, to `largest` < 1.

    Each octave has 16 codes, which are evenly spaced in it.
    """

    MANTISSA = 4

    def __init__(self, top: int):
        self.top = top
        self.least = np.float32(2.0 ** -((top + 1) >> self.MANTISSA))
        self.first = np.uint32(self.least.view(np.uint32) >> (23 - self.MANTISSA))
        self.largest = ((self.first + np.uint32(top)) << np.uint32(23 - self.MANTISSA)).view(np.float32)

    def encode(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns the u32 codes of f32 `x`, rounded at random."""
        return jnp.minimum(_leading_bits(x, noise, self.MANTISSA) - self.first, self.top)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the f32 numbers of integer codes."""
        bits = codes.astype(jnp.uint32) + self.first
        return jax.lax.bitcast_convert_type(bits << (23 - self.MANTISSA), jnp.float32)


_SIGNED, _UNSIGNED = _Format(127), _Format(255)


def decompressed(stored: Codes) -> jax.Array:
    """Returns the numbers f32[..., n] that `stored` holds."""
    scales = stored.scales[..., None]
    if stored.codes.dtype == jnp.uint8:
        return _UNSIGNED.decode(stored.codes) * scales
    magnitude = _SIGNED.decode(jnp.abs(stored.codes.astype(jnp.int32))) - _SIGNED.least
    return jnp.where(stored.codes < 0, -magnitude, magnitude) * scales


def compressed(x: jax.Array, noise: jax.Array, signed: bool) -> Codes:
    """Returns the codes of `x`, f32[..., n], rounded with the help of 16 random bits, u32[..., n].

    Signed: |x| + least is encoded, so that 0 is stored as 0, and small numbers have evenly spaced codes and are right
    on average like the others. Unsigned: there is no code for zero; the smallest is 1.6e-5 of the largest number of its
    vector. A second moment of 0 beside a first moment that is not 0 would make a step of m / epsilon.
    """
    largest = _SIGNED.largest - _SIGNED.least if signed else _UNSIGNED.largest
    scales = jnp.max(jnp.abs(x), axis=-1) / largest
    share = jnp.abs(x) / jnp.where(scales > 0, scales, 1.0)[..., None]
    if not signed:
        return Codes(_UNSIGNED.encode(jnp.maximum(share, _UNSIGNED.least), noise).astype(jnp.uint8), scales)
    codes = _SIGNED.encode(share + _SIGNED.least, noise).astype(jnp.int32)
    return Codes(jnp.where(x < 0, -codes, codes).astype(jnp.int8), scales)


def _mixed(bits: jax.Array) -> jax.Array:
    """A hash of each u32 (lowbias32 of github.com/skeeto/hash-prospector).

    Unlike threefry it costs almost nothing.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return bits


def _random_bits(step: jax.Array, array: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns random u32 of that shape for parameter number `array` at `step`, i32[].

    The low 16 bits are for its first moment, the high 16 bits for its second.
    """
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.uint64)[::-1] % 2**32
    index = sum(
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(strides[axis]) for axis in range(len(shape))
    )
    seed = _mixed(_mixed(step.astype(jnp.uint32)) + np.uint32(array))
    return jnp.broadcast_to(_mixed(_mixed(jnp.uint32(index)) + seed), shape)


def scale_by_adam(b1: float, b2: float, eps: float, kind: str) -> optax.GradientTransformation:
    """optax.scale_by_adam with its moments stored as `kind`.

    The state is Optax's own, with mu and nu that hold such arrays instead of f32 ones.

    Args:
      kind: 'bfloat16' or 'int8'. 'int8' stores `Codes` for arrays of at least 4096 elements, and f32 for smaller ones.

    Raises:
      ValueError: for another kind.
    """
    if kind not in KINDS[1:]:
        raise ValueError(f'state_dtype is {kind!r} but must be one of {KINDS[1:]}')

    def zeros(x, signed):
        if kind == 'bfloat16':
            return jnp.zeros(x.shape, jnp.bfloat16)
        if x.size < SMALLEST:
            return jnp.zeros(x.shape, jnp.float32)
        return Codes(jnp.zeros(x.shape, jnp.int8 if signed else jnp.uint8), jnp.zeros(x.shape[:-1], jnp.float32))

    def init(params):
        mu, nu = (jax.tree.map(lambda x, signed=signed: zeros(x, signed), params) for signed in (True, False))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def read(stored):
        return decompressed(stored) if isinstance(stored, Codes) else stored.astype(jnp.float32)

    def store(x, like, noise, signed):
        if isinstance(like, Codes):
            return compressed(x, noise, signed)
        if like.dtype == jnp.bfloat16:
            bits = _leading_bits(x, noise, mantissa=7)  # the sign is among them
            return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)
        return x

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        gradients, structure = jax.tree.flatten(updates)
        out = []
        for number, (gradient, mu, nu) in enumerate(
            zip(gradients, structure.flatten_up_to(state.mu), structure.flatten_up_to(state.nu), strict=True)
        ):
            if out:  # one array after the other: otherwise the f32 moments of all arrays may be alive at once
                mu, nu = after((mu, nu), out[-1])
            m = b1 * read(mu) + (1 - b1) * gradient
            v = b2 * read(nu) + (1 - b2) * jnp.square(gradient)
            step = m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps)
            # The step reads the old moments. Once it is computed, the new ones can overwrite them without a copy.
            m, v = after((m, v), step)
            bits = _random_bits(count, number, gradient.shape)
            out.append((step, store(m, mu, bits & 0xFFFF, True), store(v, nu, bits >> 16, False)))
        steps, mu, nu = (structure.unflatten(part) for part in zip(*out, strict=True))
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
