"""Z-Image generates, trains and is written as with diffusers: a tiny random pipeline in all its parts."""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.config import ConfigError, LoraConfig
from dreambooth_jax.diffusion import noise, samplers
from dreambooth_jax.families import z_image
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_lora_targets, check_schedules
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective, streams
from dreambooth_jax.models import lora
from dreambooth_jax.weights import folders, lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_flow, tiny_klein, tiny_z_image
from tests.support.generating import generate
from tests.support.reports import nothing_reported
from tests.support.tiny_flow import changed, read_back, settings
from tests.support.torch_reference import nchw, nhwc, quick_jit

PROMPT, SEED, STEPS, GUIDANCE = 'a photo of sks dog on the beach', 5, 10, 5.0
# The second is longer than 32 tokens, so that padding equalises the batch.
PROMPTS = ['', 'a photo of sks dog on the beach, in the snow, beside a red backpack and a bucket of light', 'a cat']
SIDE = tiny_z_image.SIZE // 2  # of the latents of the tiny autoencoder
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_z_image.SIZE, tiny_z_image.SIZE, 3), np.uint8)


@functools.cache
def cascade():
    return Cascade.load(tiny_z_image.folder(), size=tiny_z_image.SIZE)


def ours(model):
    options = dict(steps=STEPS, guidance_scale=GUIDANCE, sampler='euler', seed=SEED, batch_size=1)
    return generate(model, [PROMPT], num_images=1, **options).final.astype(int)


def first_noise():
    key = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[0]
    return samplers.initial_noise(key[None], (SIDE, SIDE, 4))


def theirs(pipe, **options):
    images = pipe(
        prompt=PROMPT,
        height=tiny_z_image.SIZE,
        width=tiny_z_image.SIZE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE - 1,  # there it counts what is added to the prediction with the prompt
        latents=nchw(first_noise()),
        output_type='np',
        **options,
    ).images
    return (images * 255).round().astype(int)


@functools.cache
def images_of_the_tiny_model():
    """Ours, those of diffusers, and diffusers' latents f32[1, h, w, C] before every step and at the end."""
    latents = [np.asarray(first_noise())]

    def keep(pipe, step, time, values):
        latents.append(nhwc(values['latents']))
        return values

    images = theirs(tiny_z_image.torch_pipeline(), callback_on_step_end=keep)
    return ours(cascade()), images, latents


def test_ten_steps_with_guidance_give_the_image_of_diffusers():
    found, expected, _ = images_of_the_tiny_model()
    assert expected.std() > 20
    assert np.abs(found - expected).max() <= 2


def test_every_step_is_that_of_diffusers():
    base, latents = cascade().base, images_of_the_tiny_model()[2]
    s = base.family.process(base).of_shape((SIDE, SIDE)).sigmas(STEPS)
    conditioning = cascade().encode([PROMPT, ''])

    @quick_jit
    def velocities(x, s):
        return base.family.predict(base.denoiser.apply, base.denoiser.params, x, s, conditioning)

    assert len(latents) == STEPS + 1
    for step, (x, following) in enumerate(zip(latents[:-1], latents[1:], strict=True)):
        prompted, empty = velocities(np.concatenate([x, x]), np.full(2, s[step], np.float32))
        velocity = empty + GUIDANCE * (prompted - empty)
        np.testing.assert_allclose(x + (s[step + 1] - s[step]) * velocity, following, atol=1e-4)


def test_the_process_has_the_shift_of_the_file_in_training_and_in_generating(tmp_path):
    base = cascade().base
    process = base.family.process(base)
    scheduler = tiny_z_image.torch_pipeline().scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    np.testing.assert_allclose(process.of_shape((SIDE, SIDE)).sigmas(4), scheduler.sigmas, atol=1e-6)
    assert (process.shift, base.native_size, base.size_divisor) == (6.0, 256, 4)  # 128 latents of 2 pixels
    dynamic = read_pipeline(
        changed(tiny_z_image.folder(), tmp_path / 'dynamic', 'scheduler', use_dynamic_shifting=True)
    )
    # mu is that of FLUX.1, for tokens of 2 x 2 latents.
    assert dynamic.family.process(dynamic).of_shape((128, 128)).sampling_shift(50) == pytest.approx(np.exp(1.15))


