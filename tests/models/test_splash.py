"""The kernel for TPUs, interpreted on CPU, computes what attention without it does: forward, gradients and in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreambooth_jax.models import attention, functional, scanned, splash, z_image
from dreambooth_jax.training.placement import Fsdp
from tests.support.torch_reference import largest_relative_difference

interpreted = functools.partial(splash.splash_attend, interpret=True)


def inputs(batch, queries, keys, width, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, length, 2, width)), dtype) for length in (queries, keys, keys)]


def with_gradients(attend, *parts, lengths=None):
    output, back = jax.vjp(lambda *parts: attend(*parts, scale=0.7, lengths=lengths), *parts)
    return output, *back(jnp.cos(output))


def run(attend, parts, lengths=None):
    return jax.jit(functools.partial(with_gradients, attend))(*parts, lengths=lengths)


@pytest.mark.parametrize(
    ('queries', 'keys', 'width', 'counted'),
    [
        (512, 512, 128, None),  # whole blocks
        (520, 300, 40, None),  # no multiples of a block, and a narrow head
        (130, 600, 64, (600, 1)),
        (512, 1024, 136, (513, 700)),  # as many keys as blocks hold, but not all count
    ],
)
def test_the_kernel_computes_the_attention_and_its_gradients(queries, keys, width, counted):
    parts = inputs(2, queries, keys, width)
    lengths = None if counted is None else jnp.array(counted, jnp.int32)
    found, expected = run(interpreted, parts, lengths), run(attention.attend, parts, lengths)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert largest_relative_difference(ours, theirs) < 3e-5
    if counted is not None:
        hidden = np.arange(keys) >= np.array(counted)[:, None]
        assert not np.any(np.asarray(found[2])[hidden]) and not np.any(np.asarray(found[3])[hidden])


def test_in_half_precision_it_is_as_near_as_half_precision_is():
    exact = run(attention.attend, inputs(2, 130, 140, 40))
    for ours, theirs in zip(run(interpreted, inputs(2, 130, 140, 40, jnp.bfloat16)), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert largest_relative_difference(np.asarray(ours, np.float32), theirs) < 0.02


def test_logits_and_softmax_are_float32_in_half_precision():
    """Two logits that bfloat16 cannot tell apart: 256 and 257."""
    query = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    key = jnp.zeros((1, 2, 1, 8), jnp.bfloat16).at[:, :, 0, 0].set(256).at[0, 1, 0, 1].set(1)
    value = jnp.zeros((1, 2, 1, 8), jnp.bfloat16).at[0, 1].set(1)
    output = interpreted(query, key, value, scale=1.0)
    np.testing.assert_allclose(np.asarray(output, np.float32), 1 / (1 + np.exp(-1.0)), atol=4e-3)


def test_four_devices_compute_their_own_examples_alone():
    parts = inputs(4, 130, 140, 40)
    lengths = jnp.array([140, 100, 3, 1], jnp.int32)
    mesh = Mesh(np.array(jax.devices()[:4]), ('data',))
    placed = jax.device_put((*parts, lengths), NamedSharding(mesh, PartitionSpec('data')))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert splash.shards() == 4
        program = jax.jit(lambda *parts: with_gradients(interpreted, *parts[:3], lengths=parts[3]))
        compiled = program.lower(*placed).compile()
    assert not any(word in compiled.as_text() for word in ('all-gather', 'all-reduce', 'all-to-all', 'permute'))
    for ours, theirs in zip(compiled(*placed), run(attention.attend, parts, lengths), strict=True):
        assert ours.sharding.spec == PartitionSpec('data')
        assert largest_relative_difference(ours, theirs) < 3e-5


class Blocks(nnx.Module):
    """Two blocks of Z-Image in a loop, computed again for gradients."""

    def __init__(self, rngs):
        config = z_image.DEFAULTS | {'dim': 16, 'n_heads': 2}
        made = {'dtype': jnp.float32, 'rngs': rngs}
        self.blocks = nnx.List([z_image.Block(config, made, modulated=False) for _ in range(2)])

    def __call__(self, x, lengths):
        rotation = jnp.ones((4,)), jnp.zeros((4,))
        return scanned.run(self.blocks, x, rotation, lengths, remat=True, scan=True)


def test_blocks_train_with_it_on_four_devices_that_share_their_weights(monkeypatch):
    apply, params = functional.init(Blocks, seed=0)
    x, lengths = np.random.default_rng(0).normal(size=(4, 96, 16)), np.array([96, 40, 33, 1], np.int32)
    placement, taken = Fsdp(0, jax.devices()[:4]), []

    def run():
        # A function of its own, or JAX would take what it has traced before.
        gradient = jax.jit(jax.value_and_grad(lambda *args: jnp.mean(jnp.sin(apply(*args)))))
        return placement.call(gradient, placement.place(params), *placement.split((x.astype(np.float32), lengths)))

    expected = run()

    def attend(query, *parts, **options):
        taken.append((query.shape, options['lengths'] is not None, splash.shards()))
        return interpreted(query, *parts, **options)

    monkeypatch.setattr(attention, 'LARGE', 1)
    monkeypatch.setattr(attention, 'PART', 100)
    monkeypatch.setattr(splash, 'splash_fits', lambda *_: True)  # also in float32
    monkeypatch.setattr(splash, 'splash_attend', attend)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    found = run()
    assert set(taken) == {((4, 96, 2, 8), True, 4)}
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert largest_relative_difference(ours, theirs) < 1e-4


def test_inside_pmap_arrays_are_one_devices_own():
    parts = inputs(4, 130, 140, 40)

    def attend(*parts):
        assert splash.shards() == 1
        return with_gradients(interpreted, *parts)

    found = jax.pmap(attend, 'data', devices=jax.devices()[:4])(*(part[:, None] for part in parts))
    for ours, theirs in zip(found, run(attention.attend, parts), strict=True):
        assert largest_relative_difference(ours[:, 0], theirs) < 3e-5


@pytest.mark.parametrize(
    ('batch', 'width', 'dtype', 'has_bias', 'devices', 'fits'),
    [
        (2, 128, jnp.bfloat16, False, 1, True),  # FLUX.2 Klein
        (2, 40, jnp.bfloat16, False, 1, True),  # Stable Diffusion 1.5
        (1, 512, jnp.bfloat16, False, 1, True),  # the decoder of a VAE
        (8, 128, jnp.bfloat16, False, 8, True),
        (2, 128, jnp.bfloat16, False, 8, False),
        (2, 128, jnp.bfloat16, False, None, False),
        (2, 128, jnp.bfloat16, True, 1, False),
        (2, 128, jnp.float32, False, 1, False),
        (2, 128, jnp.float16, False, 1, False),
        (2, 44, jnp.bfloat16, False, 1, False),
        (2, 1024, jnp.bfloat16, False, 1, False),
    ],
)
def test_the_kernel_fits_bfloat16_without_bias_whose_batch_the_devices_share(
    batch, width, dtype, has_bias, devices, fits
):
    assert splash.splash_fits((batch, 4096, 8, width), jnp.dtype(dtype), has_bias, devices) is fits


@pytest.mark.parametrize(
    ('length', 'width', 'size'),
    [
        (4096, 128, 1024),
        (4608, 128, 768),  # with the text of FLUX.2 Klein, six blocks without padding
        (4128, 128, 896),
        (16384, 512, 512),
        (77, 64, 512),
    ],
)
def test_blocks_are_those_that_pad_least_and_as_large_as_fit(length, width, size):
    assert splash.block(length, width) == size


def test_the_batch_is_shared_by_the_devices_of_the_mesh_that_a_program_is_traced_in():
    assert splash.shards() is None
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('rows', 'columns'), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert splash.shards() == 4


@pytest.mark.parametrize(('kind', 'shards'), [('TPU v3', None), ('TPU v4', 2)])
def test_old_devices_do_not_take_the_kernel(kind, shards):
    device = jax.sharding.AbstractDevice(kind, None, 'tpu')
    mesh = jax.sharding.AbstractMesh((2,), ('data',), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert splash.shards() == shards
