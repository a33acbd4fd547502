"""Kernels in 8 or 4 bits: how far from the kernel they are, what a layer computes with them, and what is stored."""

import math
import statistics

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dreambooth_jax.models import functional, lora, quantised, scanned
from dreambooth_jax.models.layers import convolution
from dreambooth_jax.training.placement import make_placement

KINDS = pytest.mark.parametrize('kind', quantised.KINDS)
SHAPES = [(64, 8), (96, 16), (8, 8), (130, 9), (3, 3, 72, 10)]
# Half of the widest gap between neighbouring values, in units of the scale.
HALF_GAP = {'int8': 0.5, 'nf4': max(np.diff(quantised.NF4_VALUES)) / 2}


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scales_of(kernel, kind):
    """The scale of every value, found block by block."""
    found = np.empty_like(kernel)
    for first in range(0, kernel.shape[-2], 64):
        rows = np.s_[..., first : first + 64, :]
        found[rows] = np.abs(kernel[rows]).max(-2, keepdims=True)
    return found / (127 if kind == 'int8' else 1)


def test_nf4_has_the_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 above and 7 below zero, of probabilities that are equally far apart, in units of the last.

    The outermost probability is the mean of 1 - 1 / 30 and 1 - 1 / 32, as published with the paper.
    """
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2
    quantile = statistics.NormalDist().inv_cdf
    above, below = ([quantile(p) for p in np.linspace(outermost, 0.5, count + 1)[:-1]] for count in (8, 7))
    expected = sorted([*above, 0.0, *(-value for value in below)])
    np.testing.assert_allclose(quantised.NF4_VALUES, np.array(expected) / max(expected), atol=2e-6)
    assert len(quantised.NF4_VALUES) == 16


def test_nf4_values_are_those_of_the_paper():
    published = (
        '-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 '
        '-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 '
        '0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0'
    )
    assert quantised.NF4_VALUES == tuple(map(float, published.split()))


@KINDS
@pytest.mark.parametrize('shape', SHAPES)
def test_every_value_becomes_the_nearest_of_its_block(kind, shape):
    kernel = random(shape)
    codes, scales = quantised.quantise(kernel, kind)
    *outer, width, outputs = shape
    assert scales.shape == (*outer, -(-width // 64), outputs) and scales.dtype == np.float32
    if kind == 'int8':
        assert codes.shape == shape and codes.dtype == np.int8
    else:
        assert codes.shape == (*outer, width // 2, outputs) and codes.dtype == np.uint8
    found = np.asarray(quantised.dequantise(codes, scales))
    unit = scales_of(kernel, kind)
    assert found.shape == shape and found.dtype == np.float32
    assert np.all(np.abs(found - kernel) <= (HALF_GAP[kind] + 1e-5) * unit)
    levels = np.arange(-127, 128) if kind == 'int8' else np.float32(quantised.NF4_VALUES)
    nearest = np.abs(unit[..., None] * levels - kernel[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(found - kernel), nearest, atol=1e-5)


def test_two_nf4_codes_share_a_byte_the_first_in_its_upper_half():
    kernel = np.float32(quantised.NF4_VALUES)[:, None] * np.float32([3, -0.5])
    codes, scales = quantised.quantise(kernel, 'nf4')
    assert codes[:, 0].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    np.testing.assert_array_equal(scales, [[3, 0.5]])
    np.testing.assert_array_equal(np.asarray(quantised.dequantise(codes, scales))[:, 0], kernel[:, 0])


@KINDS
def test_zeros_stay_zeros_and_every_dtype_is_taken(kind):
    kernel = random((128, 8))
    kernel[:64, 2] = 0
    found = quantised.dequantise(*quantised.quantise(kernel, kind))
    assert not np.any(found[:64, 2]) and np.all(np.isfinite(found))
    half = kernel.astype(ml_dtypes.bfloat16)
    for ours, theirs in zip(
        quantised.quantise(half, kind), quantised.quantise(half.astype(np.float32), kind), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


class Network(nnx.Module):
    """Layers of every kind: of 24 inputs, of too few inputs or outputs, with groups, and one that is no product."""

    def __init__(self, rngs, dtype=jnp.float32):
        made = {'dtype': dtype, 'rngs': rngs}
        self.conv = convolution(24, 16, stride=2, **made)
        self.narrow = convolution(3, 24, **made)
        self.few = nnx.Linear(12, 4, **made)
        self.odd = nnx.Linear(9, 12, **made)
        self.grouped = nnx.Conv(16, 16, (3, 3), feature_group_count=4, **made)
        self.norm = nnx.LayerNorm(16, **made)
        self.list = nnx.List([None, nnx.Linear(16, 12, use_bias=False, **made)])
        self.dict = nnx.Dict({'a-b': nnx.Linear(12, 10, **made)})

    def __call__(self, x):
        x = self.norm(self.conv(self.narrow(x)))
        x = self.dict['a-b'](jax.nn.silu(self.list[1](self.grouped(x))))
        return jnp.concatenate([x, self.few(jnp.pad(x, [(0, 0)] * 3 + [(0, 2)])), self.odd(x[..., :9])], axis=-1)


X = random((2, 6, 6, 3), seed=1)
KERNELS = {'conv.kernel', 'list.1.kernel', 'dict.a-b.kernel'}


def networks(kind, dtype=jnp.float32, adapt=None):
    """(apply, params) of a plain network with the kernels that a quantised one has, and those of the quantised one."""

    def build(kind, rngs):
        model = Network(rngs, dtype)
        model = model if kind is None else quantised.quantise_layers(model, kind)
        return lora.adapt(model, rank=2, alpha=3.0, rngs=rngs, **adapt) if adapt else model

    apply, params = functional.init(lambda rngs: build(None, rngs), 0)
    params = {name: np.asarray(value) for name, value in params.items()}
    of_quantised, shapes = functional.abstract(lambda: build(kind, functional.Keys(0)))
    rng = np.random.default_rng(2)
    for name in params:
        if name.endswith(lora.B):
            params[name] = 0.2 * rng.standard_normal(params[name].shape).astype(np.float32)
    keep = quantised.keeping(shapes, kind)
    stored = quantised.flat({name: keep(name, value) for name, value in params.items()})
    assert stored.keys() == shapes.keys()
    assert {name: value.shape for name, value in stored.items()} == {name: x.shape for name, x in shapes.items()}
    plain = params | {name: np.asarray(quantised.kernel_of(stored, name)) for name in KERNELS}
    return (apply, plain), (of_quantised, stored)


@KINDS
def test_only_wide_kernels_of_products_are_quantised(kind):
    (_, plain), (_, stored) = networks(kind)
    assert quantised.kernel_names(stored) == KERNELS
    assert stored.keys() - plain.keys() == {f'{name}_{part}' for name in KERNELS for part in ('codes', 'scales')}
    assert plain.keys() - stored.keys() == KERNELS
    for name in KERNELS:
        np.testing.assert_array_equal(quantised.kernel_of(stored, name), plain[name])
    assert quantised.kernel_of(stored, 'few.kernel').shape == (12, 4)  # which is there as it is


def gradients(apply, params, trained, dtype=jnp.float32):
    """The output, and the gradients of x and of the parameters that train."""

    def loss(x, own):
        result = apply({**params, **own}, x)
        return jnp.sum(result.astype(jnp.float32) ** 2), result

    own = {name: params[name] for name in trained}
    (_, result), found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(X.astype(dtype), own)
    return result, found


@KINDS
@pytest.mark.parametrize('dora', [None, False, True], ids=['no adapters', 'LoRA', 'DoRA'])
def test_outputs_and_gradients_are_those_of_a_plain_network_with_the_same_kernels(kind, dora):
    adapt = None if dora is None else {'targets': ['conv', 'list.1', 'dict.a-b', 'few'], 'dora': dora}
    plain, of_quantised = networks(kind, adapt=adapt)
    trained = [name for name in plain[1] if lora.is_adapter(name)] or ['norm.scale']
    assert bool(adapt) == any(map(lora.is_adapter, trained))
    (expected, of_plain), (found, of_codes) = (gradients(*one, trained) for one in (plain, of_quantised))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert all(np.any(one) for one in jax.tree.leaves(of_plain))
    scale = max(np.abs(one).max() for one in jax.tree.leaves(of_plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), of_codes, of_plain)


@KINDS
def test_kernels_have_the_compute_dtype(kind):
    plain, of_quantised = networks(kind, jnp.bfloat16)
    (expected, _), (found, _) = (gradients(*one, ['norm.scale'], jnp.bfloat16) for one in (plain, of_quantised))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)
    # The product itself is in bfloat16, and not only its result.
    apply, params = of_quantised
    program = str(jax.make_jaxpr(apply)(params, X.astype(jnp.bfloat16)))
    assert 'bf16[3,3,24,16]' in program and 'bf16[16,12]' in program


@KINDS
def test_a_new_adapter_of_either_kind_changes_nothing(kind):
    """DoRA's magnitudes start as the norms of the kernel that is computed with."""
    apply, params = networks(kind)[1]
    shapes = functional.abstract(
        lambda: lora.adapt(
            quantised.quantise_layers(Network(functional.Keys(0)), kind),
            rank=2,
            alpha=2.0,
            targets=['.*conv', r'.*list.*'],
            dora=True,
            rngs=functional.Keys(0),
        )
    )
    adapter = lora.init_adapter(shapes[1], params, rngs=functional.Keys(1))
    assert {name for name in adapter if name.endswith(lora.MAGNITUDE)} == {
        'conv.lora_magnitude',
        'list.1.lora_magnitude',
    }
    expected, found = jax.jit(apply)(params, X), jax.jit(shapes[0])(params | adapter, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@KINDS
@pytest.mark.parametrize('dora', [False, True])
def test_a_function_takes_parameters_with_and_without_adapters(kind, dora):
    (plain, whole), (of_adapted, stored) = networks(kind, adapt={'targets': ['conv', 'list.1', 'few'], 'dora': dora})
    adapter, base = lora.separate(stored)
    model = nnx.eval_shape(lambda: quantised.quantise_layers(Network(functional.Keys(0)), kind))
    apply = jax.jit(lora.adaptable(model))
    expected = jax.jit(of_adapted)(stored, X)
    np.testing.assert_allclose(apply(lora.at_scale_one(stored, rank=2, alpha=3.0), X), expected, rtol=1e-4, atol=1e-5)
    without = apply(base, X)
    assert np.abs(without - expected).max() > 0.1
    # It is what merging into the kernel gives.
    merged = lora.merge(whole, rank=2, alpha=3.0)
    bare = functional.abstract(lambda: Network(functional.Keys(0)))[0]
    np.testing.assert_allclose(jax.jit(bare)(merged, X), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        jax.jit(bare)({name: value for name, value in whole.items() if name not in adapter}, X), without, atol=1e-4
    )


@KINDS
@pytest.mark.parametrize('layer', ['linear', 'conv'])
def test_no_kernel_is_kept_for_the_backward_pass(kind, layer):
    rngs = functional.Keys(0)
    plain = nnx.Linear(64, 32, rngs=rngs) if layer == 'linear' else convolution(64, 32, dtype=jnp.float32, rngs=rngs)
    wrapped = nnx.List([plain])
    quantised.quantise_layers(wrapped, kind)
    x = jnp.ones((1, 4, 4, 64))
    for one, keeps in ((plain, True), (wrapped[0], False)):
        kept = jax.tree.leaves(jax.vjp(one, x)[1])
        assert any(value.shape[-2:] == (64, 32) and value.dtype == x.dtype for value in kept) == keeps
    assert sum(value.nbytes for value in kept) < plain.kernel[...].nbytes / (3 if kind == 'int8' else 6)


COUNT, WIDTH = 8, 256


class Block(nnx.Module):
    """A residual block of two layers."""

    def __init__(self, width, rngs):
        self.up, self.down = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


class Stack(nnx.Module):
    """Equal blocks in a loop, or one by one."""

    def __init__(self, count, width, *, kind, scan, rngs, remat=False):
        self.blocks = nnx.List([Block(width, rngs) for _ in range(count)])
        self.options = {'scan': scan, 'remat': remat}
        if kind is not None:
            quantised.quantise_layers(self, kind)

    def __call__(self, x):
        return scanned.run(self.blocks, x, **self.options)


def stack(kind, scan, remat=False, dora=False, count=COUNT, width=WIDTH):
    """(function of adapters and the others, adapters, others) of a stack whose layers all have adapters."""

    def build(kind, rngs):
        model = Stack(count, width, kind=kind, scan=scan, remat=remat, rngs=rngs)
        return lora.adapt(model, rank=2, alpha=2.0, targets=['.*'], dora=dora, rngs=rngs)

    params = functional.init(lambda rngs: build(None, rngs), 0)[1]
    apply, shapes = functional.abstract(lambda: build(kind, functional.Keys(0)))
    params = {name: np.asarray(value) + 0.05 * name.endswith(lora.B) for name, value in params.items()}
    if kind is not None:
        keep = quantised.keeping(shapes, kind)
        params = quantised.flat({name: keep(name, value) for name, value in params.items()})
    adapter, base = lora.separate(params)
    x = random((4, width), seed=3)

    def loss(adapter, base, x):
        return jnp.sum(apply({**base, **adapter}, x) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 2))), (adapter, base, x)


