"""Published configurations build, without memory, with exactly the published number of parameters.

The values for IF are those of deep-floyd/IF's model cards and of diffusers' scripts/convert_if.py; the counts were
taken from diffusers 0.42.1 and from the original network of deep-floyd/IF, which agree. Those of Stable Diffusion are
in the config.json files of its repositories, and the counts agree with the sizes of the published weights; so do those
of FLUX.1, FLUX.2 Klein, Z-Image, Stable Diffusion 3.5 and Qwen3.
"""

import pytest

from dreambooth_jax.models import functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.flux import FluxTransformer2DModel
from dreambooth_jax.models.flux2 import Flux2Transformer2DModel
from dreambooth_jax.models.qwen3 import Qwen3Model
from dreambooth_jax.models.sd3 import SD3Transformer2DModel
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.models.vae import AutoencoderKL
from dreambooth_jax.models.vae_flux2 import AutoencoderKLFlux2
from dreambooth_jax.models.z_image import ZImageTransformer2DModel

IF = {
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 64,
    'attention_head_dim': 64,
    'cross_attention_norm': 'group_norm',
    'encoder_hid_dim': 4096,
    'encoder_hid_dim_type': 'text_proj',
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
}
IF_I = {
    **IF,
    'down_block_types': ['ResnetDownsampleBlock2D'] + 3 * ['SimpleCrossAttnDownBlock2D'],
    'in_channels': 3,
    'layers_per_block': 3,
    'sample_size': 64,
    'up_block_types': 3 * ['SimpleCrossAttnUpBlock2D'] + ['ResnetUpsampleBlock2D'],
}
IF_II = {
    **IF,
    'class_embed_type': 'timestep',
    'down_block_types': 3 * ['ResnetDownsampleBlock2D'] + 2 * ['SimpleCrossAttnDownBlock2D'],
    'in_channels': 6,
    'mid_block_scale_factor': 1.4142271248762552,
    'resnet_out_scale_factor': 1.4142271248762552,
    'resnet_skip_time_act': True,
    'sample_size': 256,
    'time_embedding_act_fn': 'gelu',
    'up_block_types': 2 * ['SimpleCrossAttnUpBlock2D'] + 3 * ['ResnetUpsampleBlock2D'],
}


def first_stage(width):
    return {**IF_I, 'block_out_channels': [width * n for n in (1, 2, 3, 4)], 'cross_attention_dim': 4 * width}


def second_stage(widths, layers):
    last = widths[-1]
    changes = {'block_out_channels': widths, 'layers_per_block': layers, 'cross_attention_dim': last}
    return {**IF_II, **changes, 'time_embedding_dim': last}


# What diffusers' defaults give is left out, as the oldest files do.
SD_2 = {'attention_head_dim': [5, 10, 20, 20], 'cross_attention_dim': 1024, 'use_linear_projection': True}
SDXL = {
    'addition_embed_type': 'text_time',
    'addition_time_embed_dim': 256,
    'attention_head_dim': [5, 10, 20],
    'block_out_channels': [320, 640, 1280],
    'cross_attention_dim': 2048,
    'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
    'num_attention_heads': None,
    'projection_class_embeddings_input_dim': 2816,
    'transformer_layers_per_block': [1, 2, 10],
    'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
    'upcast_attention': None,
    'use_linear_projection': True,
}
X4_UPSCALER = {
    'block_out_channels': [256, 512, 512, 1024],
    'cross_attention_dim': 1024,
    'down_block_types': ['DownBlock2D'] + 3 * ['CrossAttnDownBlock2D'],
    'in_channels': 7,
    'num_class_embeds': 1000,
    'only_cross_attention': [True, True, True, False],
    'up_block_types': 3 * ['CrossAttnUpBlock2D'] + ['UpBlock2D'],
    'use_linear_projection': True,
}

