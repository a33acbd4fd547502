"""A transformer in a file of its own: read in place of a folder's, in every layout; what is no such file is told."""

import itertools
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import quantised
from dreambooth_jax.weights import files, lora_files, modelspec, transformer_file
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline
from tests.support import tiny_flow, tiny_latent_pipelines, tiny_sd3
from tests.support.generating import generate
from tests.support.original_transformers import ORIGINALS
from tests.support.torch_reference import quick_jit

ALL = pytest.mark.parametrize('name', ORIGINALS)
BESIDE = {f'{prefix}.x.weight': np.ones((2, 2), np.float32) for prefix in ('first_stage_model', 'vae', 'text_encoders')}
WEIGHTS = 'diffusion_pytorch_model.safetensors'


def other(name: str, seed: int = 1) -> Pipeline:
    """The tiny pipeline with other random weights of its transformer, which is all that was read of it."""
    base = read_pipeline(ORIGINALS[name].tiny.folder(), components=('transformer',))
    rng = np.random.default_rng(seed)
    moved = {
        path: np.asarray(value + 0.05 * rng.standard_normal(value.shape), np.float32)
        for path, value in base.denoiser.params.items()
    }
    return base.with_components(transformer=base.denoiser.__class__(base.denoiser.config, base.denoiser.apply, moved))


def read(name, path, **options):
    """The transformer of the tiny pipeline, out of this file."""
    folder = ORIGINALS[name].tiny.folder()
    return read_pipeline(folder, components=('transformer',), transformer_file=path, **options).denoiser


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def fails(name, path, **options):
    with pytest.raises(WeightsError) as error:
        read(name, path, **options)
    return str(error.value)


@ALL
def test_a_written_file_is_that_of_the_makers_and_is_read_back(name, tmp_path):
    pipeline, path = other(name), tmp_path / 'x.safetensors'
    metadata = modelspec.build(architecture=pipeline.family.architecture, title='x')
    assert transformer_file.write(pipeline, path, metadata=metadata) == path
    tensors = load_file(path)
    # diffusers reads it as what its folder of the same transformer holds.
    written = tmp_path / 'folder' / WEIGHTS
    files.write_tensors(written, transformer_file.network_tensors('transformer', pipeline.denoiser))
    assert_equal(ORIGINALS[name].converted(tensors), load_file(written))
    header = files.read_metadata(path)
    assert header['modelspec.hash_sha256'] == modelspec.tensor_hash(tensors)
    assert metadata.items() <= header.items()
    assert_equal(read(name, path).params, pipeline.denoiser.params)
    assert read(name, path).config['_class_name'] == pipeline.family.transformer


@ALL
def test_every_prefix_and_layout_is_read_and_what_lies_beside_is_not(name, tmp_path):
    pipeline, path = other(name), tmp_path / 'x.safetensors'
    tensors = load_file(transformer_file.write(pipeline, path))
    plain = {key.replace('_norm.scale', '_norm.weight'): value for key, value in tensors.items()}
    own = transformer_file.network_tensors('transformer', pipeline.denoiser)
    assert (plain.keys() != tensors.keys()) == (name in ('flux', 'klein'))
    for kind, prefix in itertools.product((tensors, plain, own), ('', 'model.diffusion_model.', 'diffusion_model.')):
        save_file(BESIDE | {prefix + key: np.ascontiguousarray(value) for key, value in kind.items()}, path)
        assert_equal(read(name, path).params, pipeline.denoiser.params)


@pytest.mark.parametrize('stored', ['float16', 'bfloat16', 'float8'])
def test_weights_are_those_of_the_file_whatever_it_stores(stored, tmp_path):
    pipeline, path = other('z_image'), tmp_path / 'x.safetensors'
    tensors = load_file(transformer_file.write(pipeline, path))
    if stored == 'float8':  # the numpy writer of safetensors knows no such floats
        dtype = ml_dtypes.float8_e4m3fn
        narrow = {key: torch.from_numpy(value).to(torch.float8_e4m3fn) for key, value in tensors.items()}
        safetensors.torch.save_file(narrow, path)
    else:
        dtype = files.STORAGE_DTYPES[stored]
        save_file({key: value.astype(dtype) for key, value in tensors.items()}, path)
    found = read('z_image', path).params
    for key, value in pipeline.denoiser.params.items():
        np.testing.assert_array_equal(found[key], value.astype(dtype).astype(np.float32))
        narrow = stored == 'bfloat16' and key.endswith('.kernel')
        assert found[key].dtype == ('bfloat16' if narrow else np.float32)


