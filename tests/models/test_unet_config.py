"""Which UNet configurations can be built, completed with diffusers' defaults; one sentence for each other value."""

import inspect

import diffusers
import pytest

from dreambooth_jax.models import unet_config
from tests.support import tiny_networks as tiny


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.UNet2DConditionModel.__init__)
    theirs = {name: p.default for name, p in signature.parameters.items() if name != 'self'}
    assert theirs == unet_config.DEFAULTS


def test_an_empty_configuration_is_the_default_one_with_one_entry_for_each_block():
    full = unet_config.resolve({})
    assert full.keys() == unet_config.DEFAULTS.keys()
    assert full['layers_per_block'] == (2, 2, 2, 2) and full['cross_attention_dim'] == (1280,) * 4
    assert full['only_cross_attention'] == (False,) * 4 and full['mid_block_only_cross_attention'] is False
    assert {key: full[key] for key in unet_config.FIXED} == {
        key: unet_config.DEFAULTS[key] for key in unet_config.FIXED
    }


def test_lists_stay_in_the_order_of_the_down_blocks():
    full = unet_config.resolve({**tiny.UNET, 'layers_per_block': [1, 2], 'attention_head_dim': [16, 8]})
    assert full['layers_per_block'] == (1, 2) and full['attention_head_dim'] == (16, 8)


@pytest.mark.parametrize(
    ('given', 'of_middle', 'expected'),
    [(True, None, True), ([True, False], None, False), (True, False, False), (False, True, True)],
)
def test_the_middle_block_attends_as_all_others_unless_it_is_told(given, of_middle, expected):
    config = {**tiny.UNET, 'only_cross_attention': given, 'mid_block_only_cross_attention': of_middle}
    assert unet_config.resolve(config)['mid_block_only_cross_attention'] is expected


def test_what_is_no_part_of_the_network_is_left_out():
    extra = {'_diffusers_version': '0.42.1', '_name_or_path': 'x', 'decay': 0.9999, 'use_ema_warmup': True}
    assert unet_config.resolve({**tiny.UNET, **extra}) == unet_config.resolve(tiny.UNET)


def test_a_projection_of_the_text_is_named_where_its_width_is_given():
    config = {key: value for key, value in tiny.UNET.items() if key != 'encoder_hid_dim_type'}
    assert unet_config.resolve(config)['encoder_hid_dim_type'] == 'text_proj'


@pytest.mark.parametrize(
    ('size', 'sides'),
    [(64, (64, 64)), ([8, 12], (8, 12)), ((8, 12), (8, 12)), (None, (None, None)), ([8], ([8], [8]))],
)
def test_one_number_stands_for_height_and_width(size, sides):
    assert unet_config.sides({'sample_size': size}) == sides
    assert unet_config.sides({}) == (None, None)


@pytest.mark.parametrize(
    'change, sentence',
    [
        (
            {'down_block_types': ['ResnetDownsampleBlock2D', 'FooBlock']},
            "unet config: down_block_types[1] is 'FooBlock' but must be one of ('ResnetDownsampleBlock2D', "
            "'SimpleCrossAttnDownBlock2D'",
        ),
        ({'use_linear_projection': 1}, 'unet config: use_linear_projection is 1 but must be one of (False, True)'),
        (
            {'transformer_layers_per_block': [1, [1, 2]]},
            'unet config: transformer_layers_per_block[1] is [1, 2] but must be a positive integer',
        ),
        ({'num_class_embeds': 0}, 'unet config: num_class_embeds is 0 but must be None or a positive integer'),
        ({'num_attention_heads': 8}, 'unet config: num_attention_heads is 8 but must be None: no other value'),
        (
            {'addition_embed_type': 'text_time', 'addition_time_embed_dim': 256},
            'unet config: projection_class_embeddings_input_dim is None but must be an integer when',
        ),
        (
            {'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D'], 'attention_head_dim': [16, 5]},
            "unet config: attention_head_dim[1] is 5 but must be a divisor of the block's width 32, being the number",
        ),
        ({'mid_block_type': None}, 'unet config: mid_block_type is None but must be one of ('),
        ({'act_fn': 'elu'}, "unet config: act_fn is 'elu' but must be one of ("),
        ({'addition_embed_type': 'image'}, "unet config: addition_embed_type is 'image' but must be one of ("),
        ({'dropout': 0.1}, 'unet config: dropout is 0.1 but must be 0.0: no other value is implemented'),
        ({'time_embedding_type': 'fourier'}, "unet config: time_embedding_type is 'fourier' but must be 'positional'"),
        ({'attention_heads': 8}, "unet config: unknown key 'attention_heads'; it must be one of ("),
        ({'layers_per_block': [1, 1, 1]}, 'unet config: layers_per_block is [1, 1, 1] but must be a list of 2 entries'),
        ({'layers_per_block': [1, 0]}, 'unet config: layers_per_block[1] is 0 but must be a positive integer'),
        ({'in_channels': '3'}, "unet config: in_channels is '3' but must be a positive integer"),
        ({'norm_num_groups': None}, 'unet config: norm_num_groups is None but must be a positive integer'),
        ({'norm_eps': 0}, 'unet config: norm_eps is 0 but must be a positive number'),
        ({'encoder_hid_dim': None}, 'unet config: encoder_hid_dim is None but must be an integer when'),
        ({'conv_out_kernel': 2}, 'unet config: conv_out_kernel is 2 but must be an odd integer'),
        (
            {'block_out_channels': [16, 20]},
            'unet config: block_out_channels[1] is 20 but must be a multiple of norm_num_groups, which is 8',
        ),
        (
            {'attention_head_dim': 12},
            "unet config: attention_head_dim[1] is 12 but must be a divisor of the block's width 32",
        ),
        ({'cross_attention_dim': 48}, 'unet config: cross_attention_dim[1] is 48 but must be a multiple of 32'),
        (
            {'cross_attention_norm': 'layer_norm', 'cross_attention_dim': 16},
            "unet config: cross_attention_dim[1] is 16 but must be the block's width 32",
        ),
        (
            {'addition_embed_type_num_heads': 5},
            "unet config: addition_embed_type_num_heads is 5 but must be a divisor of the text states' width 24",
        ),
    ],
)
def test_unsupported_unet_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        unet_config.resolve({**tiny.UNET, **change})
    assert str(error.value).startswith(sentence)
    assert '\n' not in str(error.value)
