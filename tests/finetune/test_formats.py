"""What is written for other programs: what LoRA files say of themselves, and where the files of new words go."""

import dataclasses
import functools
import logging
import re

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.finetune import formats
from dreambooth_jax.finetune.trained import Trained
from dreambooth_jax.generation import new_words
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import files, transformer_file
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_files import Adapter
from dreambooth_jax.weights.pipeline import Network
from dreambooth_jax.weights.textual_inversion import write_textual_inversion
from tests.support import lora_clients, made_pipelines, tiny_flow, tiny_klein, tiny_latent_pipelines, tiny_pipelines
from tests.support import published_stable_diffusion as published

CONFIG = {
    'model': 'tiny',
    'data': {'instance_dir': 'photos', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'},
    'lora': {'rank': 1},
}
WORD = '<sks-dog>'


@functools.cache
def trained(family, prediction='epsilon'):
    """A run of a published model that trained two layers of the UNet, of which nothing else is there."""
    configs = published.CONFIGS[family]
    kernels = {
        'conv_in.kernel': np.zeros((3, 3, 4, 320), np.float32),
        'mid_block.attentions.0.proj_in.kernel': np.zeros((1280, 1280), np.float32),
    }
    networks = {
        component: Network(configs[component], None, kernels if component == 'unet' else {})
        for component in ('unet', 'vae', 'text_encoder', 'text_encoder_2')
        if component in configs
    }
    tokenizer = tiny_pipelines.tokenizer_folder()
    scheduler = {**configs['scheduler'], 'prediction_type': prediction}
    class_name = configs['model_index']['_class_name']
    base = made_pipelines.pipeline(class_name, scheduler=scheduler, tokenizer=tokenizer, **networks)
    params = {}
    for name, kernel in kernels.items():
        path = name.removesuffix('.kernel')
        params[f'{path}.lora_a'] = np.ones((*kernel.shape[:-1], 1), np.float32)
        params[f'{path}.lora_b'] = np.ones((1, kernel.shape[-1]), np.float32)
    adapters = {'base': Adapter({'unet': params}, 1, 1.0)}
    return Trained('run', resolve(DreamBoothConfig, CONFIG), Cascade(base), ('base',), adapters, [])


@pytest.mark.parametrize(
    ('family', 'prediction', 'version'),
    [('sd1', 'epsilon', 'sd_v1'), ('sd2', 'v_prediction', 'sd_v2_v'), ('sdxl', 'epsilon', 'sdxl_base_v1-0')],
)
def test_a_lora_file_says_which_model_it_is_of(family, prediction, version, tmp_path, caplog):
    run = trained(family, prediction)
    file = tmp_path / 'dog.safetensors'
    with caplog.at_level(logging.WARNING):
        assert list(formats.write(run, 'lora_kohya', file).values())[1:] == [f'{tmp_path / "dog.md"} is its model card']
    said = files.read_metadata(file)
    assert said['modelspec.description'].startswith('Adapters (LoRA) for tiny (licence unknown), which knows')
    assert (said['ss_base_model_version'], said['ss_v2']) == (version, str(family == 'sd2'))
    assert lora_clients.a1111_version(said) == family
    # Forge knows no Stable Diffusion 2, and shows it beside all.
    assert lora_clients.forge_version(said) == ('unknown' if family == 'sd2' else family)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} holds adapters of conv_in, which kohya's own scripts leave out without a word; ComfyUI, "
        f'AUTOMATIC1111, Forge, OneTrainer and diffusers read them'
    ]
    caplog.clear()
    formats.write(run, 'lora_peft', file)
    assert not any(key.startswith('ss_') for key in files.read_metadata(file)) and not caplog.records


@functools.cache
def with_word():
    """A run of a tiny model that has learned a word and two layers."""
    cascade = tiny_latent_pipelines.cascade('sd1')
    rows = {'text_encoder': np.ones((1, 32), np.float32)}
    learned = new_words.with_rows(cascade, (WORD,), rows, dtype=np.float32)
    path = 'mid_block.attentions.0.proj_in'
    *window, inputs, outputs = cascade.base.denoiser.params[f'{path}.kernel'].shape
    params = {
        f'{path}.lora_a': np.ones((*window, inputs, 1), np.float32),
        f'{path}.lora_b': np.ones((1, outputs), np.float32),
    }
    adapters = {'base': Adapter({'unet': params}, 1, 1.0)}
    return Trained('run', resolve(DreamBoothConfig, CONFIG), learned, ('base',), adapters, [])


def test_a_words_file_replaces_no_other(tmp_path):
    run, out = with_word(), tmp_path / 'dog.safetensors'
    path = tmp_path / 'sks-dog.safetensors'
    files.write_tensors(path, {'unet.x.lora_A.weight': np.ones((1, 1), np.float32)})
    sentence = (
        f'{path} is where the new word <sks-dog> goes, but holds something else; move it, or choose another folder '
        f'for --output'
    )
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        formats.write(run, 'lora_kohya', out)
    assert not out.exists() and set(files.read_header(path).shapes) == {'unet.x.lora_A.weight'}
    path.write_bytes(b'photo')
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        formats.write(run, 'lora_kohya', out)
    assert path.read_bytes() == b'photo'
    with pytest.raises(
        ConfigError, match=re.escape(f'--output={path} is where the new word <sks-dog> goes; choose another name')
    ):
        formats.write(run, 'lora_kohya', path)
    write_textual_inversion(path, WORD, {'text_encoder': np.zeros((1, 32), np.float32)})  # an earlier export's
    assert formats.write(run, 'lora_kohya', out)[path].startswith(f'{path} holds the new word <sks-dog>, read back')
    assert (files.read_tensors(path)[WORD] == 1).all()