def test_the_index_of_shards_is_read_like_a_file(tmp_path):
    pipeline = other('z_image')
    tensors = load_file(transformer_file.write(pipeline, tmp_path / 'x.safetensors'))
    written = files.write_tensors(tmp_path / 'shards' / 'x.safetensors', tensors, max_shard_bytes=20_000)
    index = tmp_path / 'shards' / 'x.safetensors.index.json'
    assert index in written and len(written) > 3
    assert_equal(read('z_image', index).params, pipeline.denoiser.params)


@ALL
def test_kernels_are_quantised_tensor_by_tensor(name, tmp_path):
    pipeline, path = other(name), tmp_path / 'x.safetensors'
    transformer_file.write(pipeline, path, dtype='bfloat16')
    plain, found = read(name, path), read(name, path, frozen_dtype='int8')
    kernels = quantised.kernel_names(found.params)
    assert found.frozen_dtype == 'int8' and len(kernels) > 10
    expected = {
        key: quantised.quantise(value, 'int8') if key in kernels else value for key, value in plain.params.items()
    }
    assert_equal(found.params, quantised.flat(expected))
    path.unlink()  # nothing is a view of it
    assert all(not isinstance(value.base, np.memmap) and value.flags.writeable for value in found.params.values())


@pytest.mark.slow
def test_images_are_those_of_a_folder_that_holds_the_same_transformer(tmp_path):
    original = ORIGINALS['sd3']
    file = transformer_file.write(other('sd3'), tmp_path / 'x.safetensors')
    folder = shutil.copytree(tiny_sd3.folder(), tmp_path / 'folder')
    tensors = transformer_file.network_tensors('transformer', other('sd3').denoiser)
    files.write_tensors(folder / 'transformer' / WEIGHTS, tensors)
    (tmp_path / 'bare').mkdir()
    bare = shutil.copytree(tiny_sd3.folder(), tmp_path / 'bare' / 'model')
    (bare / 'transformer' / WEIGHTS).unlink()  # the folder's own weights are not needed

    def image(model, **options):
        cascade = Cascade.load(model, size=tiny_sd3.SIZE, **options)
        given = {'steps': 2, 'guidance_scale': 2.0, 'sampler': 'euler', 'seed': 1, 'batch_size': 1}
        return generate(cascade, ['a dog'], num_images=1, **given).final

    expected = image(folder)
    np.testing.assert_array_equal(image(bare, transformer_file=file), expected)
    assert np.abs(image(original.tiny.folder()).astype(int) - expected).max() > 10


def test_quantised_kernels_of_a_file_compute_as_those_of_a_folder(tmp_path):
    file = transformer_file.write(other('klein'), tmp_path / 'x.safetensors')
    folder = shutil.copytree(ORIGINALS['klein'].tiny.folder(), tmp_path / 'folder')
    tensors = transformer_file.network_tensors('transformer', other('klein').denoiser)
    files.write_tensors(folder / 'transformer' / WEIGHTS, tensors)
    found = read('klein', file, frozen_dtype='nf4')
    expected = read_pipeline(folder, components=('transformer',), frozen_dtype='nf4').denoiser
    assert_equal(found.params, expected.params)
    x, states = np.ones((1, 4, 4, 16), np.float32), np.ones((1, 8, 48), np.float32)
    given = (x, np.array([0.5], np.float32), states)
    np.testing.assert_array_equal(
        quick_jit(found.apply)(found.params, *given), quick_jit(expected.apply)(expected.params, *given)
    )


def test_a_file_of_another_kind_is_named_in_one_sentence(tmp_path):
    folder = ORIGINALS['flux'].tiny.folder()
    path = transformer_file.write(other('klein'), tmp_path / 'klein.safetensors')
    ending = f'but {folder} is FLUX.1; give a file of that, or the model that belongs to this one.'
    assert fails('flux', path) == f'{path} holds the transformer of FLUX.2 Klein, {ending}'
    own = transformer_file.network_tensors('transformer', other('sd3').denoiser)
    save_file({f'model.diffusion_model.{key}': np.ascontiguousarray(value) for key, value in own.items()}, path)
    assert fails('flux', path) == f'{path} holds the transformer of Stable Diffusion 3, {ending}'
    save_file({'model.diffusion_model.input_blocks.0.0.weight': np.ones(2, np.float32)}, path)
    assert fails('flux', path) == f'{path} holds a UNet, {ending}'
    save_file(BESIDE, path)
    assert fails('flux', path) == f'{path} holds no transformer (it has no tensors that could be of one), {ending}'
    save_file({'encoder.weight': np.ones(2, np.float32)}, path)
    assert fails('flux', path) == f'{path} holds no transformer (it begins with encoder.weight), {ending}'
    base = read_pipeline(folder, components=('transformer',))
    lora = lora_files.Adapter({'transformer': tiny_flow.usual_lora(base)}, tiny_flow.RANK, tiny_flow.ALPHA)
    lora_files.write_lora(path, lora, lora_files.COMFYUI, originals=base.family.lora_layers)
    assert fails('flux', path) == (
        f'{path} holds LoRA adapters, which change a transformer and are none; give the transformer that they were '
        f'trained on, and this file to sample as --lora.'
    )


