"""What a model's name stands for: the built-in model, folders, runs and hub ids; no test reaches the network."""

import os
import shutil

import huggingface_hub
import pytest
from huggingface_hub import errors

from dreambooth_jax import storybook
from dreambooth_jax.config import BUILT_IN
from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.weights import hub, transformer_file
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.folders import common_folders
from tests.support import tiny_klein

COMMIT = 'a' * 40


def fails(match, name, **options):
    with pytest.raises(WeightsError, match=match) as error:
        read_pipeline(name, **options)
    assert '\n' not in str(error.value) and str(error.value).endswith('.')


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError('asked the hub')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)


def test_storybook_is_the_folder_of_the_package(monkeypatch, diffusers_folder, no_hub):
    assert storybook.storybook_folder().parts[-3:] == ('dreambooth_jax', 'storybook', 'pretrained')
    assert hub.BUILT_IN == BUILT_IN
    monkeypatch.setattr(hub, 'storybook_folder', lambda name: diffusers_folder)
    assert read_pipeline('storybook', components=()).folder == diffusers_folder


def test_a_model_is_called_by_its_name_and_not_by_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / 'hub' / 'models--Owner-x--model-1.5--b' / 'snapshots' / COMMIT
    named = {
        storybook.storybook_folder(): 'storybook',
        storybook.storybook_folder('storybook-flow'): 'storybook-flow',
        storybook.storybook_folder() / 'super_resolution': 'storybook',
        snapshot: 'Owner-x/model-1.5--b',
        tmp_path / 'runs' / 'dog' / 'model': 'dog',
        tmp_path / 'runs' / 'dog' / 'model' / 'super_resolution': 'dog',
        tmp_path / 'sd-v1.5': 'sd-v1.5',
        tmp_path / 'photo.v2.safetensors': 'photo.v2',
    }
    assert {folder: hub.name_of(folder) for folder in named} == named
    assert hub.name_of(None) is None and hub.name_of(type(tmp_path)('model')) == tmp_path.name


def test_storybook_that_is_not_installed_is_one_sentence(monkeypatch, tmp_path, no_hub):
    monkeypatch.setattr(hub, 'storybook_folder', lambda name: tmp_path)
    fails('the built-in model storybook-flow, is missing from this installation', 'storybook-flow')


def test_a_run_stands_for_the_model_it_exported(tmp_path, diffusers_folder, no_hub):
    run = tmp_path / 'dog'
    shutil.copytree(diffusers_folder, run / 'model')
    assert read_pipeline(run, components=()).folder == run / 'model'


