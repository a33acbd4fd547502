"""Checks which UNet configurations can be built, and completes them with diffusers' defaults.

Source of the defaults: diffusers 0.42.1 models/unets/unet_2d_condition.py, the constructor of UNet2DConditionModel.
"""

from collections.abc import Mapping
from typing import Any

from dreambooth_jax.models.attention import CROSS_NORM_GROUPS
from dreambooth_jax.models.configuration import check_known, is_positive
from dreambooth_jax.models.layers import ACTIVATIONS
from dreambooth_jax.models.unet_blocks import DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS, BlockKind

DEFAULTS: dict[str, Any] = {
    'sample_size': None,
    'in_channels': 4,
    'out_channels': 4,
    'center_input_sample': False,
    'flip_sin_to_cos': True,
    'freq_shift': 0,
    'down_block_types': ('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
    'mid_block_type': 'UNetMidBlock2DCrossAttn',
    'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
    'only_cross_attention': False,
    'block_out_channels': (320, 640, 1280, 1280),
    'layers_per_block': 2,
    'downsample_padding': 1,
    'mid_block_scale_factor': 1,
    'dropout': 0.0,
    'act_fn': 'silu',
    'norm_num_groups': 32,
    'norm_eps': 1e-5,
    'cross_attention_dim': 1280,
    'transformer_layers_per_block': 1,
    'reverse_transformer_layers_per_block': None,
    'encoder_hid_dim': None,
    'encoder_hid_dim_type': None,
    'attention_head_dim': 8,
    'num_attention_heads': None,
    'dual_cross_attention': False,
    'use_linear_projection': False,
    'class_embed_type': None,
    'addition_embed_type': None,
    'addition_time_embed_dim': None,
    'num_class_embeds': None,
    'upcast_attention': False,
    'resnet_time_scale_shift': 'default',
    'resnet_skip_time_act': False,
    'resnet_out_scale_factor': 1.0,
    'time_embedding_type': 'positional',
    'time_embedding_dim': None,
    'time_embedding_act_fn': None,
    'timestep_post_act': None,
    'time_cond_proj_dim': None,
    'conv_in_kernel': 3,
    'conv_out_kernel': 3,
    'projection_class_embeddings_input_dim': None,
    'attention_type': 'default',
    'class_embeddings_concat': False,
    'mid_block_only_cross_attention': None,
    'cross_attention_norm': None,
    'addition_embed_type_num_heads': 64,
}
_ACTIVATIONS = tuple(ACTIVATIONS)
# Allowed values of a key, or of each entry if it is a list. Logits are always f32, so upcast_attention has no effect.
CHOICES: dict[str, tuple] = {
    'down_block_types': tuple(DOWN_BLOCKS),
    'mid_block_type': tuple(MID_BLOCKS),
    'up_block_types': tuple(UP_BLOCKS),
    'act_fn': _ACTIVATIONS,
    'time_embedding_act_fn': (None, *_ACTIVATIONS),
    'encoder_hid_dim_type': (None, 'text_proj'),
    'class_embed_type': (None, 'timestep'),
    'addition_embed_type': (None, 'text', 'text_time'),
    'resnet_time_scale_shift': ('default', 'scale_shift'),
    'cross_attention_norm': (None, 'layer_norm', 'group_norm'),
    'mid_block_only_cross_attention': (None, False, True),
    'upcast_attention': (None, False, True),
    **{
        key: (False, True)
        for key in ('center_input_sample', 'flip_sin_to_cos', 'only_cross_attention', 'resnet_skip_time_act')
        + ('use_linear_projection',)
    },
}
# Only the default values of these keys are implemented.
FIXED = (
    'downsample_padding',
    'dropout',
    'reverse_transformer_layers_per_block',
    'num_attention_heads',
    'dual_cross_attention',
    'time_embedding_type',
    'timestep_post_act',
    'attention_type',
    'class_embeddings_concat',
)
POSITIVE_INTEGERS = (
    'in_channels',
    'out_channels',
    'block_out_channels',
    'layers_per_block',
    'norm_num_groups',
    'cross_attention_dim',
    'attention_head_dim',
    'transformer_layers_per_block',
    'conv_in_kernel',
    'conv_out_kernel',
    'addition_embed_type_num_heads',
)
OPTIONAL_INTEGERS = (
    'encoder_hid_dim',
    'time_embedding_dim',
    'num_class_embeds',
    'addition_time_embed_dim',
    'projection_class_embeddings_input_dim',
)
POSITIVE_NUMBERS = ('norm_eps', 'mid_block_scale_factor', 'resnet_out_scale_factor')
PER_BLOCK = (
    'only_cross_attention',
    'layers_per_block',
    'cross_attention_dim',
    'attention_head_dim',
    'transformer_layers_per_block',
)
# Keys that diffusers' EMAModel writes beside the averaged weights. They belong to the training, not to the network.
EMA_KEYS = (
    'decay',
    'inv_gamma',
    'min_decay',
    'optimization_step',
    'power',
    'update_after_step',
    'use_ema_warmup',
)
SEQUENCES = ('down_block_types', 'up_block_types', 'block_out_channels')


class _Wrong(ValueError):
    def __init__(self, key: str, value: Any, allowed: str):
        super().__init__(f'unet config: {key} is {value!r} but must be {allowed}')


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes a UNet's config.json.

    Args:
      config: as diffusers writes it. Keys that start with '_' and EMA_KEYS are ignored; missing keys have diffusers'
        defaults.

    Returns:
      All keys of DEFAULTS. The keys of SEQUENCES and PER_BLOCK are tuples with one entry for each block, in the order
      of the down blocks; mid_block_only_cross_attention is a bool.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    check_known('unet', config, (*DEFAULTS, *EMA_KEYS), told=DEFAULTS)
    full = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS}}
    if full['encoder_hid_dim'] is not None and full['encoder_hid_dim_type'] is None:
        full['encoder_hid_dim_type'] = 'text_proj'  # diffusers does the same
    _check_values(full)
    _check_lengths(full)
    if full['mid_block_only_cross_attention'] is None:
        shared = full['only_cross_attention']
        full['mid_block_only_cross_attention'] = shared if isinstance(shared, bool) else False
    blocks = len(full['block_out_channels'])
    for key in PER_BLOCK:
        value = full[key]
        full[key] = tuple(value) if isinstance(value, list | tuple) else (value,) * blocks
    _check_widths(full)
    return full


