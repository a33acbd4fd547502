"""Networks of a pipeline with a UNet fit their family and each other, or it is one sentence."""

import dataclasses

import pytest

from dreambooth_jax.families import unet_checks
from dreambooth_jax.families.family import of_class
from dreambooth_jax.weights import guard
from tests.support import tiny_networks as tiny
from tests.support import tiny_pipelines
from tests.support.reports import sentence_of
from tests.support.tiny_stable_diffusion import CONFIGS, folder_configs

SD, XL = 'StableDiffusionPipeline', 'StableDiffusionXLPipeline'
IF, IF_SECOND = 'IFPipeline', 'IFSuperResolutionPipeline'
PIXELS = {'unet': tiny.UNET, 'text_encoder': tiny.TEXT_ENCODER}
SECOND = {'unet': tiny.SUPER_RESOLUTION_UNET, 'text_encoder': tiny.TEXT_ENCODER}
VARIANT = 'x is a variant of {} that takes {} channels (inpainting, editing or depth), but {} are supported'


CLIP_2 = folder_configs('sdxl')['text_encoder_2']


@pytest.mark.parametrize(
    ('class_name', 'configs', 'component', 'change', 'sentence'),
    [
        (SD, 'sd1', 'unet', {'in_channels': 5}, VARIANT.format('Stable Diffusion', 5, 4)),
        (SD, 'sd1', 'unet', {'in_channels': 7}, VARIANT.format('Stable Diffusion', 7, 4)),
        (SD, 'sd1', 'unet', {'out_channels': 8}, 'the UNet of x predicts 8 channels but the latents of its VAE have 4'),
        (SD, 'sd1', 'vae', {'latent_channels': 16}, 'x predicts 4 channels but the latents of its VAE have 16'),
        (SD, 'sd1', 'vae', {'in_channels': 6}, 'the VAE of x has in_channels 6, but images have 3'),
        (SD, 'sd1', 'vae', {'shift_factor': 0.1}, 'x has shift_factor 0.1, but the latents of a UNet are not shifted'),
        (SD, 'sd1', 'unet', {'cross_attention_dim': 48}, 'text embeddings of width 48 but its text encoder writes 32'),
        (SD, 'sd1', 'text_encoder', {'hidden_size': 64}, 'text embeddings of width 32 but its text encoder writes 64'),
        (SD, 'sd1', 'unet', {'cross_attention_dim': [32, 48]}, 'of width 32 and 48 but its text encoder writes 32'),
        (SD, 'sd1', 'unet', {'num_class_embeds': 10}, 'x has class_embed_type None and num_class_embeds 10, which is'),
        (SD, 'sd1', 'unet', {'class_embed_type': 'timestep'}, "x has class_embed_type 'timestep' and num_class_embeds"),
        (SD, 'sd1', 'unet', {'time_cond_proj_dim': 256}, 'time_cond_proj_dim is 256 but must be None: a UNet that is'),
        (SD, 'sd1', 'unet', {'num_attention_heads': 8}, 'num_attention_heads is 8 but must be None: no other value is'),
        (SD, 'sd1', 'unet', {'quantization_config': {'a': 1}}, 'quantization_config is there, but quantised weights'),
        (SD, 'sd1', 'unet', {'_class_name': 'UNet2DModel'}, "_class_name is 'UNet2DModel' but must be 'UNet2DConditi"),
        (SD, 'sd1', 'vae', {'scaling_factor': float('inf')}, 'scaling_factor is inf but must be a positive number'),
        (XL, 'sdxl', 'unet', {'addition_embed_type': None}, 'x has addition_embed_type None, which is no UNet of'),
        (
            XL,
            'sdxl',
            'text_encoder_2',
            {'projection_dim': 32},
            'but its text_encoder_2 and 6 numbers of 256 features make 1568',
        ),
        (XL, 'sdxl', 'text_encoder_2', {'architectures': ['CLIPTextModel']}, '6 numbers of 256 features make 1600'),
        (
            'StableDiffusionUpscalePipeline',
            'upscaler',
            'unet',
            {'in_channels': 4},
            VARIANT.format('the Stable Diffusion x4 upscaler', 4, 7),
        ),
        ('StableDiffusionUpscalePipeline', 'upscaler', 'unet', {'num_class_embeds': None}, 'which is no UNet of the S'),
        (IF, PIXELS, 'unet', {'in_channels': 6}, VARIANT.format('DeepFloyd IF', 6, 3)),
        (IF, PIXELS, 'unet', {'out_channels': 4}, 'predicts 4 channels, but 3 are supported, or 6 with a learned'),
        (IF, PIXELS, 'text_encoder', CLIP_2, 'the text_encoder of x is a CLIP, but DeepFloyd IF reads prompts with'),
        (IF, PIXELS, 'text_encoder', {'relative_attention_num_buckets': 2}, 'num_buckets is 2 but must be an integer'),
        (IF_SECOND, SECOND, 'unet', {'in_channels': 3}, VARIANT.format("DeepFloyd IF's second stage", 3, 6)),
        (IF_SECOND, SECOND, 'unet', {'class_embed_type': None}, "which is no UNet of DeepFloyd IF's second stage"),
    ],
)
def test_networks_that_do_not_fit_are_one_sentence(class_name, configs, component, change, sentence):
    configs = dict(folder_configs(configs) if isinstance(configs, str) else configs)
    configs[component] = {**({} if change is CLIP_2 else configs[component]), **change}
    assert sentence in sentence_of(guard.check_networks, of_class(class_name), configs, 'x')


def test_a_unet_alone_is_held_to_itself():
    """Where only the UNet is read: its VAE and text encoder are not known, and are not asked for."""
    guard.check_networks(of_class(SD), {'unet': {**CONFIGS['sd1']['unet'], 'cross_attention_dim': 48}}, 'x')
    unet = {**CONFIGS['sd1']['unet'], 'in_channels': 9}
    assert VARIANT.format('Stable Diffusion', 9, 4) in sentence_of(
        guard.check_networks, of_class(SD), {'unet': unet}, 'x'
    )


def test_widths_of_text_states_are_read_from_configurations():
    assert unet_checks.widths_read({'cross_attention_dim': 768}) == {768}
    assert unet_checks.widths_read({**tiny.UNET, 'cross_attention_dim': 64}) == {24}  # of the projection before it
    blocks = [768, 768, 1024, 768]
    assert unet_checks.widths_read({'cross_attention_dim': blocks}) == {768, 1024}
    configs = folder_configs('sdxl')
    assert unet_checks.width_written([configs['text_encoder'], configs['text_encoder_2']]) == 96
    assert unet_checks.width_written([tiny.TEXT_ENCODER]) == 24


def wider(pipeline):
    """The second stage with a UNet that reads wider text states."""
    unet = dataclasses.replace(pipeline.denoiser, config={**pipeline.denoiser.config, 'encoder_hid_dim': 32})
    return pipeline.with_components(unet=unet)


def test_a_second_stage_shares_the_text_that_it_can_read():
    base, second = tiny_pipelines.base(), tiny_pipelines.super_resolution()
    assert unet_checks.shares_text(second, base)
    assert not unet_checks.shares_text(second, base.with_components(text_encoder=None))
    assert not unet_checks.shares_text(wider(second), base)
    unet_checks.check_shared_text(second, base)
    assert sentence_of(unet_checks.check_shared_text, wider(second), base) == (
        'this IFSuperResolutionPipeline reads text embeddings of width 32 but the text encoder of this IFPipeline '
        'writes 24; give the second stage that belongs to this model.'
    )
