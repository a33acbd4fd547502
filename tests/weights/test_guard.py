"""One guard for folders and single files: what diffusers reads is read, everything else is one sentence."""

import json
import random
import shutil

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.pipelines import auto_pipeline

from dreambooth_jax.families.family import FAMILIES, of_class
from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import folders, guard, original_configs
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import network_tensors
from tests.support import bent_folders, smallest_pipelines, tiny_latent_pipelines
from tests.support import published_stable_diffusion as published
from tests.support import tiny_networks as tiny
from tests.support.reports import sentence_of
from tests.support.tiny_stable_diffusion import CONFIGS, folder_configs

SD, XL = 'StableDiffusionPipeline', 'StableDiffusionXLPipeline'
IF, IF_SECOND = 'IFPipeline', 'IFSuperResolutionPipeline'
CLASS_OF = {'sd1': SD, 'sd2': SD, 'sdxl': XL, 'upscaler': 'StableDiffusionUpscalePipeline'}
PIXELS = {'unet': tiny.UNET, 'text_encoder': tiny.TEXT_ENCODER}
SECOND = {'unet': tiny.SUPER_RESOLUTION_UNET, 'text_encoder': tiny.TEXT_ENCODER}


VARIANT = 'x is a variant of {} that takes {} channels (inpainting, editing or depth), but {} are supported'


def bent(tmp_path, kind, file, **changes):
    """A copy of a smallest pipeline with some keys of one file changed."""
    folder = bent_folders.copied(smallest_pipelines.folder(kind), tmp_path / 'bent')
    for key, value in changes.items():
        bent_folders.bend(folder / file, key, value)
    return folder


@pytest.mark.parametrize('class_name', [SD, 'StableDiffusionInpaintPipeline', 'StableDiffusionInstructPix2PixPipeline'])
def test_a_unet_of_more_channels_gives_the_sentence_of_a_single_file(tmp_path, class_name):
    folder = bent(tmp_path, 'latents', 'unet/config.json', in_channels=9)
    bent_folders.bend(folder / 'model_index.json', '_class_name', class_name)
    said = sentence_of(read_pipeline, folder)
    assert said == sentence_of(guard.check_channels, str(folder), 'Stable Diffusion', 9, 4)
    assert said == f'{folder} {VARIANT[2:].format("Stable Diffusion", 9, 4)}; give the plain model.'
    shapes = {
        'model.diffusion_model.input_blocks.0.0.weight': (320, 9, 3, 3),
        'first_stage_model.quant_conv.weight': (8, 8, 1, 1),
        'cond_stage_model.transformer.text_model.final_layer_norm.weight': (768,),
    }
    single = sentence_of(original_configs.detect, shapes, ORIGINALS, source=str(folder))
    assert single == said.replace('Stable Diffusion', 'Stable Diffusion 1.x')


@pytest.mark.parametrize('family', CONFIGS)
def test_networks_of_every_family_pass(family):
    guard.check_networks(of_class(CLASS_OF[family]), folder_configs(family), 'x')


@pytest.mark.parametrize('family', published.CONFIGS)
def test_published_models_pass(family):
    configs = dict(published.CONFIGS[family])
    index, kind = guard.checked_index(configs.pop('model_index'), 'x', FAMILIES)
    for name in [name for name in configs if 'scheduler' in name]:
        guard.check_schedule(configs.pop(name), 'x')
    own = {name: guard.own_config(name, config, index[name][1]) for name, config in configs.items()}
    guard.check_networks(kind, own, 'x')


def test_networks_of_deepfloyd_if_pass():
    guard.check_networks(of_class(IF), PIXELS, 'x')
    guard.check_networks(of_class(IF_SECOND), SECOND, 'x')