def test_scaled_float8_is_refused_with_what_to_give_instead(tmp_path):
    path = transformer_file.write(other('flux'), tmp_path / 'x.safetensors')
    save_file(load_file(path) | {'double_blocks.0.img_attn.qkv.weight_scale': np.ones((), np.float32)}, path)
    assert fails('flux', path) == (
        f'{path} holds scaled 8-bit weights (it has double_blocks.0.img_attn.qkv.weight_scale); give the file whose '
        f'weights are float32, float16, bfloat16 or plain float8.'
    )


def test_tensors_that_do_not_fit_are_counted_and_named_as_in_the_file(tmp_path):
    folder = ORIGINALS['flux'].tiny.folder()
    path = transformer_file.write(other('flux'), tmp_path / 'x.safetensors')
    tensors = load_file(path)
    del tensors['guidance_in.in_layer.bias'], tensors['single_blocks.1.norm.key_norm.scale']
    tensors['img_in.weight'] = tensors['img_in.weight'][:, :8]
    tensors['extra.weight'] = tensors['img_in.bias']
    save_file({f'diffusion_model.{key}': np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    for frozen_dtype in (None, 'int8'):
        assert fails('flux', path, frozen_dtype=frozen_dtype).splitlines() == [
            f'{path} does not fit the transformer of {folder} (2 missing, 1 unused, 1 wrong shape); give the file that '
            f'belongs to its config.json, or the model that belongs to the file:',
            '  missing: single_blocks.1.norm.key_norm.scale [16]',
            '  missing: guidance_in.in_layer.bias [32]',
            '  unused: extra.weight [32]',
            '  wrong shape: img_in.weight is [32, 8] but must be [32, 16]',
        ]
    # A tensor that diffusers leaves out too is none of these.
    path = transformer_file.write(other('z_image'), tmp_path / 'y.safetensors')
    save_file(load_file(path) | {'norm_final.weight': np.ones(32, np.float32)}, path)
    assert_equal(read('z_image', path).params, other('z_image').denoiser.params)


def test_models_without_such_files_and_files_that_are_not_there_are_told_at_once(tmp_path):
    setting = '(setting and flag model_transformer_file)'
    missing = tmp_path / 'x.safetensors'
    assert fails('flux', missing) == (
        f"transformer_file is '{missing}', which is no file; give a .safetensors file of the transformer alone "
        f'{setting}.'
    )
    folder = tiny_latent_pipelines.folder('sd1')
    with pytest.raises(WeightsError) as error:
        read_pipeline(folder, transformer_file=missing)
    assert str(error.value) == (
        f"transformer_file is '{missing}', but {folder} is a StableDiffusionPipeline, which has no transformer in a "
        f'file of its own; leave it out {setting}.'
    )
    path = transformer_file.write(other('flux'), tmp_path / 'whole.safetensors')
    with pytest.raises(WeightsError) as error:
        read_pipeline(path, transformer_file=path)
    assert str(error.value) == (
        f"transformer_file is '{path}' but {path} is a file of a whole model, which holds its own; leave it out "
        f'{setting}.'
    )
    with pytest.raises(WeightsError) as error:
        read_pipeline(path)
    assert str(error.value) == (
        f'{path} holds the transformer of FLUX.1, but no configuration and no tokenizer; give the folder or hub id of '
        f'such a model, and this file besides {setting}.'
    )
    missing.write_bytes(b'nothing')
    assert fails('flux', missing).startswith(f'{missing} (7 bytes) is no complete safetensors file: ')
    (tmp_path / 'x.ckpt').touch()
    assert fails('flux', tmp_path / 'x.ckpt').startswith(f'{tmp_path}/x.ckpt is a pickled checkpoint')


def test_quantised_kernels_and_malformed_metadata_are_not_written(tmp_path):
    path = tmp_path / 'x.safetensors'
    frozen = read_pipeline(ORIGINALS['flux'].tiny.folder(), components=('transformer',), frozen_dtype='int8')
    with pytest.raises(WeightsError, match='the kernels of this transformer are quantised to int8'):
        transformer_file.write(frozen, path)
    with pytest.raises(WeightsError, match='missing: modelspec.title'):
        transformer_file.write(other('flux'), path, metadata={'modelspec.architecture': 'flux-1-dev'})
    assert not path.exists()
