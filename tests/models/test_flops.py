"""FLOPs of products and convolutions are counted exactly, however often a loop turns and whatever a kernel hides."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import pallas as pl

from dreambooth_jax.models import attention
from dreambooth_jax.models.flops import flops
from tests.support.network_parity import quick_jit

SQUARE = jax.ShapeDtypeStruct((6, 6), jnp.float32)
PRODUCT = 2 * 6**3


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def conv(x, kernel, **options):
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


@pytest.mark.parametrize(
    ('function', 'args', 'expected'),
    [
        (jnp.matmul, (shape(2, 3), shape(3, 5)), 2 * 2 * 3 * 5),
        (jnp.matmul, (shape(7, 2, 3), shape(7, 3, 5)), 7 * 2 * 2 * 3 * 5),
        (functools.partial(conv, window_strides=(1, 1), padding='VALID'), (shape(1, 8, 8, 3), shape(3, 3, 3, 4)), None),
        (functools.partial(conv, window_strides=(2, 2), padding='VALID'), (shape(2, 9, 9, 3), shape(3, 3, 3, 4)), None),
        (
            functools.partial(conv, window_strides=(1, 1), padding='VALID', feature_group_count=4),
            (shape(1, 8, 8, 4), shape(3, 3, 1, 8)),
            None,
        ),
        (jax.value_and_grad(lambda x, y: jnp.sum(x @ y)), (SQUARE, SQUARE), 2 * PRODUCT),
    ],
    ids=['product', 'batch of products', 'convolution', 'its strides', 'its groups', 'gradient'],
)
def test_products_and_convolutions_are_counted_as_the_compiler_does(function, args, expected):
    """XLA adds the operations of sums alone, which these small shapes keep few."""
    found = flops(function, *args)
    if expected is None:
        assert found == quick_jit(function).lower(*args).cost_analysis()['flops']
    else:
        assert found == expected


def by_kernel(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    block = pl.BlockSpec((6, 6), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, grid=(4,), in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct((24, 6), jnp.float32)
    )(jnp.concatenate([x] * 4))


@pytest.mark.parametrize(
    ('function', 'products'),
    [
        (lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=5)[0], 5),
        (lambda x: jax.lax.scan(lambda y, _: (jax.jit(jnp.matmul)(y, x), y @ x), x, None, length=5), 10),
        (lambda x: jax.lax.map(lambda y: y @ x, jnp.stack([x] * 3)), 3),
        (lambda x: jax.lax.fori_loop(0, 4, lambda _, y: y @ x, x), 4),
        (lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ x, x), 1),
        (lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x @ x, lambda: x), 2),
        (lambda x: jax.checkpoint(lambda y: y @ x)(x), 1),
        (by_kernel, 4),
    ],
    ids=['scan', 'scan with jit inside', 'map', 'fori_loop', 'while_loop', 'cond', 'remat', 'pallas'],
)
def test_what_a_loop_or_a_kernel_computes_is_counted_every_time(function, products):
    assert flops(function, SQUARE) == products * PRODUCT


def test_under_shard_map_all_devices_are_counted():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec('data')
    function = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(function, shape(8, 6)) == 4 * 2 * 2 * 2 * 6


def test_attention_in_parts_and_by_cudnn_counts_as_whole_attention_does(monkeypatch):
    args = shape(2, 64, 3, 16), shape(2, 32, 3, 16), shape(2, 32, 3, 16)

    def attend():  # another function each time, which is traced anew
        return functools.partial(attention.attend, scale=0.25)

    whole = flops(attend(), *args)
    assert whole == 4 * 2 * 3 * 64 * 32 * 16
    monkeypatch.setattr(attention, 'LARGE', 512)
    monkeypatch.setattr(attention, 'PART', 256)
    assert jax.jit(attend()).lower(*args).cost_analysis()['flops'] < whole / 4
    assert flops(attend(), *args) == whole
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 90000)
    half = [jax.ShapeDtypeStruct(each.shape, jnp.bfloat16) for each in args]
    assert flops(functools.partial(attention._flash_attend, scale=0.25), *half) == whole
