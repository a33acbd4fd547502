"""Encoders are read from the folders and hub ids that people have; what cannot be read is refused in one sentence."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreambooth_jax.weights import encoder_folders, files
from dreambooth_jax.weights.encoder_folders import IMAGE, TEXT, read_encoder, read_lpips, usual_encoders
from dreambooth_jax.weights.errors import WeightsError
from tests.support import lpips_reference, tiny_encoders

COMMIT = 'a' * 40


def test_the_usual_encoders_are_the_shipped_ones_for_the_shipped_model_and_else_those_of_the_paper():
    paper = {'dino': 'facebook/dino-vits16', 'clip': 'openai/clip-vit-base-patch32'}
    assert usual_encoders(False) == {**paper, 'dinov2': 'facebook/dinov2-small'}
    shipped = usual_encoders(True)
    assert shipped == {**usual_encoders(False), 'dino': 'storybook-dino', 'clip': 'storybook-clip'}
    assert read_encoder(shipped['dino']).networks.keys() == {IMAGE}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """{name: its folder}; not to be changed by a test."""
    root = tmp_path_factory.mktemp('encoders')
    return {name: tiny_encoders.write(name, root / name) for name in ('dino', 'clip', 'clip_vision', 'clip_text')}


@pytest.fixture
def copy(written, tmp_path):
    return lambda name: shutil.copytree(written[name], tmp_path / name)


def fails(match, name, **options):
    with pytest.raises(WeightsError, match=match) as error:
        read_encoder(name, **options)
    sentence = str(error.value)
    assert '\n' not in sentence and sentence.endswith('.')
    return sentence


def rewrite(folder, **changes):
    path = folder / 'config.json'
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    ('name', 'parts'),
    [('dino', (IMAGE,)), ('clip', (IMAGE, TEXT)), ('clip_vision', (IMAGE,)), ('clip_text', (TEXT,))],
)
def test_each_kind_has_its_networks(written, name, parts):
    read = read_encoder(written[name])
    assert tuple(read.networks) == parts
    assert read.kind == json.loads((written[name] / 'config.json').read_text())['model_type']
    assert read.tokenizer == (written[name] if TEXT in parts else None)


def test_every_tensor_of_a_whole_clip_is_used_by_one_of_its_networks(written):
    read = read_encoder(written['clip'])
    used = sum(value.size for network in read.networks.values() for value in network.params.values())
    stored = files.read_tensors(written['clip'] / 'model.safetensors')
    assert used + 1 == sum(value.size for value in stored.values())  # logit_scale is left over


def test_the_numbers_of_positions_in_old_files_are_left_out(copy, written):
    folder = copy('clip')
    tensors = files.read_tensors(folder / 'model.safetensors')
    for side, count in (('text', 20), ('vision', 17)):
        tensors[f'{side}_model.embeddings.position_ids'] = np.arange(count)[None]
    files.write_tensors(folder / 'model.safetensors', tensors)
    assert (
        read_encoder(folder).networks[IMAGE].params.keys()
        == read_encoder(written['clip']).networks[IMAGE].params.keys()
    )


def test_a_tensor_that_belongs_to_neither_side_of_a_whole_clip_is_named(copy):
    folder = copy('clip')
    tensors = files.read_tensors(folder / 'model.safetensors')
    for stray in ('text_model.adapter', 'vision_model.adapter', 'adapter'):
        files.write_tensors(folder / 'model.safetensors', {**tensors, stray: np.zeros(3, np.float32)})
        with pytest.raises(WeightsError) as error:
            read_encoder(folder)
        assert error.value.problems == (f'unused: {stray} [3]',)


def test_a_whole_clip_says_the_width_of_its_projections_outside(copy, written):
    """As OpenCLIP's bigG does, whose inner configurations say 512 although its embeddings have 1280 numbers."""
    folder = copy('clip')
    config = json.loads((folder / 'config.json').read_text())
    for side in ('text_config', 'vision_config'):
        config[side]['projection_dim'] = 99
        config[side]['num_hidden_layers'] = 99
        config[f'{side}_dict'] = {'num_hidden_layers': 2}  # old files say it here, with precedence
    rewrite(folder, **config)
    ours, plain = read_encoder(folder).networks, read_encoder(written['clip']).networks
    assert {part: network.config for part, network in ours.items()} == {p: n.config for p, n in plain.items()}