@pytest.mark.parametrize('kind,remat', [('int8', False), ('nf4', True)])
def test_blocks_in_a_loop_compute_and_learn_what_they_do_one_by_one(kind, remat):
    one_by_one, in_loop = (stack(kind, scan, remat, count=2, width=64) for scan in (False, True))
    (value, gradient), (looped, of_loop) = (function(*given) for function, given in (one_by_one, in_loop))
    np.testing.assert_allclose(looped, value, rtol=1e-5)
    assert all(np.any(one) for one in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), of_loop, gradient)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int8', 'nf4'])
@pytest.mark.parametrize('remat,dora', [(False, False), (True, False), (True, True)])
def test_a_program_holds_codes_instead_of_kernels_and_never_the_kernels_of_all_blocks(kind, remat, dora):
    counts = {}
    for one in (None, kind):
        function, given = stack(one, True, remat, dora)
        counts[one] = function.lower(*given).compile().memory_analysis()
    kernels = 2 * COUNT * WIDTH**2 * 4
    bits = {'int8': 8 + 32 / 64, 'nf4': 4 + 32 / 64}[kind]
    saved = counts[None].argument_size_in_bytes - counts[kind].argument_size_in_bytes
    assert saved == kernels * (1 - bits / 32)
    # A block's two kernels may be there, forward or backward, and the look-up of its codes; not those of all blocks.
    assert counts[kind].temp_size_in_bytes < counts[None].temp_size_in_bytes + kernels / 2


@KINDS
def test_sharded_codes_are_computed_with_as_whole_ones(kind):
    function, (adapter, base, x) = stack(kind, True, count=2, width=64)
    placement = make_placement('fsdp', fsdp_min_bytes=1024)
    placed = placement.place(base)
    codes = {name: value for name, value in placed.items() if name.endswith('.kernel_codes')}
    assert len(codes) == 4
    for value in codes.values():
        assert placement.devices * math.prod(value.sharding.shard_shape(value.shape)) == value.size
    expected, found = function(adapter, base, x), function(adapter, placed, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_another_kind_is_one_sentence():
    with pytest.raises(ValueError, match=r"^frozen_dtype is 'int4' but must be one of \('int8', 'nf4'\) or None\.$"):
        quantised.quantise_layers(Network(functional.Keys(0)), 'int4')
