"""FLUX.2 Klein generates, trains and is written as with diffusers: a tiny random pipeline in all its parts."""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from dreambooth_jax.config import ConfigError, DreamBoothConfig, LoraConfig
from dreambooth_jax.diffusion import noise, samplers
from dreambooth_jax.families import flux2_klein
from dreambooth_jax.families.processes import with_zero_terminal_snr
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_lora_targets, check_schedules
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective, streams
from dreambooth_jax.models import lora
from dreambooth_jax.weights import folders, lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_flow, tiny_klein
from tests.support.generating import generate
from tests.support.reports import nothing_reported
from tests.support.tiny_flow import changed, read_back, settings
from tests.support.torch_reference import nchw, nhwc

PROMPT, SEED, STEPS, GUIDANCE = 'a photo of sks dog on the beach', 5, 10, 4.0
SIDE = tiny_klein.SIZE // 4  # of the packed latents of the tiny autoencoder
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_klein.SIZE, tiny_klein.SIZE, 3), np.uint8)


@functools.cache
def cascade():
    return Cascade.load(tiny_klein.folder(), size=tiny_klein.SIZE)


def ours(model):
    options = dict(steps=STEPS, guidance_scale=GUIDANCE, sampler='euler', seed=SEED, batch_size=1)
    return generate(model, [PROMPT], num_images=1, **options).final.astype(int)


def theirs(pipe):
    key = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[0]
    latents = nchw(samplers.initial_noise(key[None], (SIDE, SIDE, 16)))
    images = pipe(
        prompt=PROMPT,
        height=tiny_klein.SIZE,
        width=tiny_klein.SIZE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=latents,
        text_encoder_out_layers=tiny_klein.LAYERS,
        output_type='np',
    ).images
    return (images * 255).round().astype(int)


@functools.cache
def images_of_the_tiny_model():
    """Ours and those of diffusers."""
    return ours(cascade()), theirs(tiny_klein.torch_pipeline())


@pytest.mark.parametrize('steps', [1, 4, 10, 50, 200])
@pytest.mark.parametrize('tokens', [64, 1024, 4096, 4300, 4301, 9000])
def test_the_shift_is_that_of_the_pipeline(tokens, steps):
    assert flux2_klein.empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)


def test_ten_steps_with_guidance_give_the_image_of_diffusers():
    found, expected = images_of_the_tiny_model()
    assert expected.std() > 20
    assert np.abs(found - expected).max() <= 2


def test_the_process_shifts_what_it_generates_and_not_what_it_trains_on():
    process = cascade().base.family.process(cascade().base)
    assert process.shift == 1.0 and process.of_shape((64, 64)).sampling_shift(50) == pytest.approx(np.exp(2.0234), 1e-4)
    assert cascade().base.native_size == 256  # 64 tokens of 4 pixels in this tiny model


def torch_latents(vae):
    """The latents f[N, h, w, 16] of IMAGES as train_dreambooth_lora_flux2.py makes them."""
    pixels = nchw(IMAGES.astype(np.float32) / 127.5 - 1)
    packed = diffusers.Flux2KleinPipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return (packed - mean) / std


