"""Pipeline folders: diffusers' read by us, ours opened by diffusers, one sentence for every folder that is wrong."""

import dataclasses
import json
import logging
import os
import shutil

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.weights import files, folders
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_networks as tiny
from tests.support.torch_reference import to_ours

TIED = ('encoder.embed_tokens.weight',)


@pytest.fixture
def copied(tmp_path, diffusers_folder):
    return shutil.copytree(diffusers_folder, tmp_path / 'copied')


@pytest.fixture(scope='module')
def pipelines(diffusers_folder):
    base = read_pipeline(diffusers_folder)
    return base, read_pipeline(base.super_resolution_folder)


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def fails(match, name, **options):
    with pytest.raises(WeightsError, match=match) as error:
        read_pipeline(name, **options)
    assert '\n' not in str(error.value) and str(error.value).endswith('.')


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_folder_saved_by_diffusers_is_read(pipelines, diffusers_folder):
    base, second = pipelines
    assert (base.class_name, second.class_name) == ('IFPipeline', 'IFSuperResolutionPipeline')
    assert equal(base.denoiser.params, to_ours(tiny.torch_unet()))
    assert equal(second.denoiser.params, to_ours(tiny.torch_unet(super_resolution=True)))
    assert equal(base.components['text_encoder'].params, to_ours(tiny.torch_text_encoder(), ignored=TIED))
    assert base.folder == diffusers_folder and base.tokenizers == {'text_encoder': diffusers_folder / 'tokenizer'}
    assert base.scheduler['variance_type'] == 'learned_range' and base.image_noising_scheduler is None
    assert second.image_noising_scheduler['variance_type'] == 'fixed_small'
    assert second.super_resolution_folder is None


def test_networks_that_were_read_compute_what_torch_computes(pipelines):
    base, _ = pipelines
    ids = np.arange(8, dtype=np.int32).reshape(1, 8)
    text = base.components['text_encoder'].apply(base.components['text_encoder'].params, ids)
    with torch.no_grad():
        expected = tiny.torch_text_encoder()(torch.from_numpy(ids).long()).last_hidden_state
    assert np.allclose(text, expected.numpy(), atol=1e-5)


@pytest.fixture(scope='module', params=[{}, {'max_shard_bytes': 60_000}], ids=['whole', 'sharded'])
def written(request, pipelines, tmp_path_factory):
    base, second = pipelines
    folder = tmp_path_factory.mktemp('written') / 'deep' / 'model'
    assert folders.write_pipeline(base, folder, super_resolution=second, **request.param) == folder
    return folder


def test_folder_written_by_us_is_opened_by_diffusers(written, caplog, capfd):
    for logger in ('diffusers', 'transformers'):
        logging.getLogger(logger).addHandler(caplog.handler)
    text_config = written / 'text_encoder'
    try:
        base = diffusers.IFPipeline.from_pretrained(written)
        second = diffusers.IFSuperResolutionPipeline.from_pretrained(written / 'super_resolution')
        _, report = diffusers.UNet2DConditionModel.from_pretrained(written / 'unet', output_loading_info=True)
        _, text_report = transformers.T5EncoderModel.from_pretrained(text_config, output_loading_info=True)
    finally:
        for logger in ('diffusers', 'transformers'):
            logging.getLogger(logger).removeHandler(caplog.handler)
    assert not any(report.values()) and not any(text_report.values())
    complaints = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert complaints == []

    for ours, theirs in (
        (base.unet, tiny.torch_unet()),
        (second.unet, tiny.torch_unet(True)),
        (base.text_encoder, tiny.torch_text_encoder()),
        (second.text_encoder, tiny.torch_text_encoder()),
    ):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert base.safety_checker is None and base.watermarker is None and not base.config.requires_safety_checker
    assert base.scheduler.config.variance_type == 'learned_range'
    assert second.image_noising_scheduler.config.beta_schedule == 'squaredcos_cap_v2'
    assert base.tokenizer('a sks dog').input_ids == second.tokenizer('a sks dog').input_ids


