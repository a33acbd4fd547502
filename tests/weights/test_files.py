"""safetensors files: dtypes, shards, damage, refusals, and writing all or nothing."""

import contextlib
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError

STEM = 'diffusion_pytorch_model'


def some_tensors():
    rng = np.random.default_rng(0)
    tensors = {f'layer.{i}.weight': rng.normal(size=(4, 5)).astype(np.float32) for i in range(5)}
    return {**tensors, 'scalar': np.array(0.5, np.float32), 'ids': np.arange(3, dtype=np.int64)}


def one_sentence(error):
    text = str(error.value)
    return '\n' not in text and text.endswith('.')


def test_tensors_come_back_as_written(tmp_path):
    tensors = some_tensors()
    tensors['turned'] = tensors['layer.0.weight'].T  # not contiguous
    path = tmp_path / f'{STEM}.safetensors'
    assert files.write_tensors(path, tensors) == [path]
    found = files.read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in found)
    assert found['scalar'].shape == ()
    assert found['ids'].dtype == np.int64
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_stored_half_precision_is_read_as_float32(tmp_path, dtype):
    path, tensors = tmp_path / 'x.safetensors', some_tensors()
    files.write_tensors(path, tensors, dtype=dtype)
    stored = safetensors.numpy.load_file(path)['layer.0.weight']
    assert stored.dtype == {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}[dtype]
    found = files.read_tensors(path)['layer.0.weight']
    assert found.dtype == np.float32
    assert np.array_equal(found, tensors['layer.0.weight'].astype(stored.dtype).astype(np.float32))