def test_prompts_are_read_as_by_diffusers_and_padding_is_marked():
    found = cascade().encode(PROMPTS)
    mask = found['encoder_attention_mask']
    with torch.no_grad():
        expected, _ = tiny_z_image.torch_pipeline().encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    assert [len(states) for states in expected] == list(mask.sum(axis=1)) and mask.shape == (3, 512)
    assert len(expected[1]) > 32 > len(expected[0])
    for states, own, reference in zip(found['encoder_hidden_states'], mask, expected, strict=True):
        np.testing.assert_allclose(states[own != 0], reference, atol=1e-4)


def test_latents_are_those_of_the_script_and_of_the_pipeline():
    space, vae = cascade().base.space, tiny_z_image.torch_pipeline().vae
    assert (space.channels, space.scale, space.halvings, space.decoder) == (4, 2, 1, 'vae')
    kept = space.prepare(IMAGES, None, flip=False, pairs=False)
    with torch.no_grad():
        mode = vae.encode(nchw(IMAGES.astype(np.float32) / 127.5 - 1)).latent_dist.mode()
        latents = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    np.testing.assert_allclose(kept['latents'], nhwc(latents), atol=1e-5)
    found = space.decode(space.vae.params, jnp.asarray(kept['latents']))
    np.testing.assert_allclose(found, nhwc(pixels).clip(-1, 1), atol=2e-5)


def test_a_training_loss_is_that_of_the_script():
    """The same images, noise and times, with prompts of different lengths; the weight of every time is 1."""
    base, pipe = cascade().base, tiny_z_image.torch_pipeline()
    frozen = {**base.space.prepare(IMAGES, None, flip=False, pairs=False), 'prompt_of': np.arange(3, dtype=np.int32)}
    frozen['text'] = jax.tree.map(jnp.asarray, cascade().encode(PROMPTS))
    keys = jax.random.split(jax.random.key(1), 3)
    batch = {'image': jnp.arange(3), 'is_instance': jnp.ones(3)}
    loss = DenoisingLoss.of(base, base.denoiser.apply, objective=Objective())
    found, parts = jax.jit(loss.loss)({'transformer': base.denoiser.params}, frozen, batch, keys)
    with torch.no_grad():
        latents = nchw(frozen['latents'])
        states, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
        time_keys, noise_keys, *_ = streams(keys, 8)
        s = torch.from_numpy(np.array(loss.process.sample_times(time_keys)))
        drawn = nchw(noise.sample_noise(noise_keys, frozen['latents'].shape[1:]))
        wide = s.view(-1, 1, 1, 1)
        noisy = (1 - wide) * latents + wide * drawn
        answers = pipe.transformer(list(noisy.unsqueeze(2)), (1000 - 1000 * s) / 1000, states, return_dict=False)[0]
        predicted = -torch.stack(answers).squeeze(2)
        expected = torch.mean((predicted - (drawn - latents)) ** 2, dim=(1, 2, 3))
    expected = expected.numpy()
    assert 0.5 < expected.mean() and np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(parts['denoising'], found)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    base = cascade().base
    rng = np.random.default_rng(3)
    params = {
        name: np.asarray(value) + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in base.denoiser.params.items()
    }
    trained = cascade().with_params(base={'transformer': params})
    folders.write_pipeline(trained.base, tmp_path / 'model')
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / 'model', local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.ZImagePipeline
    expected = theirs(pipe)
    assert np.abs(ours(trained) - expected).max() <= 2
    assert np.abs(images_of_the_tiny_model()[1] - expected).max() > 10
    # The language model is whole: diffusers finds all its layers, and the same ones.
    found = pipe.text_encoder.state_dict()
    assert found.keys() == tiny_z_image.torch_pipeline().text_encoder.state_dict().keys()
    for name, value in tiny_z_image.torch_pipeline().text_encoder.state_dict().items():
        assert torch.equal(found[name], value), name


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
    blocks = ('noise_refiner.0', 'context_refiner.0', 'layers.0', 'layers.1')
    names = ('to_q', 'to_k', 'to_v', 'to_out.0')
    assert layers == {f'{block}.attention.{name}' for block in blocks for name in names}
    read_back(tmp_path, cascade().base, params, format)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_z_image.folder(), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with nothing_reported():
        pipe.load_lora_weights(tmp_path)
    assert len(pipe.transformer.peft_config['default_0'].target_modules) == len(layers)
    expected = theirs(pipe)
    assert np.abs(image - expected).max() <= 2
    assert np.abs(images_of_the_tiny_model()[0] - expected).max() > 10