COUNTS = {
    'deepfloyd-if-i-m': (first_stage(192), 371_605_830),
    'deepfloyd-if-i-xl': (first_stage(704), 4_304_695_110),
    'deepfloyd-if-ii-m': (second_stage([128, 256, 512, 768, 768], [2, 2, 3, 4, 2]), 461_064_198),
    'deepfloyd-if-ii-l': (second_stage([160, 320, 640, 960, 1280], [2, 2, 3, 5, 5]), 1_243_277_190),
    'stable-diffusion-v1-5': ({'cross_attention_dim': 768}, 859_520_964),
    'stable-diffusion-2-1': ({**SD_2, 'sample_size': 96, 'upcast_attention': True}, 865_910_724),
    'stable-diffusion-xl-base-1.0': (SDXL, 2_567_463_684),
    'stable-diffusion-x4-upscaler': (X4_UPSCALER, 473_398_020),
}
T5_XXL = {
    'd_ff': 10240,
    'd_kv': 64,
    'd_model': 4096,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 64,
    'num_layers': 24,
    'vocab_size': 32128,
}


QUICK = ('stable-diffusion-v1-5',)


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS]
)
def test_unet_has_the_published_number_of_parameters(name):
    config, count = COUNTS[name]
    _, params = functional.abstract(lambda: UNet2DConditionModel(config, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


def test_t5_xxl_has_the_published_number_of_parameters():
    _, params = functional.abstract(lambda: T5EncoderModel(T5_XXL, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == 4_762_310_656


def autoencoder(widths, **changes):
    return {
        'act_fn': 'silu',
        'block_out_channels': widths,
        'down_block_types': len(widths) * ['DownEncoderBlock2D'],
        'in_channels': 3,
        'latent_channels': 4,
        'layers_per_block': 2,
        'norm_num_groups': 32,
        'out_channels': 3,
        'up_block_types': len(widths) * ['UpDecoderBlock2D'],
        **changes,
    }


AUTOENCODERS = {
    'stable-diffusion-v1-5': (autoencoder([128, 256, 512, 512], sample_size=512), 83_653_863),
    'stable-diffusion-2-1': (autoencoder([128, 256, 512, 512], sample_size=768), 83_653_863),
    'stable-diffusion-xl': (
        autoencoder([128, 256, 512, 512], force_upcast=True, sample_size=1024, scaling_factor=0.13025),
        83_653_863,
    ),
    'stable-diffusion-x4-upscaler': (autoencoder([128, 256, 512], sample_size=256, scaling_factor=0.08333), 55_325_927),
    # Also that of FLUX.1 and Z-Image, which have other factors.
    'stable-diffusion-3.5': (
        autoencoder(
            [128, 256, 512, 512],
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_post_quant_conv=False,
            use_quant_conv=False,
        ),
        83_819_683,
    ),
}


@pytest.mark.parametrize('name', AUTOENCODERS)
def test_autoencoder_has_the_published_number_of_parameters(name):
    config, count = AUTOENCODERS[name]
    _, params = functional.abstract(lambda: AutoencoderKL(config, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


def text_encoder(width, heads, layers, activation, projected):
    return {
        'eos_token_id': 2,
        'hidden_act': activation,
        'hidden_size': width,
        'intermediate_size': 4 * width,
        'layer_norm_eps': 1e-5,
        'max_position_embeddings': 77,
        'model_type': 'clip_text_model',
        'num_attention_heads': heads,
        'num_hidden_layers': layers,
        'projection_dim': projected,
        'vocab_size': 49408,
    }


TEXT_ENCODERS = {
    'clip-l': (text_encoder(768, 12, 12, 'quick_gelu', 768), False, 123_060_480),  # SD 1.x, first of XL
    'clip-l-projected': (text_encoder(768, 12, 12, 'quick_gelu', 768), True, 123_650_304),  # first of SD 3.5
    'openclip-h': (text_encoder(1024, 16, 23, 'gelu', 512), False, 340_387_840),  # SD 2.x and the upscaler
    'openclip-bigg': (text_encoder(1280, 20, 32, 'gelu', 1280), True, 694_659_840),  # second of XL and of SD 3.5
}


@pytest.mark.parametrize('name', TEXT_ENCODERS)
def test_clip_text_encoder_has_the_published_number_of_parameters(name):
    config, projection, count = TEXT_ENCODERS[name]
    _, params = functional.abstract(lambda: CLIPTextModel(config, projection=projection, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


def klein(heads, text_width, blocks, single_blocks):
    return {
        'attention_head_dim': 128,
        'guidance_embeds': False,
        'joint_attention_dim': text_width,
        'num_attention_heads': heads,
        'num_layers': blocks,
        'num_single_layers': single_blocks,
    }


def qwen3(width, hidden, **changes):
    return {
        'head_dim': 128,
        'hidden_size': width,
        'intermediate_size': hidden,
        'max_position_embeddings': 40960,
        'model_type': 'qwen3',
        'num_attention_heads': 32,
        'num_hidden_layers': 36,
        'num_key_value_heads': 8,
        'rope_theta': 1000000,
        'vocab_size': 151936,
        **changes,
    }


def sd3(heads, layers, dual, longest):
    return {
        'caption_projection_dim': 64 * heads,
        'dual_attention_layers': list(range(dual)),
        'num_attention_heads': heads,
        'num_layers': layers,
        'pos_embed_max_size': longest,
        'qk_norm': 'rms_norm',
    }


Z_IMAGE = {'axes_lens': [1536, 512, 512]}
# An untied head of Qwen3-8B, which is not built, has 622_329_856 more. Klein reads 27 of the layers.
FLOW = {
    # With the table of positions, which trains nowhere.
    'stable-diffusion-3.5-medium': (SD3Transformer2DModel, sd3(24, 24, 13, 384), 2_243_171_520 + 226_492_416),
    'stable-diffusion-3.5-large': (SD3Transformer2DModel, sd3(38, 38, 0, 192), 8_056_627_520 + 89_653_248),
    'flux1-dev': (FluxTransformer2DModel, {'guidance_embeds': True}, 11_901_408_320),
    'flux1-schnell': (FluxTransformer2DModel, {'guidance_embeds': False}, 11_891_178_560),
    'flux2-klein-base-4b': (Flux2Transformer2DModel, klein(24, 7680, 5, 20), 3_875_544_576),
    'flux2-klein-base-9b': (Flux2Transformer2DModel, klein(32, 12288, 8, 24), 9_078_581_248),
    'z-image': (ZImageTransformer2DModel, Z_IMAGE, 6_154_908_736),
    'qwen3-4b': (Qwen3Model, qwen3(2560, 9728), 4_022_468_096),
    'qwen3-8b': (Qwen3Model, qwen3(4096, 12288), 8_190_735_360 - 622_329_856),
    'flux2-autoencoder': (AutoencoderKLFlux2, {}, 84_046_115 + 2 * 128),  # published without its statistics
}


# Larger ones of the same architecture, or all but equal.
BESIDE = ('stable-diffusion-3.5-large', 'flux1-schnell', 'flux2-klein-base-9b', 'qwen3-8b')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in BESIDE else name for name in FLOW]
)
def test_networks_of_flow_models_have_the_published_number_of_parameters(name):
    network, config, count = FLOW[name]
    _, params = functional.abstract(lambda: network(config, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


def test_klein_reads_prompts_with_three_quarters_of_the_layers():
    config = qwen3(2560, 9728)
    layer = 2560 * 9728 * 3 + 2560 * 128 * (32 + 8) * 2 + 2 * 128 + 2 * 2560
    _, params = functional.abstract(lambda: Qwen3Model(config, states=(9, 18, 27), rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == 4_022_468_096 - 9 * layer - 2560
