"""Folders of every Stable Diffusion family: diffusers' read by us, ours opened by diffusers, and old ones."""

import functools
import json
import logging
import shutil
import tempfile
from pathlib import Path

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dreambooth_jax.families import reading
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import files, folders
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_latent_pipelines as tiny
from tests.support import tiny_stable_diffusion
from tests.support.torch_reference import to_ours

_ROOT = tempfile.TemporaryDirectory(prefix='written_latent_pipelines_')
FAMILIES = tiny.FAMILIES
SHARDED = dict(dtype='float16', max_shard_bytes=300_000)
CLASSES = {
    'unet': diffusers.UNet2DConditionModel,
    'vae': diffusers.AutoencoderKL,
    'text_encoder': transformers.CLIPTextModel,
    'text_encoder_2': transformers.CLIPTextModelWithProjection,
}
PROMPT = 'a sks dog!'


@functools.cache
def read(family):
    return reading.read_pipeline(tiny.folder(family))


@functools.cache
def written(family, **options):
    folder = Path(_ROOT.name) / '-'.join([family, *map(str, options.values())])
    return folders.write_pipeline(read(family), folder, **options)


def theirs(family):
    """{component: {our name: array}} of diffusers' networks, by a translation that knows nothing of ours."""
    found = {}
    for component, module in tiny_stable_diffusion.networks(family).items():
        outer = component == 'text_encoder' and not hasattr(module, 'text_model')
        found[component] = {f'text_model.{name}' if outer else name: v for name, v in to_ours(module).items()}
    return found


def index_of(folder):
    return json.loads((folder / 'model_index.json').read_text())


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)


@pytest.mark.parametrize('family', FAMILIES)
def test_folder_saved_by_diffusers_is_read(family):
    for component, expected in theirs(family).items():
        assert_equal(getattr(read(family), component).params, expected)


@pytest.mark.parametrize(('family', 'options'), [*((family, {}) for family in FAMILIES), ('sdxl', SHARDED)])
def test_folder_written_by_us_is_opened_by_diffusers(family, options, caplog, capfd):
    folder, original = written(family, **options), tiny.torch_pipeline(family)
    for logger in ('diffusers', 'transformers'):
        logging.getLogger(logger).addHandler(caplog.handler)
    try:
        opened = type(original).from_pretrained(folder, local_files_only=True)
        reports = {
            component: CLASSES[component].from_pretrained(folder / component, output_loading_info=True)[1]
            for component in tiny_stable_diffusion.networks(family)
        }
    finally:
        for logger in ('diffusers', 'transformers'):
            logging.getLogger(logger).removeHandler(caplog.handler)
    assert not any(problem for report in reports.values() for problem in report.values()), reports
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    for component, network in tiny_stable_diffusion.networks(family).items():
        ours, expected = getattr(opened, component).state_dict(), network.state_dict()
        assert ours.keys() == expected.keys()
        dtype = getattr(torch, options.get('dtype', 'float32'))
        assert all(torch.equal(tensor.float(), expected[name].to(dtype).float()) for name, tensor in ours.items())
    assert index_of(folder).items() >= index_of(tiny.folder(family)).items()
    for component in ('scheduler', 'low_res_scheduler'):
        if hasattr(original, component):
            ours, expected = (dict(getattr(pipe, component).config) for pipe in (opened, original))
            expected.pop('_use_default_values', None)  # diffusers' own note
            assert ours.items() >= expected.items()
    for tokenizer in ('tokenizer', 'tokenizer_2'):
        if hasattr(original, tokenizer):
            ids, expected = (
                getattr(pipe, tokenizer)(PROMPT, padding='max_length').input_ids for pipe in (opened, original)
            )
            assert ids == expected


@pytest.mark.parametrize(('family', 'options'), [('sd1', {}), ('upscaler', {}), ('sdxl', SHARDED)])
def test_folder_written_by_us_is_read_back_equal(family, options):
    pipeline, again = read(family), reading.read_pipeline(written(family, **options))
    for component in pipeline.family.networks:
        rounded = {
            name: np.asarray(jnp.asarray(value, options.get('dtype', 'float32')), np.float32)
            for name, value in getattr(pipeline, component).params.items()
        }
        assert_equal(getattr(again, component).params, rounded)
    assert again.scheduler == pipeline.scheduler and again.options == pipeline.options
    assert again.image_noising_scheduler == pipeline.image_noising_scheduler
    assert again.text_encoders.keys() == again.tokenizer_folders.keys()


def test_large_networks_are_split_and_halved():
    folder = written('sdxl', **SHARDED) / 'unet'
    assert (folder / 'diffusion_pytorch_model.safetensors.index.json').is_file()
    assert len(list(folder.glob('*.safetensors'))) > 3
    whole = written('sdxl') / 'unet' / 'diffusion_pytorch_model.safetensors'
    halves = sum(path.stat().st_size for path in folder.glob('*.safetensors'))
    assert halves < 0.6 * whole.stat().st_size


def published(stem):
    """Gives a network's file the names that the models were published with."""
    path = stem.with_suffix('.safetensors')
    tensors = files.read_tensors(path)
    names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    if stem.parent.name == 'vae':
        assert all(any(f'attentions.0.{new}.' in name for name in tensors) for new in names)
        for new, old in names.items():
            tensors = {name.replace(f'attentions.0.{new}.', f'attentions.0.{old}.'): v for name, v in tensors.items()}
    else:
        tensors = {name if name.startswith('text_') else f'text_model.{name}': v for name, v in tensors.items()}
        tensors['text_model.embeddings.position_ids'] = np.arange(20)[None]
    files.write_tensors(path, tensors, dtype='float32')


@pytest.mark.parametrize('family', ['sd1', 'sdxl'])
def test_folder_with_the_published_names_is_read(family, tmp_path):
    folder = shutil.copytree(tiny.folder(family), tmp_path / family)
    components = ('vae', *read(family).text_encoders)
    for component in components:
        published(folder / component / ('diffusion_pytorch_model' if component == 'vae' else 'model'))
    again = reading.read_pipeline(folder, components=components)
    for component in components:
        assert_equal(getattr(again, component).params, getattr(read(family), component).params)


@pytest.mark.parametrize(
    ('family', 'missing'),
    [
        ('sd1', 'vae/config.json'),
        ('sdxl', 'text_encoder_2/config.json'),
        ('upscaler', 'low_res_scheduler/scheduler_config.json'),
    ],
)
def test_a_missing_file_is_named(family, missing, tmp_path):
    folder = shutil.copytree(tiny.folder(family), tmp_path / family)
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=rf'{folder / missing} is missing; .*\.$') as error:
        reading.read_pipeline(folder)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('family', 'absent'), [('sd1', 'vae'), ('sdxl', 'tokenizer_2')])
def test_a_folder_that_names_a_component_as_absent_is_no_complete_model(family, absent, tmp_path):
    folder = shutil.copytree(tiny.folder(family), tmp_path / family)
    shutil.rmtree(folder / absent)
    (folder / 'model_index.json').write_text(json.dumps({**index_of(folder), absent: [None, None]}))
    with pytest.raises(WeightsError, match=rf'^{folder} has no {absent}; give a complete pipeline\.$'):
        Cascade.load(folder)