def test_paths_that_are_wrong_are_not_looked_up_on_the_hub(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs' / 'empty').mkdir(parents=True)
    (tmp_path / 'model.safetensors').touch()
    (tmp_path / 'model.ckpt').touch()
    (tmp_path / 'model.onnx').touch()
    fails("model 'runs/dgo' is not there; it must be 'storybook', 'storybook-flow', a pipeline folder", 'runs/dgo')
    fails("model './owner/model' is not there", './owner/model')
    fails("model 'storybok' is not there", 'storybok')
    fails('runs/empty holds nothing but neither model_index.json nor', 'runs/empty')
    fails(r'model.safetensors \(0 bytes\) is no complete safetensors file', 'model.safetensors')
    fails("model 'nowhere/model.safetensors' is not there; it must be", 'nowhere/model.safetensors')
    fails("model 'model.onnx' is a file; it must be", 'model.onnx')
    fails('model.ckpt is a pickled checkpoint', 'model.ckpt')


@pytest.fixture
def cache(tmp_path, monkeypatch, diffusers_folder):
    """A real hub cache that holds owner/model, and a client that may not use the network."""
    repository = tmp_path / 'hub' / 'models--owner--model'
    shutil.copytree(diffusers_folder, repository / 'snapshots' / COMMIT)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    return repository


def test_hub_id_is_read_from_the_cache_without_network(cache):
    pipeline = read_pipeline('owner/model')
    assert pipeline.folder == cache / 'snapshots' / COMMIT
    assert pipeline.denoiser is not None and pipeline.super_resolution_folder is not None


def test_a_revision_of_a_hub_model_is_read(cache):
    other = 'b' * 40
    shutil.copytree(cache / 'snapshots' / COMMIT, cache / 'snapshots' / other)
    (cache / 'refs' / 'v1').write_text(other)
    for revision, commit in ((None, COMMIT), ('main', COMMIT), ('v1', other), (other, other)):
        folder = read_pipeline('owner/model', components=(), revision=revision).folder
        assert folder == cache / 'snapshots' / commit and hub.commit_of(folder) == commit
    fails(
        "model 'owner/model' is no folder here, .* its cache does not hold its revision 'v2'; download it first",
        'owner/model',
        revision='v2',
    )
    fails("revision 'v1' is given for the model '.*', which is none of the hub", cache, revision='v1')
    fails("the revision of the model 'owner/model' is empty; give a branch", 'owner/model', revision='')


def test_hub_id_that_is_not_cached_is_one_sentence_offline(cache):
    fails("model 'owner/other' is no folder here, and the hub cannot be reached", 'owner/other')


@pytest.mark.parametrize(
    ('error', 'match'),
    [
        (errors.GatedRepoError, 'is behind a licence; accept it on https://huggingface.co/owner/model and log in'),
        (errors.RepositoryNotFoundError, 'is neither a folder here nor a model on the hub that you may see'),
        (errors.LocalEntryNotFoundError, 'the hub cannot be reached'),
        (OSError, 'could not be downloaded: broken; try again'),
    ],
)
def test_hub_errors_are_one_sentence(tmp_path, monkeypatch, error, match):
    monkeypatch.chdir(tmp_path)

    def fail(*arguments, **options):
        if issubclass(error, errors.HfHubHTTPError):
            import httpx2

            raise error('broken', response=httpx2.Response(404, request=httpx2.Request('GET', 'https://x')))
        raise error('broken')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    fails(f"model 'owner/model' .*{match}", 'owner/model')


# As DeepFloyd's repositories list their files.
REPOSITORY = (
    'model_index.json',
    'README.md',
    'scheduler/scheduler_config.json',
    'tokenizer/spiece.model',
    'tokenizer/tokenizer_config.json',
    'unet/config.json',
    'unet/diffusion_pytorch_model.bin',
    'unet/diffusion_pytorch_model.fp16.bin',
    'unet/diffusion_pytorch_model.fp16.safetensors',
    'unet/diffusion_pytorch_model.safetensors',
    'text_encoder/config.json',
    'text_encoder/model-00001-of-00002.safetensors',
    'text_encoder/model.fp16-00001-of-00002.safetensors',
    'text_encoder/model.safetensors.index.fp16.json',
    'text_encoder/model.safetensors.index.json',
    'safety_checker/model.safetensors',
    'super_resolution/unet/diffusion_pytorch_model.safetensors',
    'watermarker/diffusion_pytorch_model.safetensors',
)


def downloaded(tmp_path, monkeypatch, repository, parts, **options):
    asked = []

    def snapshot(name, *, allow_patterns, ignore_patterns, revision):
        chosen = list(
            huggingface_hub.utils.filter_repo_objects(
                repository, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
        )
        for file in chosen:
            (tmp_path / 'snapshot' / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'snapshot' / file).touch()
        asked.append(set(chosen))
        return str(tmp_path / 'snapshot')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    hub.find('owner/model', folders=common_folders(FAMILIES) + parts, **options)
    return asked


def test_full_precision_safetensors_of_what_is_asked_for_are_downloaded(tmp_path, monkeypatch):
    (asked,) = downloaded(tmp_path, monkeypatch, REPOSITORY, ('unet', 'text_encoder'))
    assert asked == {
        file
        for file in REPOSITORY
        if not any(word in file for word in ('fp16', '.bin', 'README', 'safety', 'watermarker'))
    }


def test_networks_that_are_not_asked_for_are_not_downloaded(tmp_path, monkeypatch):
    (asked,) = downloaded(tmp_path, monkeypatch, REPOSITORY, ('unet',))
    assert not any(file.startswith('text_encoder') for file in asked)
    assert 'unet/diffusion_pytorch_model.safetensors' in asked


def test_of_a_network_whose_weights_are_elsewhere_only_the_configuration_is_downloaded(tmp_path, monkeypatch):
    (asked,) = downloaded(tmp_path, monkeypatch, REPOSITORY, ('unet', 'text_encoder'), without_weights=['unet'])
    assert {file for file in asked if file.startswith('unet/')} == {'unet/config.json'}
    assert 'text_encoder/model-00001-of-00002.safetensors' in asked


def test_a_file_of_the_transformer_is_looked_at_before_anything_is_downloaded(tmp_path, monkeypatch):
    """Then come the model's other networks, and of its transformer the configuration."""
    source, asked = tiny_klein.folder(), []

    def snapshot(name, *, allow_patterns, ignore_patterns, revision):
        listed = [str(path.relative_to(source)) for path in source.rglob('*') if path.is_file()]
        chosen = huggingface_hub.utils.filter_repo_objects(
            listed, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked.append(set(chosen))
        for file in asked[-1]:
            (tmp_path / 'snapshot' / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, tmp_path / 'snapshot' / file)
        return str(tmp_path / 'snapshot')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    fails('transformer_file is .*x.safetensors., which is no file', 'owner/model', transformer_file='x.safetensors')
    assert asked == [{'model_index.json'}]
    whole = read_pipeline(source)
    file = transformer_file.write(whole, tmp_path / 'x.safetensors')
    pipeline = read_pipeline('owner/model', transformer_file=file)
    assert pipeline.weights_hash == whole.weights_hash
    assert {file for file in asked[-1] if file.startswith('transformer/')} == {'transformer/config.json'}
    assert {'vae/config.json', 'text_encoder/model.safetensors'} < asked[-1] and len(asked) == 3


def test_half_precision_is_downloaded_where_there_is_nothing_else(tmp_path, monkeypatch):
    only_half = [file for file in REPOSITORY if file != 'unet/diffusion_pytorch_model.safetensors']
    first, second = downloaded(tmp_path, monkeypatch, only_half, ('unet',))
    assert second - first == {'unet/diffusion_pytorch_model.fp16.safetensors'}
    assert not any(file.endswith('.bin') for file in second)


def test_a_hub_model_that_is_no_pipeline_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match='has no model_index.json'):
        downloaded(tmp_path, monkeypatch, ['config.json'], ('unet',))
    assert not os.listdir(tmp_path)