def test_folder_written_by_us_generates_an_image_in_diffusers(written):
    base = diffusers.IFPipeline.from_pretrained(written)
    base.set_progress_bar_config(disable=True)
    image = base('a sks dog', num_inference_steps=2, output_type='np', generator=torch.manual_seed(0)).images
    assert image.shape == (1, 8, 8, 3)


def test_folder_written_by_us_is_read_back_equal(written, pipelines):
    for pipeline, folder in zip(pipelines, (written, written / 'super_resolution'), strict=True):
        again = read_pipeline(folder)
        assert equal(again.denoiser.params, pipeline.denoiser.params)
        assert equal(again.components['text_encoder'].params, pipeline.components['text_encoder'].params)
        assert again.scheduler.items() >= pipeline.scheduler.items()


def test_nothing_is_left_beside_the_written_folder(written):
    assert os.listdir(written.parent) == ['model']
    assert sorted(os.listdir(written)) == [
        'model_index.json',
        'scheduler',
        'super_resolution',
        'text_encoder',
        'tokenizer',
        'unet',
    ]


def test_a_second_export_replaces_the_first_and_keeps_the_second_stage(pipelines, tmp_path):
    base, second = pipelines
    folder = folders.write_pipeline(base, tmp_path / 'model', super_resolution=second)
    doubled = {name: 2 * value for name, value in base.denoiser.params.items()}
    # Read from the folder that is replaced, as a run does that exports again.
    opened = read_pipeline(folder)
    changed = opened.with_components(unet=dataclasses.replace(opened.denoiser, params=doubled))
    folders.write_pipeline(changed, folder)
    again = read_pipeline(folder)
    assert equal(again.denoiser.params, doubled)
    assert again.super_resolution_folder is not None and again.tokenizers['text_encoder'].is_dir()
    assert os.listdir(tmp_path) == ['model']


def test_a_failed_export_replaces_nothing(pipelines, tmp_path, monkeypatch):
    base, _ = pipelines
    folder = folders.write_pipeline(base, tmp_path / 'model')
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob('*'))

    def full(*arguments, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'save_file', full)
    with pytest.raises(WeightsError, match=f'{folder}/unet/.* could not be written: the disk is full'):
        folders.write_pipeline(base, folder)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob('*')) == before
    assert os.listdir(tmp_path) == ['model']


def test_what_a_killed_export_left_is_removed_and_no_stage_is_lost(pipelines, tmp_path):
    base, second = pipelines
    folder = folders.write_pipeline(base, tmp_path / 'model', super_resolution=second)
    (tmp_path / '.model.part' / 'new' / 'unet').mkdir(parents=True)
    (tmp_path / '.model.part' / 'new' / 'unet' / 'config.json').write_text('{"half')
    folder.rename(tmp_path / '.model.old')  # killed between the two moves
    folders.write_pipeline(base, folder)
    assert os.listdir(tmp_path) == ['model'] and read_pipeline(folder / 'super_resolution').denoiser is not None
    assert sorted(path.name for path in (folder / 'unet').iterdir()) == [
        'config.json',
        'diffusion_pytorch_model.safetensors',
    ]


def test_export_never_replaces_a_folder_of_something_else(pipelines, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'dog.jpg').touch()
    for path in (tmp_path / 'photos', tmp_path / 'photos' / 'dog.jpg'):
        with pytest.raises(WeightsError, match=f'{path.name} exists and is no pipeline folder'):
            folders.write_pipeline(pipelines[0], path)
    assert os.listdir(tmp_path / 'photos') == ['dog.jpg']