def test_a_language_model_that_was_saved_with_its_head_is_read_alike(tmp_path):
    """Trainers save the text encoder as the class that they load."""
    entry = {'text_encoder': ['transformers', 'Qwen3ForCausalLM']}
    saved = read_pipeline(changed(tiny_z_image.folder(), tmp_path / 'saved', None, **entry))
    network, plain = (pipeline.components['text_encoder'] for pipeline in (saved, cascade().base))
    assert network.params.keys() == plain.params.keys()
    ids, mask = np.array([[3, 4, 5]]), np.ones((1, 3), int)
    np.testing.assert_array_equal(
        quick_jit(network.apply)(network.params, ids, mask), quick_jit(plain.apply)(plain.params, ids, mask)
    )


def test_other_pipelines_of_the_same_networks_are_read_as_this_one(tmp_path):
    assert all(hasattr(diffusers, name) for name in z_image.FAMILY.also_saved_as)
    entry = {'_class_name': 'ZImageImg2ImgPipeline'}
    saved = read_pipeline(changed(tiny_z_image.folder(), tmp_path / 'saved', None, **entry), components=['vae'])
    assert saved.family is z_image.FAMILY


def test_a_part_of_another_model_is_refused(tmp_path):
    cases = {
        'transformer': ({'cap_feat_dim': 64}, 'cap_feat_dim 64, but the states of its text_encoder have 16 channels'),
        'vae': ({'latent_channels': 8}, 'in_channels 4, but the latents of its vae have 8 channels'),
    }
    for component, (entries, sentence) in cases.items():
        with pytest.raises(WeightsError) as error:
            read_pipeline(changed(tiny_z_image.folder(), tmp_path / component, component, **entries))
        assert sentence in str(error.value), error.value
    with pytest.raises(WeightsError, match=r'has axes_lens \[513, 64, 64\], but prompts of 512 tokens need 514'):
        read_pipeline(changed(tiny_z_image.folder(), tmp_path / 'short', 'transformer', axes_lens=[513, 64, 64]))
    with pytest.raises(WeightsError, match='scheduler_config.json is not supported: use_karras_sigmas is True'):
        read_pipeline(changed(tiny_z_image.folder(), tmp_path / 'karras', 'scheduler', use_karras_sigmas=True))
    entry = {'_class_name': 'ZImagePipeline'}
    with pytest.raises(
        WeightsError, match='is of the class Flux2Transformer2DModel, but Z-Image needs ZImageTransformer2DModel'
    ):
        read_pipeline(changed(tiny_klein.folder(), tmp_path / 'klein', None, **entry), components=['transformer'])


def test_settings_that_this_model_cannot_follow_are_refused():
    check_schedules(settings(), cascade())
    with pytest.raises(
        ConfigError, match='config.base.train_text_encoder is True but the text_encoder of .* is read only as far'
    ):
        check_schedules(settings(train_text_encoder=True), cascade())
    with_target = dataclasses.replace(settings(), lora=LoraConfig(rank=2, targets=('.*attn.*',)))
    with pytest.raises(ConfigError, match='matches no linear or convolution layer of transformer of the base stage'):
        check_lora_targets(with_target, cascade())
