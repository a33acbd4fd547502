"""AdamW's moments in fewer bytes: bfloat16, or 8 bits with a scale for every block of 256 numbers.

The arithmetic of a step stays float32; a moment is compressed only between steps, one array at a time. A step changes
the second moment by (1 - b2) = 0.001 of itself, less than half a unit in the last place of either format: rounded to
the nearest number it would stop where it stands. So all rounding is stochastic: up or down with the probability that
makes it right on average. Its random bits are a hash of (steps taken, array, place in the array): nothing to save, the
same on any number of devices, and a resumed run repeats them bit for bit.

Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization (block size, dynamic code, which tensors stay
float32); the reference code is bitsandbytes' create_dynamic_map. Ours differs in the rounding and in one entry of the
unsigned code, see `dynamic_code`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreambooth_jax.training.order import after

KINDS = ('float32', 'bfloat16', 'int8')
BLOCK = 256
SMALLEST = 4096  # elements; a smaller array stays float32, as in the paper: little to win, and often the most delicate


class Blocks(NamedTuple):
    """An array in blocks of 256 consecutive elements (C order, the last one filled up with zeros).

    Attributes:
      codes: u8[blocks, 256], places in `dynamic_code`.
      scales: f32[blocks, 1], the largest absolute value of each block.
    """

    codes: jax.Array
    scales: jax.Array


class _Code:
    """The dynamic code of magnitudes 0..1: `top` + 1 of them, decades of twice as many numbers each, evenly spaced.

    In a decade the number is a linear function of its place, so both ways are arithmetic: no table, whose lookup would
    be slow on TPU, and all of a step runs in one pass over the array.
    """

    def __init__(self, top: int):
        decades = top.bit_length() - 1
        first = 2.0 ** np.arange(decades)  # place of the decade's first number, and how many it has
        unit = 10.0 ** np.arange(1 - decades, 1)  # upper end of the decade, which begins at a tenth of it
        self.top, self._first, self._low = top, first, 0.1 * unit
        # Middles of the intervals that cut the decade evenly: 0.1 + 0.9 (n - first + 1/2) / first, times the unit.
        self._slope, self._offset = 0.9 / first * unit, (0.1 + 0.9 * (0.5 / first - 1)) * unit

    def _line(self, at: jax.Array, edges: np.ndarray) -> tuple[jax.Array, jax.Array]:
        slope, offset = (jnp.full_like(at, line[0]) for line in (self._slope, self._offset))
        for edge, steeper, moved in zip(edges[1:], self._slope[1:], self._offset[1:], strict=True):
            beyond = at >= np.float32(edge)
            slope = jnp.where(beyond, np.float32(steeper), slope)
            offset = jnp.where(beyond, np.float32(moved), offset)
        return slope, offset

    def value(self, place: jax.Array) -> jax.Array:
        """Magnitudes f32 of whole places f32, 0 to `top`."""
        slope, offset = self._line(place, self._first)
        return jnp.where(place == 0, 0.0, jnp.where(place == self.top, 1.0, slope * place + offset))

    def place(self, magnitude: jax.Array, chance: jax.Array, lowest: int) -> jax.Array:
        """Places f32 of magnitudes f32 in [0, 1]: one of the two around each, the upper where `chance` f32 says so."""
        slope, offset = self._line(magnitude, self._low)
        below = jnp.clip(jnp.floor((magnitude - offset) / slope), lowest, self.top - 1)
        low, high = self.value(below), self.value(below + 1)
        return below + (chance * (high - low) < magnitude - low)


_SIGNED, _UNSIGNED = _Code(128), _Code(256)
_ZERO = 127  # of the signed code


def dynamic_code(signed: bool) -> jax.Array:
    """f32[256], the numbers of the codes 0 to 255, ascending.

    Signed: -0.993..1 with a zero; -1 has none, as in bitsandbytes. Unsigned: 5.5e-8..1 without a zero, where
    bitsandbytes has one in the place of 5.5e-8: a second moment of 0 beside a first that is not would make a step of
    m / epsilon. (A block of zeros has the scale 0.)
    """
    return _decode(jnp.arange(256, dtype=jnp.uint8), signed)


def _decode(codes: jax.Array, signed: bool) -> jax.Array:
    places = codes.astype(jnp.float32)
    if not signed:
        return _UNSIGNED.value(places + 1)
    return jnp.sign(places - _ZERO) * _SIGNED.value(jnp.abs(places - _ZERO))


def _encode(x: jax.Array, chance: jax.Array, signed: bool) -> jax.Array:
    if not signed:
        return (_UNSIGNED.place(x, chance, lowest=1) - 1).astype(jnp.uint8)
    places = jnp.sign(x) * _SIGNED.place(jnp.abs(x), chance, lowest=0)
    return jnp.maximum(places + _ZERO, 0).astype(jnp.uint8)


def _in_blocks(x: jax.Array) -> jax.Array:
    return jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)


def _mixed(bits: jax.Array) -> jax.Array:
    """A hash of each u32 (lowbias32 of github.com/skeeto/hash-prospector); unlike threefry it costs next to nothing."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return bits