@pytest.mark.parametrize('format', ['lora_peft', 'diffusers'])
def test_exports_into_one_folder_wait_for_each_other(hold, format, tmp_path, caplog):
    """Their temporary files have the same names, so two at once would end with half of each."""
    run, output = with_word(), tmp_path / ('dog.safetensors' if format == 'lora_peft' else 'dog')
    holder = hold(tmp_path, 0.5, formats.LOCK)
    with caplog.at_level(logging.WARNING):
        written = formats.write(run, format, output)
    assert holder.poll() is not None or holder.wait(5) == 0
    assert f'{tmp_path} is in use by process {holder.pid} on ' in caplog.text and 'waiting for it' in caplog.text
    assert written[output].endswith('read back and equal') and not (tmp_path / formats.LOCK).exists()


def of_a_transformer(**base):
    """A run of a tiny FLUX.2 Klein with these settings of its base stage."""
    cascade = Cascade.load(tiny_klein.folder(), size=tiny_klein.SIZE)
    settings = tiny_flow.settings(**base)
    data = dataclasses.replace(settings.data, instance_dir='photos')
    return Trained('run', dataclasses.replace(settings, data=data), cascade, ('base',), {}, [])


def test_of_a_transformer_a_single_file_holds_that_alone_and_says_what_it_is(tmp_path, caplog):
    run, file = of_a_transformer(), tmp_path / 'dog.safetensors'
    card = file.with_suffix('.md')
    assert formats.write(run, 'single_file', file, dtype='bfloat16') == {
        file: f'{file} holds 29 tensors, read back and equal',
        card: f'{card} is its model card',
    }
    card = card.read_text('utf-8')  # which does not take it for a whole model
    assert 'models/diffusion_models' in card and '--model_transformer_file=dog.safetensors' in card
    assert "Flux2Transformer2DModel.from_single_file('dog.safetensors'" in card
    assert {path.suffix for path in tmp_path.iterdir()} == {'.safetensors', '.md'} and not caplog.records
    said = {key.removeprefix('modelspec.'): value for key, value in files.read_metadata(file).items()}
    assert (said['architecture'], said['implementation'], said['resolution']) == (
        'flux-2-klein',
        'https://github.com/black-forest-labs/flux2',
        f'{tiny_klein.SIZE}x{tiny_klein.SIZE}',
    )
    assert 'prediction_type' not in said and said['hash_sha256'].startswith('0x')


def test_text_encoders_that_a_single_file_leaves_out_are_told(tmp_path, caplog):
    file = tmp_path / 'dog.safetensors'
    with caplog.at_level(logging.WARNING):
        formats.write(of_a_transformer(train_text_encoder=True), 'single_file', file)
    assert [record.getMessage() for record in caplog.records] == [
        f'{file} holds the transformer alone, but run has trained the text encoders too '
        f'(config.base.train_text_encoder), without which its images are others; export diffusers for the whole model'
    ]
    file.unlink()
    with pytest.raises(ConfigError) as error:
        formats.write(of_a_transformer(train_text_encoder=True, train_denoiser=False), 'single_file', file)
    assert str(error.value) == (
        '--format=single_file writes the transformer of this model alone, which run has not trained '
        '(config.base.train_denoiser is False); export diffusers'
    )
    assert not file.exists()


def test_a_file_of_a_transformer_that_differs_is_an_error(tmp_path, monkeypatch):
    write, run = transformer_file.write, of_a_transformer()
    network = run.cascade.base.denoiser
    first = next(iter(network.params))
    other = {**network.params, first: network.params[first] + 1}
    changed = run.cascade.with_params(base={'transformer': other}).base
    monkeypatch.setattr(transformer_file, 'write', lambda pipeline, *a, **k: write(changed, *a, **k))
    with pytest.raises(WeightsError, match=f'does not read back as written: transformer {re.escape(first)} differs'):
        formats.write(run, 'single_file', tmp_path / 'dog.safetensors')


def test_a_card_replaces_no_other_text_and_comes_before_no_file(tmp_path):
    run, out = with_word(), tmp_path / 'dog.safetensors'
    (tmp_path / 'dog.md').write_text('notes')
    with pytest.raises(ConfigError, match=r'dog.md is where the model card of --output=.*dog.safetensors goes, but'):
        formats.write(run, 'lora_kohya', out)
    assert [path.name for path in tmp_path.iterdir()] == ['dog.md'] and (tmp_path / 'dog.md').read_text() == 'notes'
    (tmp_path / 'dog.md').unlink()
    for _ in range(2):
        formats.write(run, 'lora_kohya', out)
    card = (tmp_path / 'dog.md').read_text()
    assert "weight_name='dog.safetensors'" in card and "'sks-dog.safetensors', token='<sks-dog>'" in card
