"""Weights that are read into quantised kernels: from folders, shards and single files, one tensor at a time."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.models import quantised
from dreambooth_jax.weights import folders, single_file
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import abstract_network, filled_network, in_float32, network_tensors
from tests.support import same_noise, tiny_latent_pipelines, tiny_pipelines
from tests.support.torch_reference import quick_jit

KINDS = pytest.mark.parametrize('kind', quantised.KINDS)


def assert_quantised(found, plain, kind):
    """The kernels are those of the plain network, quantised; everything else is as it is there."""
    assert found.frozen_dtype == kind and plain.frozen_dtype is None
    kernels = quantised.kernel_names(found.params)
    assert len(kernels) > 5
    expected = {
        name: quantised.quantise(value, kind) if name in kernels else value for name, value in plain.params.items()
    }
    expected = quantised.flat(expected)
    assert found.params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found.params[name], value, err_msg=name)
        assert found.params[name].dtype == value.dtype
        # Nothing is a view of the file, which may be replaced.
        assert not isinstance(found.params[name].base, np.memmap) and found.params[name].flags.writeable


@pytest.mark.parametrize('kind', [pytest.param('int8', marks=pytest.mark.slow), 'nf4'])
@pytest.mark.parametrize(
    'how', [*(pytest.param(how, marks=pytest.mark.slow) for how in ('folder', 'shards')), 'single file']
)
def test_kernels_of_denoiser_and_text_encoders_are_quantised_whatever_holds_them(kind, how, tmp_path):
    model = same_noise.cascade('sdxl').base
    if how == 'single file':
        name = single_file.write_pipeline(model, tmp_path / 'model.safetensors', dtype='bfloat16')
        options = {'tokenizer_dir': tiny_latent_pipelines.folder('sdxl')}
    else:
        size = 20_000 if how == 'shards' else 10**9
        name = folders.write_pipeline(model, tmp_path / 'model', dtype='bfloat16', max_shard_bytes=size)
        assert bool(list(name.glob('unet/*-00002-of-*'))) == (how == 'shards')
        options = {}
    plain = read_pipeline(name, **options)
    found = read_pipeline(name, **options, frozen_dtype=kind)
    assert found.components.keys() == plain.components.keys() >= {'text_encoder_2', 'vae'}
    for component, network in found.components.items():
        if component != 'vae':
            assert_quantised(network, plain.components[component], kind)
    vae = found.components['vae']
    assert vae.frozen_dtype is None and vae.params.keys() == plain.components['vae'].params.keys()
    for name, expected in plain.components['vae'].params.items():
        value = vae.params[name]
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == expected.dtype == ('bfloat16' if name.endswith('.kernel') else np.float32)
        assert not isinstance(value.base, np.memmap)


@pytest.mark.parametrize('kind', ['int8', pytest.param('nf4', marks=pytest.mark.slow), 'bfloat16'])
def test_reading_holds_one_tensor_in_float32_at_a_time(kind, tmp_path):
    """Storybook's base, the largest of whose tensors is a fraction of it; its files hold float16."""

    def peak(name='storybook', **options):
        read_pipeline(name, **options)  # networks are built once and kept
        tracemalloc.start()
        try:
            found = read_pipeline(name, **options)
            return tracemalloc.get_traced_memory()[1], found
        finally:
            tracemalloc.stop()

    whole, plain = peak()
    if kind in quantised.KINDS:
        least, found = peak(frozen_dtype=kind)
    else:  # files that hold it are read so
        least, found = peak(folders.write_pipeline(plain, tmp_path / 'model', dtype=kind))

    def sizes(pipeline):
        return [value.nbytes for network in pipeline.components.values() for value in network.params.values()]

    assert max(sizes(plain)) < sum(sizes(plain)) / 8
    assert whole > sum(sizes(plain))
    # What is kept, and a few copies of the largest tensor: as it is read, divided by its scale, and its codes.
    assert sum(sizes(found)) < least < sum(sizes(found)) + 4 * max(sizes(plain)) < sum(sizes(plain))


@KINDS
def test_a_quantised_network_computes_with_its_kernels_in_every_dtype(kind):
    network = tiny_pipelines.base().components['text_encoder']
    tensors = network_tensors('text_encoder', network)
    given = ('text_encoder', network.config, tensors, 'x', jnp.bfloat16)
    model = abstract_network('text_encoder', network.config, jnp.bfloat16)
    half = filled_network(model, *given, frozen_dtype=kind)
    full = in_float32('text_encoder', half)
    assert (full.dtype, full.frozen_dtype, full.params) == (jnp.float32, kind, half.params)
    kernels = {name: quantised.kernel_of(half.params, name) for name in quantised.kernel_names(half.params)}
    plain = filled_network(model, *given)
    assert plain.params.keys() >= kernels.keys() and half.frozen_dtype == kind
    ids = np.array([[3, 4, 1]])
    found = quick_jit(full.apply)(full.params, ids)
    expected = quick_jit(network.apply)({**network.params, **kernels}, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    rounded = np.asarray(quick_jit(half.apply)(half.params, ids), np.float32)
    assert 1e-6 < np.abs(rounded - expected).max() < 0.1
    assert np.abs(expected - quick_jit(network.apply)(network.params, ids)).max() > 1e-4


def test_quantised_kernels_are_another_model_and_are_not_written(tmp_path):
    hashes = {kind: read_pipeline(folder(), frozen_dtype=kind).weights_hash for kind in (None, *quantised.KINDS)}
    assert len({*hashes.values()}) == 3
    assert read_pipeline(folder(), frozen_dtype='int8').weights_hash == hashes['int8']
    with pytest.raises(WeightsError) as error:
        folders.write_pipeline(read_pipeline(folder(), frozen_dtype='int8'), tmp_path / 'model')
    assert str(error.value) == (
        'the kernels of this unet are quantised to int8, which no checkpoint holds; read the model without '
        'frozen_dtype to write it.'
    )
    assert not (tmp_path / 'model').exists()


def folder():
    return tiny_latent_pipelines.folder('sd1')
