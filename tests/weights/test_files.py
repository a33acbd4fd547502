"""safetensors files: dtypes, shards, damage, refusals, and writing all or nothing."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError

STEM = 'diffusion_pytorch_model'


def some_tensors():
    draw = np.random.default_rng(0)
    tensors = {f'layer.{i}.weight': draw.normal(size=(4, 5)).astype(np.float32) for i in range(5)}
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
    for content in ('{"weight_map": ', '[]', '{}', '{"weight_map": 3}'):
        index.write_text(content)
        with pytest.raises(WeightsError, match='is no readable index of shards') as error:
            files.read_tensors(index)
        assert one_sentence(error)


def test_unknown_storage_dtype_is_named(tmp_path):
    with pytest.raises(WeightsError, match="dtype is 'int8'; .*'float32', 'float16', 'bfloat16'"):
        files.write_tensors(tmp_path / 'x.safetensors', some_tensors(), dtype='int8')