def test_a_training_loss_is_that_of_the_script():
    """The same images, noise and times; the weight of every time is 1."""
    base, pipe = cascade().base, tiny_klein.torch_pipeline()
    text = cascade().encode(['', PROMPT])
    frozen = {**base.space.prepare(IMAGES, None, flip=False, pairs=False), 'prompt_of': np.ones(3, np.int32)}
    keys = jax.random.split(jax.random.key(1), 3)
    batch = {'image': jnp.arange(3), 'is_instance': jnp.ones(3)}
    loss = DenoisingLoss.of(base, base.denoiser.apply, objective=Objective())
    found, parts = jax.jit(loss.loss)(
        {'transformer': base.denoiser.params}, {**frozen, 'text': jax.tree.map(jnp.asarray, text)}, batch, keys
    )
    with torch.no_grad():
        latents = torch_latents(pipe.vae)
        np.testing.assert_allclose(frozen['latents'], nhwc(latents), atol=1e-5)
        states, text_ids = pipe.encode_prompt(PROMPT, text_encoder_out_layers=tiny_klein.LAYERS)
        np.testing.assert_allclose(text['encoder_hidden_states'][1:], states, atol=1e-4)
        time_keys, noise_keys, *_ = streams(keys, 8)
        s = torch.from_numpy(np.array(loss.process.sample_times(time_keys)))
        drawn = nchw(noise.sample_noise(noise_keys, latents.permute(0, 2, 3, 1).shape[1:]))
        wide = s.view(-1, 1, 1, 1)
        noisy = (1 - wide) * latents + wide * drawn
        predicted = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy),
            timestep=s,
            encoder_hidden_states=states.expand(3, -1, -1),
            txt_ids=text_ids.expand(3, -1, -1),
            img_ids=pipe._prepare_latent_ids(noisy),
            guidance=None,
            return_dict=False,
        )[0]
        expected = torch.mean((predicted - pipe._pack_latents(drawn - latents)) ** 2, dim=(1, 2))
    assert 0.5 < expected.mean() and np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(parts['denoising'], found)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    base = cascade().base
    rng = np.random.default_rng(3)
    params = {
        name: np.asarray(value) + 0.02 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in base.denoiser.params.items()
    }
    trained = cascade().with_params(base={'transformer': params})
    folders.write_pipeline(trained.base, tmp_path / 'model')
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / 'model', local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.Flux2KleinPipeline and pipe.config.is_distilled is False
    expected = theirs(pipe)
    assert np.abs(ours(trained) - expected).max() <= 2
    assert np.abs(images_of_the_tiny_model()[1] - expected).max() > 10
    # The language model is whole: diffusers finds all its layers, and the same ones.
    for name, value in tiny_klein.torch_pipeline().text_encoder.state_dict().items():
        assert torch.equal(pipe.text_encoder.state_dict()[name], value), name


@functools.cache
def usual_lora():
    """(adapters of the usual layers; the image of the model with them)."""
    params = tiny_flow.usual_lora(cascade().base)
    merged = lora.merge({**cascade().base.denoiser.params, **params}, rank=tiny_flow.RANK, alpha=tiny_flow.ALPHA)
    return params, ours(cascade().with_params(base={'transformer': merged}))


@pytest.mark.parametrize('format', lora_files.FORMATS)
def test_a_lora_of_the_usual_layers_is_loaded_by_diffusers(tmp_path, format):
    params, image = usual_lora()
    layers = {name.rpartition('.')[0] for name in params}
    double = {f'transformer_blocks.0.attn.{name}' for name in ('to_q', 'to_k', 'to_v', 'to_out.0')}
    single = {f'single_transformer_blocks.{i}.attn.{name}' for i in (0, 1) for name in ('to_qkv_mlp_proj', 'to_out')}
    assert layers == double | single
    read_back(tmp_path, cascade().base, params, format)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_klein.folder(), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with nothing_reported():
        pipe.load_lora_weights(tmp_path)
    assert len(pipe.transformer.peft_config['default_0'].target_modules) == len(layers)
    expected = theirs(pipe)
    assert np.abs(image - expected).max() <= 2
    assert np.abs(images_of_the_tiny_model()[0] - expected).max() > 10


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
    with pytest.raises(ConfigError, match='is distilled: it draws in few steps without guidance, and training on'):
        check_schedules(settings(), distilled)
    with pytest.raises(ConfigError, match='guidance_scale is 4 but .* is distilled and needs none; set it to 1'):
        distilled.sampler(BASE, 4, 4.0, 'euler')
    distilled.sampler(BASE, 4, 1.0, 'euler')


def test_settings_that_this_model_cannot_follow_are_refused():
    with pytest.raises(WeightsError, match='is a rectified flow, which ends in pure noise as it is'):
        with_zero_terminal_snr(cascade().base)
    check_schedules(settings(), cascade())
    with pytest.raises(
        ConfigError, match='config.base.train_text_encoder is True but the text_encoder of .* is read only as far'
    ):
        check_schedules(settings(train_text_encoder=True), cascade())
    with pytest.raises(ConfigError, match='sampler dpmsolver.. cannot sample a rectified flow'):
        check_schedules(dataclasses.replace(settings(), samples=DreamBoothConfig().samples), cascade())
    with pytest.raises(WeightsError, match='clip_skip is 1 but the text_encoder of .* is a Qwen3'):
        Cascade.load(tiny_klein.folder(), size=tiny_klein.SIZE, clip_skip=1).encode([PROMPT])
    with_target = dataclasses.replace(settings(), lora=LoraConfig(rank=2, targets=('.*attn2.*',)))
    with pytest.raises(ConfigError, match='matches no linear or convolution layer of transformer of the base stage'):
        check_lora_targets(with_target, cascade())
