"""FLUX.1 generates, trains and is written as with diffusers: tiny random pipelines of dev and schnell."""

import functools

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

from dreambooth_jax.config import ConfigError
from dreambooth_jax.families import flux
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_schedules
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.weights import files, lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_flow, tiny_flux
from tests.support.flow_model import PROMPT, FlowModel
from tests.support.flow_models import FLUX as MODEL
from tests.support.flow_models import flux_pack, flux_unpack
from tests.support.generating import generate
from tests.support.tiny_flow import changed, settings
from tests.support.torch_reference import nhwc

# T5 and CLIP read these as they are written, in capitals too.
PROMPTS = ['', 'A photo of SKS dog on the beach, in the snow, beside a red backpack', PROMPT]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_flux.SIZE, tiny_flux.SIZE, 3), np.uint8)


def assert_sentence(function, sentence):
    with pytest.raises((ConfigError, WeightsError)) as error:
        function()
    assert str(error.value) == sentence


@pytest.fixture(scope='module')
def schnell():
    return Cascade.load(tiny_flux.folder(schnell=True), size=tiny_flux.SIZE)


@pytest.mark.slow
def test_ten_steps_with_embedded_guidance_give_the_image_of_diffusers():
    MODEL.check_image()
    without = MODEL.torch_image(tiny_flux.torch_pipeline(), guidance_scale=1.0)
    assert np.abs(MODEL.images[1] - without).max() > 2


def test_every_step_is_that_of_diffusers():
    MODEL.check_steps()


