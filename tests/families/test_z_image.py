"""Z-Image generates, trains and is written as with diffusers: a tiny random pipeline in all its parts."""

import dataclasses

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.config import ConfigError, LoraConfig
from dreambooth_jax.families import z_image
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_lora_targets, check_schedules
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.weights import lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_klein, tiny_z_image
from tests.support.flow_models import Z_IMAGE as MODEL
from tests.support.tiny_flow import changed, settings
from tests.support.torch_reference import assert_near, nchw, nhwc, quick_jit

# The second is longer than 32 tokens, so that padding equalises the batch.
PROMPTS = ['', 'a photo of sks dog on the beach, in the snow, beside a red backpack and a bucket of light', 'a cat']
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_z_image.SIZE, tiny_z_image.SIZE, 3), np.uint8)


@pytest.mark.slow
def test_ten_steps_with_guidance_give_the_image_of_diffusers():
    MODEL.check_image()


def test_every_step_is_that_of_diffusers():
    MODEL.check_steps()


def test_the_process_has_the_shift_of_the_file_in_training_and_in_generating(tmp_path):
    base = MODEL.cascade.base
    process = base.family.process(base)
    scheduler = tiny_z_image.torch_pipeline().scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    np.testing.assert_allclose(process.of_shape(MODEL.shape[:2]).sigmas(4), scheduler.sigmas, atol=1e-6)
    assert (process.shift, base.native_size, base.size_divisor) == (6.0, 32, 4)  # the VAE's sample_size
    dynamic = read_pipeline(
        changed(tiny_z_image.folder(), tmp_path / 'dynamic', 'scheduler', use_dynamic_shifting=True)
    )
    # mu is that of FLUX.1, for tokens of 2 x 2 latents.
    assert dynamic.family.process(dynamic).of_shape((128, 128)).sampling_shift(50) == pytest.approx(np.exp(1.15))


def test_turbo_generates_in_few_steps_without_guidance_and_trains_only_if_asked_to(tmp_path, caplog):
    turbo = Cascade.load(
        changed(tiny_z_image.folder(), tmp_path / 'turbo', 'scheduler', shift=3.0), size=tiny_z_image.SIZE
    )
    usual = turbo.base.family.usual_sampling(turbo.base)
    assert usual == {'sampler': 'euler', 'steps': 8, 'guidance_scale': 1.0}
    with pytest.raises(ConfigError, match='guidance_scale is 4 but .* is distilled and needs none; set it to 1'):
        turbo.sampler(BASE, 4, 4.0, 'euler')
    with pytest.raises(ConfigError, match='is distilled: .* or set config.base.train_distilled to True'):
        check_schedules(settings(), turbo)
    asked = dataclasses.replace(settings(), base=dataclasses.replace(settings().base, train_distilled=True))
    check_schedules(asked, turbo)
    assert 'is distilled: the longer it trains, the more its images blur in few steps.' in caplog.text
    with pytest.raises(ConfigError) as error:
        check_schedules(asked, MODEL.cascade)
    assert str(error.value) == (
        f'config.base.train_distilled is True but {MODEL.cascade.base.name} is not distilled; leave it False'
    )


def test_prompts_are_read_as_by_diffusers_and_padding_is_marked():
    found = MODEL.cascade.encode(PROMPTS)
    mask = found['encoder_attention_mask']
    with torch.no_grad():
        expected, _ = tiny_z_image.torch_pipeline().encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    assert [len(states) for states in expected] == list(mask.sum(axis=1)) and mask.shape == (3, 512)
    assert len(expected[1]) > 32 > len(expected[0])
    for states, own, reference in zip(found['encoder_hidden_states'], mask, expected, strict=True):
        assert_near(states[own != 0], reference, 3e-6)


def test_latents_are_those_of_the_script_and_of_the_pipeline():
    space, vae = MODEL.cascade.base.space, tiny_z_image.torch_pipeline().vae
    assert (space.channels, space.scale, space.halvings, space.decoder) == (4, 2, 1, 'vae')
    kept = space.prepare(IMAGES, None, flip=False, pairs=False)
    with torch.no_grad():
        mode = vae.encode(nchw(IMAGES.astype(np.float32) / 127.5 - 1)).latent_dist.mode()
        latents = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert_near(kept['latents'], nhwc(latents), 6e-6)
    found = space.decode(space.vae.params, jnp.asarray(kept['latents']))
    assert_near(found, nhwc(pixels).clip(-1, 1), 3e-5)


def test_a_training_loss_is_that_of_the_script():
    """The same images, noise and times, with prompts of different lengths; the weight of every time is 1."""
    MODEL.check_loss(IMAGES, PROMPTS)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    pipe = MODEL.check_written_folder(tmp_path / 'model', diffusers.ZImagePipeline, spread=0.05)
    # The language model is whole: diffusers finds all its layers, and the same ones.
    found = pipe.text_encoder.state_dict()
    assert found.keys() == tiny_z_image.torch_pipeline().text_encoder.state_dict().keys()
    for name, value in tiny_z_image.torch_pipeline().text_encoder.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize('format', lora_files.FORMATS)
def test_a_lora_of_the_usual_layers_is_loaded_by_diffusers(tmp_path, format):
    blocks = ('noise_refiner.0', 'context_refiner.0', 'layers.0', 'layers.1')
    attention, feed_forward = ('to_q', 'to_k', 'to_v', 'to_out.0'), ('w1', 'w2', 'w3')
    names = [f'attention.{name}' for name in attention] + [f'feed_forward.{name}' for name in feed_forward]
    layers = {name.rpartition('.')[0] for name in MODEL.lora}
    assert layers == {f'{block}.{name}' for block in blocks for name in names}
    MODEL.check_lora(tmp_path, format)


def test_a_language_model_that_was_saved_with_its_head_is_read_alike(tmp_path):
    """Trainers save the text encoder as the class that they load."""
    entry = {'text_encoder': ['transformers', 'Qwen3ForCausalLM']}
    saved = read_pipeline(changed(tiny_z_image.folder(), tmp_path / 'saved', None, **entry))
    network, plain = (pipeline.components['text_encoder'] for pipeline in (saved, MODEL.cascade.base))
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
    check_schedules(settings(), MODEL.cascade)
    with pytest.raises(
        ConfigError, match='config.base.train_text_encoder is True but the text_encoder of .* is read only as far'
    ):
        check_schedules(settings(train_text_encoder=True), MODEL.cascade)
    with_target = dataclasses.replace(settings(), lora=LoraConfig(rank=2, targets=('.*attn.*',)))
    with pytest.raises(ConfigError, match='matches no linear or convolution layer of transformer of the base stage'):
        check_lora_targets(with_target, MODEL.cascade)