def _random_bits(step: jax.Array, array: int, shape: tuple[int, ...]) -> jax.Array:
    """u32 of that shape for the `array`-th moment at i32[] `step`."""
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.uint64)[::-1] % 2**32
    index = sum(
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(strides[axis]) for axis in range(len(shape))
    )
    seed = _mixed(_mixed(step.astype(jnp.uint32)) + np.uint32(array))
    return jnp.broadcast_to(_mixed(_mixed(jnp.uint32(index)) + seed), shape)


def _round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)  # carries over with the dropped bits' share
    return jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)


def _compressed(x: jax.Array, bits: jax.Array, signed: bool) -> Blocks:
    scales = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    chance = (bits >> 8).astype(jnp.float32) * np.float32(2**-24)
    return Blocks(_encode(x / jnp.where(scales > 0, scales, 1.0), chance, signed), scales)


def scale_by_adam(b1: float, b2: float, eps: float, kind: str) -> optax.GradientTransformation:
    """optax.scale_by_adam with its moments stored as `kind`.

    Args:
      kind: 'bfloat16', or 'int8': `Blocks` for arrays of 4096 elements and more, f32 for smaller ones.
    The state is Optax's own, mu and nu with such arrays in the place of f32 ones.
    Raises: ValueError for another kind.
    """
    if kind not in KINDS[1:]:
        raise ValueError(f'moments are {kind!r} but must be one of {KINDS[1:]}')

    def is_blocked(x):
        return kind == 'int8' and x.size >= SMALLEST

    def zeros(x, signed):
        if is_blocked(x):
            blocks = -(-x.size // BLOCK)
            codes = jnp.full((blocks, BLOCK), _ZERO if signed else 0, jnp.uint8)
            return Blocks(codes, jnp.zeros((blocks, 1), jnp.float32))
        return jnp.zeros(x.shape, jnp.bfloat16 if kind == 'bfloat16' else jnp.float32)

    def init(params):
        mu, nu = (jax.tree.map(lambda x, signed=signed: zeros(x, signed), params) for signed in (True, False))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def read(stored, signed):
        if isinstance(stored, Blocks):
            return _decode(stored.codes, signed) * stored.scales
        return stored.astype(jnp.float32)

    def store(x, like, step, count, array, signed):
        if isinstance(like, Blocks):
            return _compressed(x, _random_bits(count, array, x.shape), signed)
        if like.dtype == jnp.bfloat16:
            # The step reads the old moment: once it is done, the new one can take its place without a copy.
            return _round_to_bfloat16(after(x, step), _random_bits(count, array, x.shape))
        return x

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        gradients, structure = jax.tree.flatten(updates)
        out = []
        for number, (gradient, mu, nu) in enumerate(
            zip(gradients, structure.flatten_up_to(state.mu), structure.flatten_up_to(state.nu), strict=True)
        ):
            if out:  # one array after the other, or the f32 moments of all of them may be alive at once
                mu, nu = after((mu, nu), out[-1])
            g = _in_blocks(gradient) if isinstance(mu, Blocks) else gradient
            m = b1 * read(mu, True) + (1 - b1) * g
            v = b2 * read(nu, False) + (1 - b2) * jnp.square(g)
            step = m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps)
            step = step.reshape(-1)[: gradient.size].reshape(gradient.shape)
            mu = store(m, mu, step, count, 2 * number, True)
            nu = store(v, nu, step, count, 2 * number + 1, False)
            out.append((step, mu, nu))
        steps, mu, nu = (structure.unflatten(part) for part in zip(*out, strict=True))
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