def test_parameters_of_another_network_are_not_written(pipelines, tmp_path):
    base, second = pipelines
    mixed = base.with_components(unet=dataclasses.replace(base.denoiser, params=second.denoiser.params))
    with pytest.raises(WeightsError, match='class_embedding.linear_1.kernel'):
        folders.write_pipeline(mixed, tmp_path / 'model')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_folder(dtype, pipelines, tmp_path):
    base, _ = pipelines
    folder = folders.write_pipeline(base, tmp_path / 'model', dtype=dtype)
    again = read_pipeline(folder)
    for name, value in base.denoiser.params.items():
        found, rounded = again.denoiser.params[name], value.astype(dtype).astype(np.float32)
        narrow = dtype == 'bfloat16' and name.endswith('.kernel')  # the same values in half the memory
        assert found.dtype == ('bfloat16' if narrow else np.float32) and np.array_equal(found, rounded)
        assert found.flags.writeable and not isinstance(found.base, np.memmap)  # the file may be replaced


def test_only_what_is_asked_for_is_read(copied):
    shutil.rmtree(copied / 'text_encoder')
    pipeline = read_pipeline(copied, components=('unet',))
    assert 'text_encoder' not in pipeline.components and pipeline.denoiser is not None
    fails("components holds 'decoder'; it may hold", copied, components=('decoder',))
    fails('text_encoder/config.json is missing', copied)


def test_second_stage_without_text_encoder_is_written_and_opened(pipelines, tmp_path):
    second = dataclasses.replace(pipelines[1].with_components(text_encoder=None), tokenizers={})
    folder = folders.write_pipeline(second, tmp_path / 'model')
    assert not read_pipeline(folder).text_encoders
    opened = diffusers.IFSuperResolutionPipeline.from_pretrained(folder)
    assert opened.text_encoder is None and opened.tokenizer is None


def test_parameters_are_f32_whatever_the_compute_dtype(diffusers_folder):
    pipeline = read_pipeline(diffusers_folder, dtype=jnp.bfloat16, components=('text_encoder',))
    assert {value.dtype for value in pipeline.components['text_encoder'].params.values()} == {np.dtype(np.float32)}


def test_unknown_pipeline_class_is_named(copied):
    edit(copied / 'model_index.json', lambda index: index.update(_class_name='FluxKontextPipeline'))
    fails(
        "_class_name is 'FluxKontextPipeline'; this package reads IFPipeline and IFSuperResolutionPipeline and", copied
    )


def test_unsupported_configuration_is_named(copied):
    edit(copied / 'unet' / 'config.json', lambda config: config.update(act_fn='tanh'))
    fails("unet/config.json is not supported: .*act_fn is 'tanh'", copied)


def test_weights_of_another_configuration_list_every_tensor(copied):
    edit(copied / 'unet' / 'config.json', lambda config: config.update(addition_embed_type=None, layers_per_block=2))
    with pytest.raises(WeightsError, match='diffusion_pytorch_model.safetensors does not fit') as error:
        read_pipeline(copied)
    assert 'missing: down_blocks.0.resnets.1.conv1.weight [16, 16, 3, 3]' in error.value.problems
    assert 'unused: add_embedding.norm1.weight [24]' in error.value.problems


@pytest.mark.parametrize(
    ('missing', 'match'),
    [
        ('scheduler/scheduler_config.json', 'scheduler/scheduler_config.json is missing'),
        ('unet/config.json', 'unet/config.json is missing'),
        ('unet/diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.safetensors is missing'),
        ('super_resolution/image_noising_scheduler/scheduler_config.json', 'image_noising_scheduler/.* is missing'),
    ],
)
def test_missing_files_are_named(copied, missing, match):
    (copied / missing).unlink()
    fails(match, copied / 'super_resolution' if missing.startswith('super_resolution') else copied)


def test_missing_tokenizer_and_unreadable_json_are_named(copied):
    shutil.rmtree(copied / 'tokenizer')
    fails('tokenizer is missing although model_index.json names it', copied)
    for content, match in (('{"_class', 'no readable JSON'), ('[]', 'holds a JSON list but must hold an object')):
        (copied / 'model_index.json').write_text(content)
        fails(f'model_index.json .*{match}', copied)


def test_a_configuration_that_lies_outside_utf8_is_one_sentence(copied):
    (copied / 'unet' / 'config.json').write_bytes(b'\xff\xfe\x00')
    fails('unet/config.json is no readable JSON', copied)