def test_the_process_of_dev_shifts_what_it_generates_and_that_of_schnell_nothing(schnell):
    base = MODEL.cascade.base
    process = base.family.process(base)
    assert process.shift == 1.0 and (base.native_size, base.size_divisor) == (256, 4)
    assert process.of_shape((128, 128)).sampling_shift(28) == pytest.approx(np.exp(1.15))  # 4096 tokens
    np.testing.assert_allclose(schnell.base.family.process(schnell.base).sigmas(4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize('is_schnell', [False, True])
def test_prompts_are_read_as_by_diffusers(is_schnell, schnell):
    cascade, length = (schnell, 256) if is_schnell else (MODEL.cascade, 512)
    with torch.no_grad():
        states, pooled, _ = tiny_flux.torch_pipeline().encode_prompt(list(PROMPTS), max_sequence_length=length)
    found = cascade.encode(PROMPTS)
    np.testing.assert_allclose(found['encoder_hidden_states'], states, atol=1e-4)
    np.testing.assert_allclose(found['pooled'], pooled, atol=1e-4)
    lowered = cascade.encode([prompt.lower() for prompt in PROMPTS])['encoder_hidden_states']
    assert np.abs(lowered[1] - states[1].numpy()).max() > 1e-2


def test_latents_are_decoded_as_by_the_pipeline():
    space, vae = MODEL.cascade.base.space, tiny_flux.torch_pipeline().vae
    latents = torch.randn(2, 4, *MODEL.shape[:2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    found = space.decode(space.vae.params, jnp.asarray(nhwc(latents)))
    np.testing.assert_allclose(found, nhwc(pixels).clip(-1, 1), atol=2e-5)


def test_a_training_loss_is_that_of_the_script_with_guidance_1():
    MODEL.check_loss(IMAGES, PROMPTS)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    pipe = MODEL.check_written_folder(tmp_path / 'model', diffusers.FluxPipeline, spread=0.02)
    assert pipe.image_encoder is None and pipe.transformer.config.guidance_embeds


def _of_single_blocks(name):
    return name.startswith('single')


@pytest.mark.parametrize('format', lora_files.FORMATS)
def test_a_lora_of_the_usual_layers_is_loaded_by_diffusers(tmp_path, format):
    layers = {name.rpartition('.')[0] for name in MODEL.lora}
    attention = ('to_q', 'to_k', 'to_v', 'to_out.0', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out')
    double = {f'transformer_blocks.0.attn.{name}' for name in attention}
    double |= {f'transformer_blocks.0.{ff}.net.{layer}' for ff in ('ff', 'ff_context') for layer in ('0.proj', '2')}
    single = {f'single_transformer_blocks.{i}.attn.{name}' for i in (0, 1) for name in ('to_q', 'to_k', 'to_v')}
    assert layers == double | single
    if format == lora_files.PEFT:
        MODEL.check_lora(tmp_path, format)
        return
    # diffusers takes the joint layers of single blocks apart at the width of FLUX.1 only; see the next test.
    params = {name: value for name, value in MODEL.lora.items() if not _of_single_blocks(name)}
    MODEL.check_lora(tmp_path, format, params, MODEL.image_with(params))


@pytest.mark.parametrize('format', [lora_files.KOHYA, lora_files.COMFYUI])
def test_joint_layers_of_single_blocks_are_taken_apart_by_diffusers(tmp_path, format):
    """Of the published width, since diffusers knows no other."""
    width, path = 3072, 'single_transformer_blocks.7.'
    outputs = {'attn.to_q': width, 'attn.to_v': width, 'proj_mlp': 4 * width}
    rng, params, kernels = np.random.default_rng(0), {}, {}
    for name, out in outputs.items():
        params[f'{path}{name}.lora_a'] = rng.normal(size=(width, tiny_flow.RANK)).astype(np.float32)
        params[f'{path}{name}.lora_b'] = rng.normal(size=(tiny_flow.RANK, out)).astype(np.float32)
    for name in (*outputs, 'attn.to_k'):
        kernels[f'{path}{name}.kernel'] = np.zeros((width, outputs.get(name, width)), np.float32)
    adapter = lora_files.Adapter({'transformer': params}, tiny_flow.RANK, tiny_flow.ALPHA)
    file = tmp_path / 'x.safetensors'
    lora_files.write_lora(file, adapter, format, originals=flux.FAMILY.lora_layers)
    back = lora_files.read_lora(file, {'transformer': kernels}, originals=flux.FAMILY.lora_layers)
    assert back.params['transformer'].keys() == params.keys() and back.rank == tiny_flow.RANK
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in files.read_tensors(file).items()}
    converted = _convert_kohya_flux_lora_to_diffusers(tensors)
    assert len(converted) == 8
    # What layers make of more inputs than they have ranks says all of them; whole kernels have 38 million numbers.
    inputs = rng.normal(size=(3 * tiny_flow.RANK, width)).astype(np.float32) / np.sqrt(width, dtype=np.float32)
    for name, out in {'attn.to_k': width, **outputs}.items():
        a, b = (converted[f'transformer.{path}{name}.lora_{part}.weight'].numpy() for part in 'AB')
        assert len(b) == out
        if name == 'attn.to_k':  # it has no adapter
            assert not a.any() and not b.any()
            continue
        ours = inputs @ params[f'{path}{name}.lora_a'] @ params[f'{path}{name}.lora_b']
        expected = tiny_flow.ALPHA / tiny_flow.RANK * ours
        np.testing.assert_allclose(inputs @ a.T @ b.T, expected, rtol=1e-4, atol=1e-4)


def test_schnell_generates_without_guidance_and_does_not_train(schnell):
    base = schnell.base
    assert base.family.usual_sampling(base) == {'sampler': 'euler', 'steps': 4, 'guidance_scale': 1.0}
    assert_sentence(
        lambda: check_schedules(settings(), schnell),
        f'{base.name} is distilled: it generates in few steps without guidance, and training on images would undo '
        f'that; train the base model that it was made from, or set config.base.train_distilled to True',
    )
    with pytest.raises(ConfigError, match='guidance_scale is 3.5 but .* is distilled and needs none; set it to 1'):
        schnell.sampler(BASE, 4, 3.5, 'euler')
    options = {'max_sequence_length': 256}
    model = FlowModel(tiny_flux, MODEL.shape, 1.0, options, pack=flux_pack, unpack=flux_unpack, empty=False)
    expected = model.torch_image(tiny_flux.torch_pipeline(schnell=True))
    assert np.abs(model.image(schnell) - expected).max() <= 2


def test_dev_is_told_its_guidance_and_reads_no_negative_prompt():
    base = MODEL.cascade.base
    assert base.family.usual_sampling(base) == {'sampler': 'euler', 'steps': 28, 'guidance_scale': 3.5}
    options = dict(steps=1, guidance_scale=3.5, sampler='euler', seed=0, negative_prompt='a cat')
    assert_sentence(
        lambda: generate(MODEL.cascade, [PROMPT], **options),
        f"negative_prompt is 'a cat' but {base.name} is told its guidance as a number and reads no negative prompt; "
        f'leave it empty',
    )


def test_wrong_parts_and_settings_are_refused_in_one_sentence(tmp_path):
    cases = {
        'transformer': (
            {'joint_attention_dim': 64},
            'joint_attention_dim 64, but the states of its text_encoder_2 have 24 channels',
        ),
        'vae': ({'latent_channels': 8}, 'in_channels 16, but the packed latents of its vae have 32 channels'),
    }
    for component, (entries, sentence) in cases.items():
        folder = changed(tiny_flux.folder(), tmp_path / component, component, **entries)
        refusal = f'the transformer of {folder} has {sentence}; give the parts of one model.'
        assert_sentence(functools.partial(read_pipeline, folder), refusal)
    folder = changed(tiny_flux.folder(), tmp_path / 'fill', 'transformer', in_channels=24, out_channels=16)
    assert_sentence(
        lambda: read_pipeline(folder, components=['transformer']),
        f'the transformer of {folder} has in_channels 24 and out_channels 16, as models that edit images have, which '
        f'are not supported; give FLUX.1 dev or schnell.',
    )
    projected = {'model_type': 'clip_text_model', 'architectures': ['CLIPTextModelWithProjection']}
    assert_sentence(
        lambda: flux.FAMILY.check({'text_encoder': projected}, 'x'),
        'the text_encoder of x is of the class CLIPTextModelWithProjection, but FLUX.1 needs CLIPTextModel; give the '
        'parts of one model.',
    )
    assert_sentence(
        lambda: flux.FAMILY.prompt_encoder(MODEL.cascade.base, size=tiny_flux.SIZE, clip_skip=1),
        f'clip_skip is 1 but of the CLIP of {MODEL.cascade.base.name} only the pooled state is read, which passes '
        f'through all layers; set it to 0.',
    )


def test_other_pipelines_of_the_same_networks_are_read_as_this_one(tmp_path):
    assert all(hasattr(diffusers, name) for name in flux.FAMILY.also_saved_as)
    entry = {'_class_name': 'FluxImg2ImgPipeline'}
    saved = read_pipeline(changed(tiny_flux.folder(), tmp_path / 'saved', None, **entry), components=['vae'])
    assert saved.family is flux.FAMILY and saved.space.channels == 4 and not saved.family.is_distilled(saved)
