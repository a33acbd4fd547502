"""FLUX.2 Klein generates, trains and is written as with diffusers: a tiny random pipeline in all its parts."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from dreambooth_jax.config import ConfigError, DreamBoothConfig, LoraConfig
from dreambooth_jax.families import flux2_klein
from dreambooth_jax.families.processes import with_zero_terminal_snr
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_lora_targets, check_schedules
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.weights import lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_klein
from tests.support.flow_model import PROMPT
from tests.support.flow_models import KLEIN as MODEL
from tests.support.flow_models import KLEIN_OPTIONS
from tests.support.tiny_flow import changed, settings
from tests.support.torch_reference import assert_near, nchw, nhwc

PROMPTS = [PROMPT, '', PROMPT]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_klein.SIZE, tiny_klein.SIZE, 3), np.uint8)


@pytest.mark.parametrize('steps', [1, 4, 10, 50, 200])
@pytest.mark.parametrize('tokens', [64, 1024, 4096, 4300, 4301, 9000])
def test_the_shift_is_that_of_the_pipeline(tokens, steps):
    assert flux2_klein.empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)


@pytest.mark.slow
def test_ten_steps_with_guidance_give_the_image_of_diffusers():
    MODEL.check_image()


def test_every_step_is_that_of_diffusers():
    MODEL.check_steps()


def test_the_process_shifts_what_it_generates_and_not_what_it_trains_on():
    process = MODEL.cascade.base.family.process(MODEL.cascade.base)
    assert process.shift == 1.0 and process.of_shape((64, 64)).sampling_shift(50) == pytest.approx(np.exp(2.0234), 1e-4)
    assert MODEL.cascade.base.native_size == 256  # 64 tokens of 4 pixels in this tiny model


def test_latents_are_those_of_the_script_and_of_the_pipeline():
    pipe, space = tiny_klein.torch_pipeline(), MODEL.cascade.base.space
    kept = space.prepare(IMAGES, None, flip=False, pairs=False)
    with torch.no_grad():
        posterior = pipe.vae.encode(nchw(IMAGES.astype(np.float32) / 127.5 - 1)).latent_dist
        latents = MODEL.torch_latents(pipe, posterior, None)
    assert_near(kept['latents'], nhwc(latents), 7e-6)


def test_prompts_are_read_as_by_diffusers():
    with torch.no_grad():
        states, _ = tiny_klein.torch_pipeline().encode_prompt(list(PROMPTS), **KLEIN_OPTIONS)
    assert_near(MODEL.cascade.encode(PROMPTS)['encoder_hidden_states'], states, 4e-6)


def test_a_training_loss_is_that_of_the_script():
    """The same images, noise and times; the weight of every time is 1."""
    MODEL.check_loss(IMAGES, PROMPTS)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    pipe = MODEL.check_written_folder(tmp_path / 'model', diffusers.Flux2KleinPipeline, spread=0.02)
    assert pipe.config.is_distilled is False
    # The language model is whole: diffusers finds all its layers, and the same ones.
    for name, value in tiny_klein.torch_pipeline().text_encoder.state_dict().items():
        assert torch.equal(pipe.text_encoder.state_dict()[name], value), name


@pytest.mark.parametrize('format', lora_files.FORMATS)
def test_a_lora_of_the_usual_layers_is_loaded_by_diffusers(tmp_path, format):
    double = {f'transformer_blocks.0.attn.{name}' for name in ('to_q', 'to_k', 'to_v', 'to_out.0')}
    single = {f'single_transformer_blocks.{i}.attn.{name}' for i in (0, 1) for name in ('to_qkv_mlp_proj', 'to_out')}
    assert {name.rpartition('.')[0] for name in MODEL.lora} == double | single
    MODEL.check_lora(tmp_path, format)


def test_a_part_of_another_model_is_refused(tmp_path):
    cases = {
        'transformer': (
            {'joint_attention_dim': 64},
            'joint_attention_dim 64, but the states of its text_encoder have 48',
        ),
        'vae': ({'latent_channels': 8}, 'in_channels 16, but the packed latents of its vae have 32'),
    }
    for component, (entries, sentence) in cases.items():
        with pytest.raises(WeightsError) as error:
            read_pipeline(changed(tiny_klein.folder(), tmp_path / component, component, **entries))
        assert sentence in str(error.value), error.value
    with pytest.raises(WeightsError, match='guidance_embeds True, as FLUX.2-dev has'):
        read_pipeline(changed(tiny_klein.folder(), tmp_path / 'dev', 'transformer', guidance_embeds=True))
    with pytest.raises(WeightsError, match='scheduler_config.json is not supported: use_karras_sigmas is True'):
        read_pipeline(changed(tiny_klein.folder(), tmp_path / 'karras', 'scheduler', use_karras_sigmas=True))


def test_a_distilled_model_generates_without_guidance_and_does_not_train(tmp_path):
    distilled = Cascade.load(
        changed(tiny_klein.folder(), tmp_path / 'distilled', None, is_distilled=True), size=tiny_klein.SIZE
    )
    with pytest.raises(ConfigError, match='is distilled: it generates in few steps without guidance, and training on'):
        check_schedules(settings(), distilled)
    with pytest.raises(ConfigError, match='guidance_scale is 4 but .* is distilled and needs none; set it to 1'):
        distilled.sampler(BASE, 4, 4.0, 'euler')
    distilled.sampler(BASE, 4, 1.0, 'euler')


def test_settings_that_this_model_cannot_follow_are_refused():
    with pytest.raises(WeightsError, match='is a rectified flow, which ends in pure noise as it is'):
        with_zero_terminal_snr(MODEL.cascade.base)
    check_schedules(settings(), MODEL.cascade)
    with pytest.raises(
        ConfigError, match='config.base.train_text_encoder is True but the text_encoder of .* is read only as far'
    ):
        check_schedules(settings(train_text_encoder=True), MODEL.cascade)
    with pytest.raises(ConfigError, match='sampler dpmsolver.. cannot sample a rectified flow'):
        check_schedules(dataclasses.replace(settings(), samples=DreamBoothConfig().samples), MODEL.cascade)
    with pytest.raises(WeightsError, match='clip_skip is 1 but the text_encoder of .* is a Qwen3'):
        Cascade.load(tiny_klein.folder(), size=tiny_klein.SIZE, clip_skip=1).encode([PROMPT])
    with_target = dataclasses.replace(settings(), lora=LoraConfig(rank=2, targets=('.*attn2.*',)))
    with pytest.raises(ConfigError, match='matches no linear or convolution layer of transformer of the base stage'):
        check_lora_targets(with_target, MODEL.cascade)