@pytest.mark.parametrize(
    'dtype', [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_8_bit_floats_are_widened_as_torch_widens_them(tmp_path, dtype):
    every_code = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(16, 16)
    stored = {
        'every.weight': every_code,
        'scalar': every_code[2, 3].clone(),
        'other': torch.ones(3),
        'ids': torch.arange(3),
    }
    path = tmp_path / 'x.safetensors'
    safetensors.torch.save_file(stored, path, {'title': 'eight'})
    found = files.read_tensors(path)
    assert found['every.weight'].dtype == np.float32 and found['scalar'].shape == ()
    assert all(np.array_equal(found[name], tensor.float().numpy(), equal_nan=True) for name, tensor in stored.items())
    assert files.read_tensors(path, lambda name: name == 'scalar').keys() == {'scalar'}
    assert files.read_header(path).shapes['every.weight'] == (16, 16)


@pytest.mark.parametrize(
    ('tensors', 'reason'),
    [
        ({'scaled_fp8': torch.ones(2).to(torch.float8_e4m3fn)}, r'scaled 8-bit weights \(it has scaled_fp8\)'),
        ({'a.scale_weight': torch.ones(1)}, r'scaled 8-bit weights \(it has a.scale_weight\)'),
        ({'a.weight_scale': torch.ones(1)}, r'scaled 8-bit weights \(it has a.weight_scale\)'),
        ({'a.weight.absmax': torch.ones(1)}, r'quantised weights \(it has a.weight.absmax\)'),
        ({'a.weight': torch.ones(2, dtype=torch.int8)}, r'quantised weights \(a.weight is I8\)'),
        ({'a.weight': torch.ones(2, dtype=torch.uint8)}, r'quantised weights \(a.weight is U8\)'),
        ({'a.qweight': torch.ones(2, dtype=torch.int32)}, r'quantised weights \(it has a.qweight\)'),
        ({'a.bias': torch.ones(2, dtype=torch.complex64)}, r'tensors of a type that is not s.* \(a.bias is C64\)'),
        ({'a': torch.ones(2).to(torch.float8_e8m0fnu)}, r'tensors of a type that is not supported \(a is F8_E8M0\)'),
    ],
)
def test_quantised_weights_are_one_sentence(tmp_path, tensors, reason):
    path = tmp_path / 'x.safetensors'
    safetensors.torch.save_file({'b.weight': torch.ones(2), **tensors}, path)
    for read in (files.read_tensors, files.view_tensors, files.read_header, files.read_metadata):
        with pytest.raises(WeightsError, match=f'x.safetensors holds {reason}; give the file whose') as error:
            read(path)
        assert one_sentence(error)


def test_values_beyond_float16_are_refused_rather_than_made_infinite(tmp_path):
    path = tmp_path / 'x.safetensors'
    with pytest.raises(WeightsError, match='big has values beyond the range of float16') as error:
        files.write_tensors(path, {'big': np.array([1e6], np.float32)}, dtype='float16')
    assert one_sentence(error)
    assert not os.listdir(tmp_path)


def test_shards_and_their_index(tmp_path):
    tensors = some_tensors()
    written = files.write_tensors(tmp_path / f'{STEM}.safetensors', tensors, max_shard_bytes=200)
    index = tmp_path / f'{STEM}.safetensors.index.json'
    assert [path.name for path in written[:2]] == [f'{STEM}-0000{i}-of-00003.safetensors' for i in (1, 2)]
    assert written[-1] == index == files.find_weights(tmp_path, STEM)
    assert json.loads(index.read_text())['metadata']['total_size'] == sum(t.nbytes for t in tensors.values())
    found = files.read_tensors(index)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in found)


@pytest.mark.parametrize('dtype', files.STORAGE_DTYPES)
@pytest.mark.parametrize('max_shard_bytes', [200, files.DEFAULT_SHARD_BYTES])
def test_views_have_the_stored_dtype_and_are_read_when_they_are_used(tmp_path, dtype, max_shard_bytes):
    path = tmp_path / f'{STEM}.safetensors'
    files.write_tensors(path, some_tensors(), dtype=dtype, max_shard_bytes=max_shard_bytes)
    path = files.find_weights(tmp_path, STEM)
    expected, found = files.read_tensors(path), files.view_tensors(path)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == (np.int64 if name == 'ids' else files.STORAGE_DTYPES[dtype])
        assert value.shape == expected[name].shape
        assert not value.flags.writeable and not value.flags.owndata
        np.testing.assert_array_equal(value.astype(np.float32), expected[name])
    if path.suffix == '.safetensors':
        assert files.view_tensors(path, lambda name: name == 'scalar').keys() == {'scalar'}


def test_another_split_leaves_nothing_of_the_old_one(tmp_path):
    path = tmp_path / f'{STEM}.safetensors'
    files.write_tensors(path, some_tensors(), max_shard_bytes=200)
    files.write_tensors(path, some_tensors())
    assert os.listdir(tmp_path) == [path.name]
    files.write_tensors(path, some_tensors(), max_shard_bytes=200)
    assert path.name not in os.listdir(tmp_path)


def test_a_failed_write_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    files.write_tensors(path, some_tensors())
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'save_file', full)
    with pytest.raises(WeightsError, match='x.safetensors could not be written: the disk is full; make room') as error:
        files.write_tensors(path, {'other': np.zeros(2, np.float32)})
    assert one_sentence(error)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['x.safetensors']


@pytest.mark.parametrize('options', [{}, {'max_shard_bytes': 200}], ids=['whole', 'sharded'])
def test_what_a_killed_write_left_goes_with_the_next(options, tmp_path, monkeypatch):
    def kill(*arguments):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(files.os, 'replace', kill)
        patched.setattr(files.disk, 'unfinished', contextlib.nullcontext)
        with pytest.raises(SystemExit):
            files.write_tensors(tmp_path / 'x.safetensors', some_tensors(), **options)
    assert os.listdir(tmp_path) and all(name.endswith('.part') for name in os.listdir(tmp_path))
    written = files.write_tensors(tmp_path / 'x.safetensors', some_tensors(), **options)
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in written)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (lambda whole: whole[:-7], 'is no complete safetensors file'),
        (lambda whole: whole[:20], 'is no complete safetensors file'),
        (lambda whole: b'', r'\(0 bytes\) is no complete safetensors file'),
        (lambda whole: b'<html>not found</html>', 'is no complete safetensors file'),
        (lambda whole: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS pointer.*git lfs pull'),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, content, reason):
    path = tmp_path / 'x.safetensors'
    files.write_tensors(path, some_tensors())
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(WeightsError, match=f'x.safetensors.*{reason}') as error:
        files.read_tensors(path)
    assert one_sentence(error)


@pytest.mark.parametrize('name', [f'{STEM}.bin', 'model.ckpt', 'model.pt'])
def test_pickled_files_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b'not even a pickle')
    for attempt in (lambda: files.read_tensors(tmp_path / name), lambda: files.find_weights(tmp_path, STEM)):
        with pytest.raises(WeightsError, match=f'{name} is a pickled checkpoint.*convert it to safetensors') as error:
            attempt()
        assert one_sentence(error)