def test_shards_and_half_precision_are_read(copy, written):
    folder = copy('dino')
    tensors = files.read_tensors(folder / 'model.safetensors')
    files.write_tensors(folder / 'model.safetensors', tensors, dtype='float16', max_shard_bytes=20_000)
    assert not (folder / 'model.safetensors').exists() and len(list(folder.glob('*.safetensors'))) > 1
    ours, expected = read_encoder(folder).networks[IMAGE], read_encoder(written['dino']).networks[IMAGE]
    for key, value in ours.params.items():
        np.testing.assert_allclose(value, expected.params[key], atol=1e-3)


def test_unusable_folders_are_one_sentence(copy, tmp_path):
    folder = copy('clip')
    fails(
        r"config.json: model_type is 'bert'; give an encoder of one of \('vit', 'dinov2'",
        rewrite(folder, model_type='bert'),
    )
    fails(r'config.json: model_type is None', rewrite(folder, model_type=...))
    fails(r'config.json: model_type is \[\]', rewrite(folder, model_type=[]))
    rewrite(folder, model_type='clip', text_config_dict=[1])
    fails(r'config.json is not supported: text_config_dict is \[1\] but must be an object', folder)
    rewrite(folder, model_type='clip', vision_config=None)
    fails('config.json is not supported: vision_config is None but must be an object', folder)
    (folder / 'config.json').write_text('{')
    fails('config.json is no readable JSON', folder)
    (folder / 'config.json').unlink()
    fails(r'config.json is missing; give a folder \(with config.json and model.safetensors\) or a hub id', folder)
    folder = copy('dino')
    fails("is not supported: vit config: hidden_act is 'relu' but must be", rewrite(folder, hidden_act='relu'))
    rewrite(folder, hidden_act='gelu')
    (folder / 'model.safetensors').unlink()
    fails('model.safetensors is missing .the folder holds config.json', folder)
    folder = copy('clip_text')
    (folder / 'tokenizer_config.json').unlink()
    fails('holds an encoder of texts but no tokenizer_config.json; put the files of its tokenizer there', folder)
    fails(r"encoder '.*config.json' is a file; it must be a folder", folder / 'config.json')


def test_weights_of_another_model_are_listed(copy, written):
    folder = copy('dino')
    shutil.copy(written['clip_vision'] / 'model.safetensors', folder)
    with pytest.raises(WeightsError, match='does not fit this VisionTransformer') as error:
        read_encoder(folder)
    assert 'missing: encoder.layer.0.attention.attention.query.weight [32, 32]' not in error.value.problems
    assert 'unused: pre_layrnorm.weight [32]' not in error.value.problems
    assert 'unused: vision_model.pre_layrnorm.weight [32]' in error.value.problems
    assert 'missing: embeddings.patch_embeddings.projection.bias [32]' in error.value.problems


def test_a_clip_tower_without_projection_is_refused(copy):
    folder = copy('clip_vision')
    tensors = files.read_tensors(folder / 'model.safetensors')
    del tensors['visual_projection.weight']
    files.write_tensors(folder / 'model.safetensors', tensors)
    with pytest.raises(WeightsError) as error:
        read_encoder(folder)
    assert error.value.problems == ('missing: visual_projection.weight [24, 32]',)


def test_paths_that_are_wrong_are_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError('asked the hub')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'encoders').mkdir()
    for name in ('encoders/dino', './facebook/dino', 'dino', 'facebook/dino.safetensors'):
        fails(rf"^encoder '{re.escape(name)}' is not there; it must be a folder .* or a hub id", name)
    fails("revision 'v1' is given for the model '.*s', which is none of the hub", tmp_path / 'encoders', revision='v1')


@pytest.fixture
def cache(tmp_path, monkeypatch, written):
    """A real hub cache that holds owner/clip, and a client that may not use the network."""
    repository = tmp_path / 'hub' / 'models--owner--clip'
    shutil.copytree(written['clip'], repository / 'snapshots' / COMMIT)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(COMMIT)
    (repository / 'refs' / 'v1').write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    return repository / 'snapshots' / COMMIT


