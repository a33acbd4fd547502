"""Single files as models: which tokenizer they get, what they predict, and what is said where that cannot be known."""

import shutil

import huggingface_hub
import numpy as np
import pytest

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights import files, folders, single_file, tokenizer_folders
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_latent_pipelines
from tests.support.layouts import LAYOUTS


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A hub that cannot be reached and has never been."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def ids(folder):
    return Tokenizer.load(folder)(['a dog'])[0]


@pytest.fixture
def written(tmp_path):
    """A folder with a tokenizer/ that pads with the end token."""
    shutil.copytree(tiny_latent_pipelines.folder('sd1') / 'tokenizer', tmp_path / 'tokenizer')
    return tmp_path


def test_one_tokenizer_beside_the_file_pads_as_each_family_does(written):
    """Only what fills up differs: 49 is the end token, 0 is '!'."""
    for family, pads in {'sd1': (49,), 'sd2': (0,), 'sdxl': (49, 0), 'upscaler': (0,)}.items():
        found = tokenizer_folders.find(written / 'x.safetensors', LAYOUTS[family])
        assert tuple(found) == ('tokenizer', 'tokenizer_2')[: len(pads)]
        for folder, pad in zip(found.values(), pads, strict=True):
            (row,) = ids(folder)
            end = list(row).index(49)
            assert list(row[:end]) == list(ids(written / 'tokenizer')[0][:end]) and set(row[end + 1 :]) == {pad}
    assert tokenizer_folders.find(written / 'x.safetensors', LAYOUTS['sd1']) == {'tokenizer': written / 'tokenizer'}


def test_a_second_tokenizer_beside_the_file_is_taken(written):
    shutil.copytree(tiny_latent_pipelines.folder('sdxl') / 'tokenizer_2', written / 'tokenizer_2')
    found = tokenizer_folders.find(written / 'x.safetensors', LAYOUTS['sdxl'])
    assert found == {name: written / name for name in ('tokenizer', 'tokenizer_2')}


def test_the_folder_that_is_given_comes_first(written, tmp_path, no_cache):
    file = tmp_path / 'models' / 'x.safetensors'
    assert tokenizer_folders.find(file, LAYOUTS['sd1'], written) == {'tokenizer': written / 'tokenizer'}
    with pytest.raises(WeightsError) as error:
        tokenizer_folders.find(file, LAYOUTS['sd1'], tmp_path / 'models')
    assert str(error.value) == (
        f"tokenizer_dir is '{tmp_path / 'models'}', which holds no tokenizer/ folder; give one that does."
    )
    with pytest.raises(WeightsError, match=r'^tokenizer_dir is .* is a folder, which holds its own; leave it out\.$'):
        read_pipeline(tiny_latent_pipelines.folder('sd1'), components=(), tokenizer_dir=written)


def test_without_a_tokenizer_and_without_the_hub_it_is_one_sentence(tmp_path, no_cache):
    file = tmp_path / 'x.safetensors'
    with pytest.raises(WeightsError) as error:
        tokenizer_folders.find(file, LAYOUTS['sd1'])
    assert str(error.value) == (
        f'{file} is a single file, which holds no tokenizer, and {tmp_path} has no tokenizer/ folder to take one from; '
        f'put one there, or say where one is by tokenizer_dir (setting and flag model_tokenizer_dir); the published '
        f"one could not be had: model 'openai/clip-vit-large-patch14' is no folder here, and the hub cannot be reached "
        f'and its cache does not hold it; download it first.'
    )


@pytest.mark.parametrize(
    'family',
    ['sdxl', *(pytest.param(one, marks=pytest.mark.slow) for one in tiny_latent_pipelines.FAMILIES if one != 'sdxl')],
)
def test_a_single_file_is_read_as_the_folder_that_it_was_made_of(family, written):
    made = read_pipeline(tiny_latent_pipelines.folder(family))
    if family == 'upscaler':  # the tiny one has the schedule of Stable Diffusion, which a file cannot tell
        made.scheduler.update(beta_start=0.0001, beta_end=0.02)
    file = single_file.write_pipeline(made, written / 'x.safetensors')
    read = read_pipeline(file)
    assert (read.class_name, read.size, read.folder) == (made.class_name, made.size, file)
    for component in made.family.networks:
        ours, theirs = read.components[component].params, made.components[component].params
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert read.scheduler['prediction_type'] == made.scheduler['prediction_type']
    assert {name: read.option(name) for name in made.family.options if name != 'requires_safety_checker'} == {
        name: made.option(name) for name in made.family.options if name != 'requires_safety_checker'
    }
    again = read_pipeline(folders.write_pipeline(read, written / 'folder'), components=())
    assert all((folder / 'tokenizer_config.json').is_file() for folder in again.tokenizers.values())


def test_networks_that_are_not_asked_for_are_not_read_from_the_file(written, monkeypatch):
    made = read_pipeline(tiny_latent_pipelines.folder('sd2'))
    file = single_file.write_pipeline(made, written / 'x.safetensors')
    header = files.read_header(file)
    monkeypatch.setattr(files, 'read_header', lambda path: header._replace(metadata={}))  # does not say: epsilon or v
    view_tensors, asked = files.view_tensors, []

    def read(path, wanted):
        tensors = view_tensors(path, wanted)
        asked.append(tensors)
        return tensors

    monkeypatch.setattr(files, 'view_tensors', read)
    pipeline = read_pipeline(file, components=('text_encoder',))
    assert pipeline.components.keys() == {'text_encoder'}
    theirs, ours = (one.components['text_encoder'].params for one in (pipeline, made))
    assert theirs.keys() == ours.keys()
    assert all(name.startswith('cond_stage_model.') for name in asked[0])
    with pytest.raises(WeightsError, match='does not say what it predicts; give prediction_type'):
        read_pipeline(file)
    for kind in ('epsilon', 'v_prediction'):
        assert read_pipeline(file, prediction_type=kind).scheduler['prediction_type'] == kind


def test_what_a_folder_predicts_can_be_said_too():
    folder = tiny_latent_pipelines.folder('sd1')
    assert read_pipeline(folder, components=()).scheduler['prediction_type'] == 'epsilon'
    other = read_pipeline(folder, components=(), prediction_type='v_prediction')
    assert other.scheduler['prediction_type'] == 'v_prediction'


def test_a_pipeline_that_a_single_file_cannot_hold_is_one_sentence(tmp_path):
    made = read_pipeline(tiny_latent_pipelines.folder('sd1'))

    def fails(sentence, pipeline):
        file = tmp_path / 'x.safetensors'
        with pytest.raises(WeightsError) as error:
            single_file.write_pipeline(pipeline, file)
        assert str(error.value) == sentence and list(tmp_path.iterdir()) == []

    fails(
        f'{made.name} has no vae, but a single file holds a whole Stable Diffusion model; write a pipeline folder.',
        read_pipeline(made.folder, components=('unet', 'text_encoder')),
    )
    made.scheduler['beta_end'] = 0.02
    fails(
        f'{tmp_path}/x.safetensors cannot hold this model: the beta_end of its scheduler is 0.02, but a single file '
        f'does not say so and Stable Diffusion 1.x has 0.012; write a pipeline folder.',
        made,
    )
    made.scheduler['beta_end'] = 0.012
    made.denoiser.config['attention_head_dim'] = 4
    fails(
        f'{tmp_path}/x.safetensors cannot hold this model: the attention_head_dim of its unet is (4, 4), but a '
        f'single file does not say so and Stable Diffusion 1.x has (8, 8); write a pipeline folder.',
        made,
    )