def sides(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns (height, width) of the UNet's input in training, from its config.json.

    A single number stands for both. The result is (None, None) if the file does not say it.
    """
    size = config.get('sample_size')
    return tuple(size) if isinstance(size, list | tuple) and len(size) == 2 else (size, size)


def _entries(full, key):
    """Returns [(key, value)], or (name, value) for each entry if the value is a list."""
    value = full[key]
    if key in (*SEQUENCES, *PER_BLOCK) and isinstance(value, list | tuple):
        return [(f'{key}[{index}]', entry) for index, entry in enumerate(value)]
    return [(key, value)]


def _check_values(full):
    # Lists come first, because the later checks go through their entries.
    for key in SEQUENCES:
        if not isinstance(full[key], list | tuple) or not full[key]:
            raise _Wrong(key, full[key], 'a list with one entry per block')
    for key, allowed in CHOICES.items():
        for name, value in _entries(full, key):
            if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
                raise _Wrong(name, value, f'one of ({", ".join(map(repr, allowed))})')
    if full['time_cond_proj_dim'] is not None:
        allowed = 'None: a UNet that is told its guidance, distilled as LCM does, is not implemented'
        raise _Wrong('time_cond_proj_dim', full['time_cond_proj_dim'], allowed)
    for key in FIXED:
        if full[key] != DEFAULTS[key]:
            raise _Wrong(key, full[key], f'{DEFAULTS[key]!r}: no other value is implemented')
    for key in POSITIVE_INTEGERS:
        for name, value in _entries(full, key):
            if not is_positive(value, int):
                raise _Wrong(name, value, 'a positive integer')
    for key in OPTIONAL_INTEGERS:
        if full[key] is not None and not is_positive(full[key], int):
            raise _Wrong(key, full[key], 'None or a positive integer')
    for key in POSITIVE_NUMBERS:
        if not is_positive(full[key], int | float):
            raise _Wrong(key, full[key], 'a positive number')
    if full['sample_size'] is not None and not all(is_positive(side, int) for side in sides(full)):
        raise _Wrong('sample_size', full['sample_size'], 'None, a positive integer, or a list of two, height and width')
    shift = full['freq_shift']
    if not isinstance(shift, int | float) or isinstance(shift, bool) or not abs(shift) <= 1:
        raise _Wrong('freq_shift', shift, 'a number in [-1, 1]')
    for key in ('conv_in_kernel', 'conv_out_kernel'):
        if full[key] % 2 == 0:
            raise _Wrong(key, full[key], 'an odd integer')


def _check_lengths(full):
    blocks = len(full['block_out_channels'])
    for key in (*SEQUENCES, *PER_BLOCK):
        value = full[key]
        if isinstance(value, list | tuple) and len(value) != blocks:
            raise _Wrong(key, value, f'a list of {blocks} entries, one per entry of block_out_channels')
    if full['encoder_hid_dim_type'] is not None and full['encoder_hid_dim'] is None:
        kind = full['encoder_hid_dim_type']
        raise _Wrong('encoder_hid_dim', None, f'an integer when encoder_hid_dim_type is {kind!r}')
    if full['addition_embed_type'] == 'text_time':
        for key in ('addition_time_embed_dim', 'projection_class_embeddings_input_dim'):
            if full[key] is None:
                raise _Wrong(key, None, "an integer when addition_embed_type is 'text_time'")


def _check_widths(full):
    """Checks widths that must be divisible by each other; the per-block keys of `full` are tuples."""
    channels, groups = full['block_out_channels'], full['norm_num_groups']
    for index, width in enumerate(channels):
        if width % groups:
            raise _Wrong(f'block_out_channels[{index}]', width, f'a multiple of norm_num_groups, which is {groups}')
    for kind, entry, level in _attending(full):
        heads_or_width, text_width = full['attention_head_dim'][entry], full['cross_attention_dim'][level]
        block = f"the block's width {channels[level]}"
        if channels[level] % heads_or_width:
            meaning = ', being the number of heads' if kind.attention == 'transformer' else ''
            raise _Wrong(f'attention_head_dim[{entry}]', heads_or_width, f'a divisor of {block}{meaning}')
        if kind.attention != 'added_kv':
            continue
        norm, key = full['cross_attention_norm'], f'cross_attention_dim[{level}]'
        if norm == 'group_norm' and text_width % CROSS_NORM_GROUPS:
            raise _Wrong(key, text_width, f'a multiple of {CROSS_NORM_GROUPS} for cross_attention_norm {norm!r}')
        if norm == 'layer_norm' and text_width != channels[level]:
            raise _Wrong(key, text_width, f'{block} for cross_attention_norm {norm!r}')
    if full['encoder_hid_dim'] is not None and len(set(full['cross_attention_dim'])) > 1:
        raise _Wrong('cross_attention_dim', full['cross_attention_dim'], 'one integer when encoder_hid_dim is set')
    text_width = full['encoder_hid_dim'] or full['cross_attention_dim'][0]
    if full['addition_embed_type'] == 'text' and text_width % full['addition_embed_type_num_heads']:
        heads = full['addition_embed_type_num_heads']
        raise _Wrong('addition_embed_type_num_heads', heads, f"a divisor of the text states' width {text_width}")


def _attending(full) -> list[tuple[BlockKind, int, int]]:
    """Returns (kind, index into attention_head_dim, level) for every block with attention."""
    last = len(full['block_out_channels']) - 1
    blocks = [(DOWN_BLOCKS[name], level, level) for level, name in enumerate(full['down_block_types'])]
    blocks.append((MID_BLOCKS[full['mid_block_type']], last, last))
    for index, name in enumerate(full['up_block_types']):
        kind, level = UP_BLOCKS[name], last - index
        # diffusers does not reverse this list for up blocks if it holds head widths, but reverses numbers of heads.
        blocks.append((kind, index if kind.attention == 'added_kv' else level, level))
    return [block for block in blocks if block[0].attention is not None]