def test_classes_that_diffusers_reads_as_the_plain_one_are_read():
    families = {'stable-diffusion': SD, 'stable-diffusion-xl': XL, 'if': IF, 'lcm': SD}
    mappings = [
        getattr(auto_pipeline, f'AUTO_{task}_PIPELINES_MAPPING') for task in ('TEXT2IMAGE', 'IMAGE2IMAGE', 'INPAINT')
    ]
    known = {}
    for mapping in mappings:
        for name, kind in mapping.items():
            plain = name.removesuffix('-pag').removesuffix('-union').removesuffix('-controlnet')
            if plain in families:
                known[kind.__name__] = families[plain]
    assert len(known) > 20
    plain = {name: kind.class_name for kind in FAMILIES for name in (kind.class_name, *kind.also_saved_as)}
    assert {name: plain.get(name) for name in known} == known
    others = set(plain) - set(known)
    not_made = {'StableDiffusionControlNetPAGImg2ImgPipeline', 'StableDiffusionXLControlNetPAGInpaintPipeline'}
    assert {name for name in others if not hasattr(diffusers, name)} == not_made


@pytest.mark.parametrize(
    ('kind', 'stored', 'plain'),
    [
        ('latents', 'StableDiffusionImg2ImgPipeline', SD),
        ('latents', 'StableDiffusionInpaintPipeline', SD),
        ('pixels', 'IFInpaintingPipeline', IF),
    ],
)
def test_a_pipeline_saved_for_another_task_is_read_and_written_as_the_plain_one(tmp_path, kind, stored, plain):
    folder = bent(tmp_path, kind, 'model_index.json', _class_name=stored)
    pipeline = read_pipeline(folder)
    expected = read_pipeline(smallest_pipelines.folder(kind))
    assert pipeline.class_name == plain
    weights = expected.denoiser.params
    assert all(np.array_equal(pipeline.denoiser.params[name], value) for name, value in weights.items())
    written = folders.write_pipeline(pipeline, tmp_path / 'written')
    assert json.loads((written / 'model_index.json').read_text())['_class_name'] == plain


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (
            {'_class_name': 'FluxKontextPipeline'},
            "_class_name is 'FluxKontextPipeline'; this package reads IFPipeline and",
        ),
        ({'_class_name': 'SanaPipeline'}, "_class_name is 'SanaPipeline'; this"),
        ({'_class_name': 'AltDiffusionPipeline'}, "_class_name is 'AltDiffusionPipeline'; this"),
        ({'_class_name': 'KandinskyV22Pipeline'}, "_class_name is 'KandinskyV22Pipeline'; this"),
        ({'_class_name': 'DiffusionPipeline'}, "_class_name is 'DiffusionPipeline'; this"),
        ({'_class_name': ['mine', 'MyPipeline']}, r"_class_name is \['mine', 'MyPipeline'\]; this"),
        ({'_class_name': None}, '_class_name is None; this'),
        ({'unet': 'x'}, r"unet is 'x' but must be \[library, class\]"),
        ({'vae': ['diffusers']}, r"vae is \['diffusers'\] but must be \[library, class\]"),
        ({'text_encoder': ['x', 3]}, 'text_encoder is .* but must be'),
        ({'tokenizer': {}}, 'tokenizer is {} but must be'),
        ({'vae': ['diffusers', 'AutoencoderTiny']}, 'vae is a AutoencoderTiny, but .*AutoencoderKL'),
        ({'unet': ['diffusers', 'AutoencoderKL']}, 'unet/config.json describes a UNet2DConditionModel but model_index'),
        ({'requires_safety_checker': 'x'}, "requires_safety_checker is 'x' but must be true or false"),
    ],
)
def test_a_model_index_that_is_not_supported_is_one_sentence(tmp_path, changes, reason):
    folder = bent(tmp_path, 'latents', 'model_index.json', **changes)
    with pytest.raises(WeightsError, match=reason):
        read_pipeline(folder)
    assert sentence_of(read_pipeline, folder).startswith(str(folder))