def test_hub_ids_are_read_from_the_cache(cache):
    for revision in (None, 'v1', COMMIT):
        assert read_encoder('owner/clip', revision=revision).folder == cache
    fails("model 'owner/clip' .* does not hold its revision 'v2'; download it first", 'owner/clip', revision='v2')
    fails("model 'owner/other' is no folder here, and the hub cannot be reached", 'owner/other')


def test_a_hub_model_without_safetensors_says_how_to_convert_it(cache):
    (cache / 'model.safetensors').unlink()
    sentence = fails("'owner/clip' on the hub has no model.safetensors, but perhaps pickled weights", 'owner/clip')
    assert command(sentence)[-2:] == ['owner/clip', 'converted']


REPOSITORY = (  # as openai/clip-vit-large-patch14 lists its files, and some of shards and variants
    '.gitattributes README.md config.json flax_model.msgpack merges.txt model.safetensors preprocessor_config.json '
    'pytorch_model.bin special_tokens_map.json tf_model.h5 tokenizer.json tokenizer_config.json vocab.json '
    'model.fp16.safetensors model-00001-of-00002.safetensors model.safetensors.index.json onnx/model.safetensors'
).split()


def test_only_what_is_read_is_downloaded(tmp_path, monkeypatch, written):
    asked = []

    def snapshot(name, *, allow_patterns, ignore_patterns, revision):
        patterns = {'allow_patterns': allow_patterns, 'ignore_patterns': ignore_patterns}
        asked.extend(huggingface_hub.utils.filter_repo_objects(REPOSITORY, **patterns))
        return str(written['clip'])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    read_encoder('openai/clip-vit-large-patch14')
    left_out = ('.md', '.gitattributes', '.msgpack', 'preprocessor_config.json', '.bin', '.h5', 'fp16.safetensors')
    assert asked == [file for file in REPOSITORY if not file.endswith(left_out) and '/' not in file]


def command(sentence):
    return shlex.split(re.search('`(.*)`', sentence)[1])


def pickle(folder):
    weights = folder / 'model.safetensors'
    torch.save(load_file(weights), folder / 'pytorch_model.bin')
    weights.unlink()
    return folder


def test_pickled_weights_are_refused(copy):
    folder = pickle(copy('dino'))
    sentence = fails('pytorch_model.bin is a pickled checkpoint, which can run any code when it is opened', folder)
    assert command(sentence)[:2] == ['python', '-c'] and command(sentence)[-2] == str(folder)
    assert 'ViTModel.from_pretrained(a)' in sentence and 'AutoTokenizer' not in sentence


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dino', 'clip', 'clip_vision', 'clip_text'])
def test_the_command_that_the_error_names_converts_pickled_weights(name, copy, written, tmp_path):
    folder = pickle(copy(name)).rename(tmp_path / "it's pickled")
    _, *arguments = command(fails('is a pickled checkpoint', folder))
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    ours, expected = read_encoder(tmp_path / 'converted').networks, read_encoder(written[name]).networks
    for part, network in expected.items():
        assert ours[part].config == network.config
        assert all(np.array_equal(ours[part].params[key], value) for key, value in network.params.items())


def test_lpips_is_read_from_one_file_and_pickles_of_it_are_refused(tmp_path):
    path = tmp_path / 'lpips.safetensors'
    stored = lpips_reference.package_names()
    files.write_tensors(path, {key: np.asarray(value, np.float32) for key, value in stored.items()})
    expected = lpips_reference.load(stored)
    assert all(np.array_equal(value, expected[key]) for key, value in read_lpips(path).params.items())
    for file, match in (
        ('alex.pth', r'alex.pth is a pickled checkpoint.*by `python -c "import lpips;.*`, and give that file\.$'),
        ('lpips.npz', r'lpips.npz is no .safetensors file; LPIPS is made into one by `python -c'),
        ('none.safetensors', 'none.safetensors does not exist'),
    ):
        with pytest.raises(WeightsError, match=match) as error:
            read_lpips(tmp_path / file)
        assert '\n' not in str(error.value)
    assert encoder_folders.read_lpips.__doc__.count('python -c') == 2