def test_missing_weights_name_what_is_there(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(WeightsError, match=f'{STEM}.safetensors is missing .the folder holds config.json') as error:
        files.find_weights(tmp_path, STEM)
    assert one_sentence(error)
    with pytest.raises(WeightsError, match='there is no such folder'):
        files.find_weights(tmp_path / 'unet', STEM)
    with pytest.raises(WeightsError, match='none.safetensors does not exist'):
        files.read_tensors(tmp_path / 'none.safetensors')


def test_full_precision_comes_before_its_variants(tmp_path):
    for name in (f'{STEM}.fp16.safetensors', f'{STEM}.non_ema.safetensors'):
        (tmp_path / name).touch()
    assert files.find_weights(tmp_path, STEM).name == f'{STEM}.fp16.safetensors'
    (tmp_path / f'{STEM}.safetensors.index.json').touch()
    assert files.find_weights(tmp_path, STEM).name == f'{STEM}.safetensors.index.json'
    (tmp_path / f'{STEM}.safetensors').touch()
    assert files.find_weights(tmp_path, STEM).name == f'{STEM}.safetensors'


def broken_index(tmp_path, change):
    files.write_tensors(tmp_path / 'm.safetensors', some_tensors(), max_shard_bytes=200)
    index = tmp_path / 'm.safetensors.index.json'
    content = json.loads(index.read_text())
    change(content['weight_map'])
    index.write_text(json.dumps(content))
    return index


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda m: m.update({'layer.0.weight': 'm-00009-of-00003.safetensors'}), 'needs m-00009-of-00003.safetensors'),
        (lambda m: m.update({'layer.0.weight': '../secret.safetensors'}), 'names ../secret.safetensors'),
        (
            lambda m: m.update({'layer.0.weight': 'm.safetensors.index.json'}),
            'names m.safetensors.index.json, no .safe',
        ),
        (lambda m: m.update({'layer.0.weight': '..'}), 'names .., no .safetensors file beside it'),
        (lambda m: m.pop('layer.0.weight'), r'disagree .*\(layer.0.weight\)'),
        (lambda m: m.update({'layer.9.weight': m['layer.0.weight']}), r'disagree .*\(layer.9.weight\)'),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_one_sentence(tmp_path, change, reason):
    index = broken_index(tmp_path, change)
    with pytest.raises(WeightsError, match=reason) as error:
        files.read_tensors(index)
    assert one_sentence(error)


def test_an_unreadable_index_is_one_sentence(tmp_path):
    index = tmp_path / 'm.safetensors.index.json'
    for content in (
        '{"weight_map": ',
        '[]',
        '{}',
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3, "b": "c"}}',
        '[' * 10**5,
    ):
        index.write_text(content)
        with pytest.raises(WeightsError, match='is no readable index of shards') as error:
            files.read_tensors(index)
        assert one_sentence(error)


def test_unknown_storage_dtype_is_named(tmp_path):
    with pytest.raises(WeightsError, match="dtype is 'int8'; .*'float32', 'float16', 'bfloat16'"):
        files.write_tensors(tmp_path / 'x.safetensors', some_tensors(), dtype='int8')