def test_the_sdxl_refiner_is_named():
    index = {
        '_class_name': 'StableDiffusionXLImg2ImgPipeline',
        'unet': ['diffusers', 'UNet2DConditionModel'],
        'text_encoder': [None, None],
        'text_encoder_2': ['transformers', 'CLIPTextModelWithProjection'],
    }
    assert sentence_of(guard.checked_index, index, 'x', FAMILIES) == (
        'x names no text_encoder, as that of the SDXL refiner, which only finishes images; give the SDXL base model.'
    )


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'num_train_timesteps': 'x'}, "num_train_timesteps is 'x'; allowed: whole numbers"),
        ({'num_train_timesteps': True}, 'num_train_timesteps is True; allowed: whole numbers'),
        ({'num_train_timesteps': -1}, 'num_train_timesteps is -1'),
        ({'beta_start': [1]}, r'beta_start is \[1\]; allowed: numbers above 0 and below 1'),
        ({'beta_end': -1}, 'beta_end is -1.0; allowed: numbers above 0 and below 1'),
        ({'beta_start': 0}, 'beta_start is 0.0; allowed: numbers above 0 and below 1'),
        ({'trained_betas': [0.1, -0.1]}, r'trained_betas is \[0.1, -0.1\]; allowed: lists of numbers above 0'),
        ({'beta_schedule': []}, r'beta_schedule is \[\]'),
        ({'trained_betas': 'x'}, 'x/scheduler.json is not supported: '),
        ({'trained_betas': [[0.1], 3]}, 'x/scheduler.json is not supported: '),
        ({'prediction_type': 3}, 'prediction_type is 3'),
        ({'clip_sample': {}}, 'clip_sample is {}; allowed: true, false'),
        ({'_class_name': ['x']}, r"_class_name is \['x'\]"),
    ],
)
def test_a_schedule_of_other_values_is_one_sentence(changes, reason):
    guard.check_schedule(tiny_latent_pipelines.SCHEDULER, 'x')
    with pytest.raises(WeightsError, match=reason):
        guard.check_schedule({**tiny_latent_pipelines.SCHEDULER, **changes}, 'x/scheduler.json')


def test_a_square_pair_is_that_size(tmp_path):
    folder = bent(tmp_path, 'latents', 'unet/config.json', sample_size=[8, 8])
    assert Cascade.load(folder, super_resolution_model='none').base_size == 16


@pytest.mark.parametrize(
    ('size', 'says'),
    [
        ([8, 12], 'are no squares (its sample_size is [8, 12])'),
        (bent_folders.ABSENT, 'have a size that it does not say'),
    ],
)
@pytest.mark.parametrize('kind', ['latents', 'pixels'])
def test_a_model_without_a_square_size_takes_that_of_the_settings(tmp_path, kind, size, says):
    folder = bent(tmp_path, kind, 'unet/config.json', sample_size=size)
    given = Cascade.load(folder, super_resolution_model='none', size=32)
    assert given.base_size == 32
    unsized = Cascade.load(folder, super_resolution_model='none')
    assert sentence_of(lambda: unsized.base_size) == (
        f'the images that {folder} was made for {says}; set config.data.resolution (sample: --resolution).'
    )


@pytest.mark.parametrize('size', ['x', -1, 0, 1.5, [], [8], [8, 'x'], {}, True])
def test_a_size_that_is_none_is_one_sentence(tmp_path, size):
    folder = bent(tmp_path, 'latents', 'unet/config.json', sample_size=size)
    said = sentence_of(read_pipeline, folder)
    assert f'unet/config.json is not supported: unet config: sample_size is {size!r} but must be None, a' in said


