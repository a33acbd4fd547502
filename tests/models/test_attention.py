"""Which implementation of attention is taken where, and that all of them compute the same."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dreambooth_jax.models import attention, splash
from dreambooth_jax.system import cuda
from tests.support.torch_reference import largest_relative_difference

AMPERE, HOPPER = (8, 0), (9, 0)


@pytest.mark.parametrize(
    'queries, width, dtype, has_bias, capability, fits',
    [
        (4096, 40, jnp.bfloat16, False, AMPERE, True),  # Stable Diffusion 1.x at its highest resolution
        (1024, 64, jnp.float16, False, AMPERE, True),  # SDXL
        (256, 160, jnp.bfloat16, False, HOPPER, True),  # Stable Diffusion 1.x at its lowest
        (256, 160, jnp.bfloat16, False, AMPERE, False),
        (4096, 264, jnp.bfloat16, False, HOPPER, False),
        (4096, 44, jnp.bfloat16, False, HOPPER, False),
        (1, 64, jnp.bfloat16, False, HOPPER, False),
        (225, 64, jnp.bfloat16, False, HOPPER, False),
        (4096, 64, jnp.float32, False, HOPPER, False),
        (4096, 64, jnp.bfloat16, True, HOPPER, False),
        (4096, 64, jnp.bfloat16, False, (7, 5), False),
        (4096, 64, jnp.bfloat16, False, None, False),
    ],
)
def test_flash_attention_is_taken_where_cudnn_has_it(queries, width, dtype, has_bias, capability, fits):
    assert attention.flash_fits((2, queries, 8, width), jnp.dtype(dtype), has_bias, capability) is fits


@pytest.mark.parametrize(
    'backend, version, expected',
    [('gpu', 'PJRT C API\ncuda 12090', 'cudnn'), ('gpu', 'rocm 6.0', 'xla'), ('tpu', 'TPU v5', 'xla')],
)
def test_attend_asks_jax_for_the_implementation_that_fits(monkeypatch, backend, version, expected):
    asked = []
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(platform=backend, client=client, compute_capability='9.0')
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(jax, 'local_devices', lambda: [device])
    monkeypatch.setattr(jax.nn, 'dot_product_attention', lambda *_, implementation, **__: asked.append(implementation))
    pixels = jnp.zeros((1, 256, 2, 64), jnp.bfloat16)
    attention.attend(pixels, pixels, pixels, scale=0.125)
    assert asked == [expected]


@pytest.mark.parametrize('counts', [None, (5, 3)])
def test_an_odd_number_of_keys_is_padded_for_flash_attention_without_effect(monkeypatch, counts):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, length, 3, 8)), jnp.bfloat16) for length in (128, 5, 5)]
    lengths = None if counts is None else jnp.array(counts, jnp.int32)

    def run(capability):
        monkeypatch.setattr(cuda, 'capability', lambda: capability)
        output, back = jax.vjp(lambda *parts: attention.attend(*parts, scale=0.7, lengths=lengths), *parts)
        return output, *back(jnp.cos(output))

    expected, original, shapes = run(None), jax.nn.dot_product_attention, []

    def by_xla(query, key, value, **options):
        shapes.append((key.shape, options.pop('implementation')))
        return original(query, key, value, **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', by_xla)
    for ours, theirs in zip(run(HOPPER), expected, strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert largest_relative_difference(ours, theirs) < 0.01
    assert shapes == [((2, 6, 3, 8), 'cudnn')]


@pytest.mark.parametrize(
    ('backend', 'capability', 'shape', 'dtype', 'has_bias', 'kernel'),
    [
        ('gpu', HOPPER, (2, 4608, 30, 128), jnp.bfloat16, False, 'cudnn'),  # Z-Image, whose padding is no bias
        ('gpu', HOPPER, (2, 4608, 30, 128), jnp.bfloat16, True, None),
        ('gpu', None, (2, 4608, 30, 128), jnp.bfloat16, False, None),  # another maker's card
        ('tpu', None, (2, 4608, 30, 128), jnp.bfloat16, False, 'splash'),
        ('tpu', None, (2, 4608, 30, 128), jnp.bfloat16, True, None),
        ('tpu', None, (2, 4608, 30, 128), jnp.float32, False, None),
        ('tpu', None, (2, 1024, 8, 80), jnp.bfloat16, False, None),  # small logits
        ('cpu', None, (2, 4608, 30, 128), jnp.bfloat16, False, None),
    ],
)
def test_which_kernel_is_taken_where(monkeypatch, backend, capability, shape, dtype, has_bias, kernel):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(cuda, 'capability', lambda: capability)
    monkeypatch.setattr(splash, 'shards', lambda: 1)
    assert attention.kernel(shape, shape[1], jnp.dtype(dtype), has_bias) == kernel


def test_without_a_mesh_no_kernel_is_taken_on_tpus(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert attention.kernel((2, 4608, 24, 128), 4608, jnp.dtype(jnp.bfloat16), False) is None
    with jax.sharding.use_abstract_mesh(Mesh(np.array(jax.devices()[:1]), ('data',)).abstract_mesh):
        assert attention.kernel((2, 4608, 24, 128), 4608, jnp.dtype(jnp.bfloat16), False) == 'splash'


@pytest.mark.parametrize('counts', [None, (80, 50)])
def test_large_logits_are_left_to_the_kernel_on_tpus(monkeypatch, counts):
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, length, 3, 8)), jnp.bfloat16) for length in (96, 80, 80)]
    lengths = None if counts is None else jnp.array(counts, jnp.int32)
    expected = attention.attend(*parts, scale=0.7, lengths=lengths)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    monkeypatch.setattr(attention, 'LARGE', 96 * 80 - 1)
    monkeypatch.setattr(attention, 'PART', 10 * 80)
    called, original = [], splash.splash_attend

    def interpreted(*parts, **options):
        called.append(parts[0].shape)
        return original(*parts, **options, interpret=True)

    monkeypatch.setattr(splash, 'splash_attend', interpreted)
    with jax.sharding.use_abstract_mesh(Mesh(np.array(jax.devices()[:1]), ('data',)).abstract_mesh):
        found = jax.jit(lambda: attention.attend(*parts, scale=0.7, lengths=lengths))()
    assert called == [(2, 96, 3, 8)]
    assert largest_relative_difference(np.asarray(found, np.float32), np.asarray(expected, np.float32)) < 0.02


def test_on_cpus_a_mesh_changes_nothing_in_the_program():
    part = jax.ShapeDtypeStruct((2, 128, 2, 8), jnp.bfloat16)

    def program():
        attend = jax.jit(lambda *parts: attention.attend(*parts, scale=0.7))
        return attend.lower(part, part, part).as_text()

    alone = program()
    with jax.sharding.use_abstract_mesh(Mesh(np.array(jax.devices()[:1]), ('data',)).abstract_mesh):
        assert program() == alone
    by_hand = jax.jit(lambda *parts: attention._attend_on_cpu(*parts, 0.7, None)).lower(part, part, part).as_text()
    assert by_hand == alone


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_lengths_hide_the_same_keys_as_a_bias(monkeypatch, backend):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, length, 3, 8)), jnp.float32) for length in (7, 5, 5)]
    lengths = jnp.array([5, 2], jnp.int32)
    bias = jnp.where(np.arange(5) < np.array([[5], [2]]), 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
    expected = attention.attend(*parts, scale=0.7, bias=bias)
    np.testing.assert_array_equal(attention.attend(*parts, scale=0.7, lengths=lengths), expected)


@pytest.mark.parametrize('with_bias', [False, True])
def test_the_form_for_cpus_equals_the_form_for_accelerators(monkeypatch, with_bias):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, length, 3, 8)).astype(np.float32) for length in (7, 5, 5))
    bias = rng.normal(size=(1, 3, 7, 5)).astype(np.float32) if with_bias else None

    def run():
        def attend(parts):
            return attention.attend(*parts, scale=0.7, bias=bias)

        output, back = jax.vjp(attend, (query, key, value))
        return output, *back(jnp.cos(output))[0]

    here = run()
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    for ours, theirs in zip(here, run(), strict=True):
        assert largest_relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(('backend', 'hides'), [('cpu', False), ('cpu', True), ('tpu', False)])
def test_attention_in_parts_equals_attention_at_once_and_stores_fewer_logits(monkeypatch, backend, hides):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(cuda, 'capability', lambda: None)
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, length, 3, 8)), jnp.float32) for length in (96, 80, 80)]
    # A bias that hides keys from all queries, and different ones in every example.
    bias = jnp.where(np.arange(80) < np.array([[50], [80]]), 0.0, -1e9)[:, None, None, :] if hides else None

    def run():
        def attend(*parts):
            output, back = jax.vjp(lambda *parts: attention.attend(*parts, scale=0.7, bias=bias), *parts)
            return output, *back(jnp.cos(output))

        compiled = jax.jit(attend).lower(*parts).compile()
        return compiled(*parts), compiled.memory_analysis().temp_size_in_bytes

    (expected, whole), logits = run(), 4 * 2 * 3 * 96 * 80
    monkeypatch.setattr(attention, 'LARGE', 96 * 80 - 1)
    monkeypatch.setattr(attention, 'PART', 10 * 80)
    found, small = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert largest_relative_difference(ours, theirs) < 1e-5
    assert whole > logits > small


@pytest.mark.parametrize(
    ('queries', 'keys', 'parts'),
    [
        (4096, 4096, 8),
        (4096, 77, 1),
        (1024, 1024, 1),
        (2048, 2048, 1),
        (9216, 9216, 48),
        (2049, 2049, 3),
        (4099, 4099, 4099),
    ],
)
def test_queries_go_in_as_few_equal_parts_as_stay_small(queries, keys, parts):
    assert attention._parts(queries, keys) == parts


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_logits_and_softmax_are_float32_in_half_precision(monkeypatch, backend):
    """Two logits that bfloat16 cannot tell apart: 256 and 257."""
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    query = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    key = jnp.array([[256, 0], [256, 1]], jnp.bfloat16).reshape(1, 2, 1, 2)
    value = jnp.array([[0, 0], [1, 1]], jnp.bfloat16).reshape(1, 2, 1, 2)
    output = attention.attend(query, key, value, scale=1.0)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(output, np.float32), 1 / (1 + np.exp(-1.0)), atol=4e-3)
