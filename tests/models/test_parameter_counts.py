"""Published configurations build, without memory, with exactly the published number of parameters.

The values are those of deep-floyd/IF's model cards and of diffusers' scripts/convert_if.py; the counts were taken from
diffusers 0.42.1 and from the original network of deep-floyd/IF, which agree.
"""

import pytest

from dreambooth_jax.models import functional
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel

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


COUNTS = {
    'deepfloyd-if-i-m': (first_stage(192), 371_605_830),
    'deepfloyd-if-i-l': (first_stage(320), 935_365_830),
    'deepfloyd-if-i-xl': (first_stage(704), 4_304_695_110),
    'deepfloyd-if-ii-m': (second_stage([128, 256, 512, 768, 768], [2, 2, 3, 4, 2]), 461_064_198),
    'deepfloyd-if-ii-l': (second_stage([160, 320, 640, 960, 1280], [2, 2, 3, 5, 5]), 1_243_277_190),
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


@pytest.mark.parametrize('name', COUNTS)
def test_unet_has_the_published_number_of_parameters(name):
    config, count = COUNTS[name]
    _, params = functional.abstract(lambda: UNet2DConditionModel(config, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


def test_t5_xxl_has_the_published_number_of_parameters():
    _, params = functional.abstract(lambda: T5EncoderModel(T5_XXL, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == 4_762_310_656