def test_the_size_of_the_first_published_stable_diffusion_is_corrected_as_diffusers_does(tmp_path):
    """CompVis/stable-diffusion-v1-1 to v1-4 said 32 where they generate 64; diffusers corrects files older than 0.9."""
    for version, size in (('0.2.2', 64), ('0.9.0.dev0', 8), ('0.42.1', 8)):
        config = {**smallest_pipelines.LATENT_UNET, '_diffusers_version': version}
        assert guard.own_config('unet', config, 'UNet2DConditionModel')['sample_size'] == size
        unet = diffusers.UNet2DConditionModel.from_config(config)
        unet.register_to_config(_diffusers_version=version)
        theirs = diffusers.StableDiffusionPipeline(
            unet=unet,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        assert theirs.unet.config.sample_size == size


def test_a_text_encoder_described_inside_a_whole_clip_is_read(tmp_path):
    """As transformers reads it: config.json of the whole CLIP, whose text_config counts."""
    folder = bent(tmp_path, 'latents', 'model_index.json')
    path = folder / 'text_encoder' / 'config.json'
    own = json.loads(path.read_text())
    whole = {'model_type': 'clip', 'architectures': ['CLIPModel'], 'projection_dim': 9, 'text_config': own}
    path.unlink()
    path.write_text(json.dumps(whole))
    read, expected = (
        read_pipeline(source, components=('text_encoder',)).components['text_encoder']
        for source in (folder, smallest_pipelines.folder('latents'))
    )
    assert {name: value.tolist() for name, value in read.params.items()} == {
        name: value.tolist() for name, value in expected.params.items()
    }
    path.write_text(json.dumps({**whole, 'text_config': None}))
    assert 'text_config is None but must be' in sentence_of(read_pipeline, folder)


def test_what_emas_leave_in_a_configuration_is_left_aside(tmp_path):
    ema = {
        'decay': 0.9999,
        'inv_gamma': 1.0,
        'min_decay': 0.0,
        'optimization_step': 10,
        'power': 0.7,
        'update_after_step': 0,
        'use_ema_warmup': False,
    }
    folder = bent(tmp_path, 'latents', 'unet/config.json', **ema)
    assert read_pipeline(folder, components=('unet',)).denoiser is not None


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_folder_of_8_bit_floats_is_read_as_torch_widens_them(tmp_path, dtype):
    source = smallest_pipelines.folder('latents') / 'unet' / 'diffusion_pytorch_model.safetensors'
    folder = bent(tmp_path, 'latents', 'unet/config.json')
    path = folder / 'unet' / source.name
    path.unlink()
    stored = {name: value.to(dtype) for name, value in safetensors.torch.load_file(source).items()}
    safetensors.torch.save_file(stored, path)
    unet = read_pipeline(folder, components=('unet',)).denoiser
    read = network_tensors('unet', unet)
    assert all(np.array_equal(read[name], value.float().numpy()) for name, value in stored.items())

    safetensors.torch.save_file({**stored, 'scaled_fp8': torch.zeros(0).to(dtype)}, path)
    assert 'holds scaled 8-bit weights (it has scaled_fp8); give' in sentence_of(read_pipeline, folder)


def test_the_second_stage_reads_prompts_with_the_bases_text_encoder(tmp_path, diffusers_folder):
    """DeepFloyd IF's second stage comes with the same T5 again, 19 GB in f32: it is neither read nor downloaded."""
    folder = shutil.copytree(diffusers_folder, tmp_path / 'copied')
    assert (folder / 'super_resolution' / 'text_encoder' / 'model.safetensors').is_file()
    shutil.rmtree(folder / 'super_resolution' / 'text_encoder')
    cascade = Cascade.load(folder)
    assert not cascade.super_resolution.text_encoders and not cascade.super_resolution.tokenizers


def test_a_second_stage_that_cannot_read_the_bases_text_reads_its_own(diffusers_folder):
    latents = smallest_pipelines.folder('latents')
    cascade = Cascade.load(latents, super_resolution_model=diffusers_folder / 'super_resolution')
    assert cascade.super_resolution.text_encoders
    assert cascade.super_resolution.tokenizers


def fuzz(tmp_path, kind, seed, count, **options):
    source = smallest_pipelines.folder(kind) if kind in ('latents', 'pixels') else tiny_latent_pipelines.folder(kind)
    cases = list(bent_folders.cases(source))
    random.Random(seed).shuffle(cases)
    outcomes = []
    for number, (file, key, value) in enumerate(cases[:count]):
        folder = bent_folders.copied(source, tmp_path / str(number))
        bent_folders.bend(folder / file, key, value)
        said = bent_folders.outcome(folder, **options)
        assert said is None or said.endswith('.') or '\n' in said, (file, key, value, said)
        assert said is None or '\n' not in said or 'does not fit this' in said, (file, key, value, said)
        outcomes.append(said)
        shutil.rmtree(folder)
    return outcomes


def test_a_bent_folder_works_or_is_one_sentence(tmp_path):
    outcomes = fuzz(tmp_path, 'latents', 1, 8, super_resolution_model='none')
    assert any(outcomes) and not all(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['latents', 'pixels', 'sd1', 'sdxl'])
def test_many_bent_folders_work_or_are_one_sentence(tmp_path, kind):
    outcomes = fuzz(tmp_path, kind, 0, 80)
    assert sum(outcome is not None for outcome in outcomes) > 20
