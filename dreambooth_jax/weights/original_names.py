"""The names of tensors in original Stable Diffusion files, beside the names of diffusers and transformers.

The original code (CompVis/latent-diffusion, Stability-AI/stablediffusion, generative-models) numbers the layers of a
UNet in one sequence, input_blocks.1 ... input_blocks.11, while diffusers nests them. It counts the levels of a decoder
from the highest resolution, while diffusers counts from the lowest. OpenCLIP has its own names for the layers of CLIP.

Every table is {our module: original module} without the prefix of the component. It holds each module once, so it can
be read in both directions. A tensor is a module's `weight` or `bias`. What needs more than a new name is converted in
original_layout.py.

Source: checked against diffusers 0.42.1 loaders/single_file_utils.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from dreambooth_jax.models import unet_config
from dreambooth_jax.weights.original_facts import UNET_PREFIX, OriginalLayout

Config = Mapping[str, Any]

VAE_PREFIX = 'first_stage_model.'
# OpenCLIP-H has 24 layers. SD 2.x uses the output of the 23rd, and diffusers' folders do not hold the last layer.
OPEN_CLIP_H_LAYERS = 23

# Empty tensors that say how a model was trained: to predict v, and with a schedule that ends in pure noise.
V_MARKER, ZERO_SNR_MARKER = 'v_pred', 'ztsnr'
# Further tensors of original files: constants of a noise schedule, averaged weights, the training loss of the
# autoencoder, and parts of CLIP that a text-to-image model does not use.
_CONSTANTS = (
    r'betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?'
    r'|posterior_\w+|lvlb_weights|logvar|scale_factor'
)
IGNORED = re.compile(
    rf'(low_scale_model\.)?({_CONSTANTS})|model_ema\..*|first_stage_model\.(loss|model_ema)\..*|denoiser\..*'
    rf'|(cond_stage_model|conditioner)\..*\.(position_ids|logit_scale|attn_mask)|cond_stage_model\.logit_scale'
    rf'|(cond_stage_model|conditioner\.embedders\.0)\.(model|transformer)\.text_projection(\.weight)?'
    rf'|cond_stage_model\.model\.transformer\.resblocks\.{OPEN_CLIP_H_LAYERS}\..*|{V_MARKER}|{ZERO_SNR_MARKER}'
)

_RESNET = {
    'norm1': 'in_layers.0',
    'conv1': 'in_layers.2',
    'time_emb_proj': 'emb_layers.1',
    'norm2': 'out_layers.0',
    'conv2': 'out_layers.3',
    'conv_shortcut': 'skip_connection',
}
_TRANSFORMER = ('norm', 'proj_in', 'proj_out')  # the names inside a transformer are the same on both sides
_TRANSFORMER_BLOCK = (
    *(f'attn{i}.{part}' for i in (1, 2) for part in ('to_q', 'to_k', 'to_v', 'to_out.0')),
    *('norm1', 'norm2', 'norm3', 'ff.net.0.proj', 'ff.net.2'),
)
_VAE_RESNET = {name: name for name in ('norm1', 'conv1', 'norm2', 'conv2')} | {'conv_shortcut': 'nin_shortcut'}
_VAE_PROJECTIONS = {'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out.0': 'proj_out'}
_VAE_ATTENTION = {'group_norm': 'norm', **_VAE_PROJECTIONS}
# Original names of kernels that are 1x1 convolutions there and linear layers in diffusers.
VAE_CONVOLUTIONS = {
    f'{half}.mid.attn_1.{name}.weight' for half in ('encoder', 'decoder') for name in _VAE_PROJECTIONS.values()
}
# Parameters of OpenCLIP that belong to no layer: {our name: original name}. Its text projection is the transpose of
# ours.
OPEN_CLIP_PROJECTION = 'text_projection'
OPEN_CLIP_BARE = {
    'text_model.embeddings.position_embedding.weight': 'positional_embedding',
    'text_projection.weight': OPEN_CLIP_PROJECTION,
}
_CLIP_FUSED = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')  # OpenCLIP has one tensor, in this order
_OPEN_CLIP_LAYER = {
    'layer_norm1': 'ln_1',
    'layer_norm2': 'ln_2',
    'mlp.fc1': 'mlp.c_fc',
    'mlp.fc2': 'mlp.c_proj',
    'self_attn.out_proj': 'attn.out_proj',
}


def prefixes(layout: OriginalLayout) -> dict[str, str]:
    """Returns {component: prefix of the names of its tensors}."""
    return {'unet': UNET_PREFIX, 'vae': VAE_PREFIX, **layout.text_prefixes}


def canonical(name: str) -> str:
    """Returns the usual original name of a tensor: converters of 2023 left out `text_model` in the layers of CLIP."""
    return re.sub(
        r'^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)',
        r'\1.transformer.text_model.',
        name,
    )


def _inside(ours: str, original: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f'{ours}.{ours_name}': f'{original}.{original_name}' for ours_name, original_name in names.items()}


def _transformer(ours: str, original: str, depth: int) -> dict[str, str]:
    names = [*_TRANSFORMER, *(f'transformer_blocks.{i}.{name}' for i in range(depth) for name in _TRANSFORMER_BLOCK)]
    return _inside(ours, original, dict(zip(names, names, strict=True)))


def _per_block(value: Any, blocks: int) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * blocks


def unet_modules(config: Config) -> dict[str, str]:
    """Returns {our module: original module} for a UNet2DConditionModel of the Stable Diffusion families.

    Args:
      config: its config.json; missing keys have diffusers' defaults.
    """
    config = {**unet_config.DEFAULTS, **config}
    down, up = config['down_block_types'], config['up_block_types']
    blocks = len(down)
    layers = _per_block(config['layers_per_block'], blocks)
    depths = _per_block(config['transformer_layers_per_block'], blocks)
    table = {
        'time_embedding.linear_1': 'time_embed.0',
        'time_embedding.linear_2': 'time_embed.2',
        'conv_in': 'input_blocks.0.0',
        'conv_norm_out': 'out.0',
        'conv_out': 'out.2',
    }
    if config['num_class_embeds'] is not None:
        table['class_embedding'] = 'label_emb'
    if config['addition_embed_type'] == 'text_time':
        table |= {'add_embedding.linear_1': 'label_emb.0.0', 'add_embedding.linear_2': 'label_emb.0.2'}

    # The original code counts ResNets and downsamplers in one sequence; a ResNet and its attention share an index.
    index = 0
    for i, kind in enumerate(down):
        for j in range(layers[i]):
            index += 1
            table |= _inside(f'down_blocks.{i}.resnets.{j}', f'input_blocks.{index}.0', _RESNET)
            if 'CrossAttn' in kind:
                table |= _transformer(f'down_blocks.{i}.attentions.{j}', f'input_blocks.{index}.1', depths[i])
        if i < blocks - 1:
            index += 1
            table[f'down_blocks.{i}.downsamplers.0.conv'] = f'input_blocks.{index}.0.op'

    table |= _inside('mid_block.resnets.0', 'middle_block.0', _RESNET)
    table |= _transformer('mid_block.attentions.0', 'middle_block.1', depths[-1])
    table |= _inside('mid_block.resnets.1', 'middle_block.2', _RESNET)

    # Going up, an upsampler does not have an index of its own.
    index = -1
    for i, kind in enumerate(up):
        level, attends = blocks - 1 - i, 'CrossAttn' in kind
        for j in range(layers[level] + 1):
            index += 1
            table |= _inside(f'up_blocks.{i}.resnets.{j}', f'output_blocks.{index}.0', _RESNET)
            if attends:
                table |= _transformer(f'up_blocks.{i}.attentions.{j}', f'output_blocks.{index}.1', depths[level])
        if i < blocks - 1:
            # The upsampler comes after the ResNet and, if the block has attention, after the attention.
            table[f'up_blocks.{i}.upsamplers.0.conv'] = f'output_blocks.{index}.{1 + attends}.conv'
    return table


def vae_modules(config: Config) -> dict[str, str]:
    """Returns {our module: original module} for an AutoencoderKL.

    Args:
      config: its config.json; only block_out_channels and layers_per_block are read.
    """
    config = {'block_out_channels': (64,), 'layers_per_block': 1, **config}  # diffusers' defaults
    levels, layers = len(config['block_out_channels']), config['layers_per_block']
    table = {name: name for name in ('quant_conv', 'post_quant_conv')}
    for half in ('encoder', 'decoder'):
        table |= {f'{half}.{name}': f'{half}.{name}' for name in ('conv_in', 'conv_out')}
        table[f'{half}.conv_norm_out'] = f'{half}.norm_out'
        for i in range(2):
            table |= _inside(f'{half}.mid_block.resnets.{i}', f'{half}.mid.block_{i + 1}', _VAE_RESNET)
        table |= _inside(f'{half}.mid_block.attentions.0', f'{half}.mid.attn_1', _VAE_ATTENTION)
    for i in range(levels):
        for j in range(layers):
            table |= _inside(f'encoder.down_blocks.{i}.resnets.{j}', f'encoder.down.{i}.block.{j}', _VAE_RESNET)
        for j in range(layers + 1):
            table |= _inside(
                f'decoder.up_blocks.{i}.resnets.{j}', f'decoder.up.{levels - 1 - i}.block.{j}', _VAE_RESNET
            )
        if i < levels - 1:
            table[f'encoder.down_blocks.{i}.downsamplers.0.conv'] = f'encoder.down.{i}.downsample.conv'
            table[f'decoder.up_blocks.{i}.upsamplers.0.conv'] = f'decoder.up.{levels - 1 - i}.upsample.conv'
    return table


def is_open_clip(prefix: str) -> bool:
    """Whether the text encoder with this prefix, one of OriginalLayout.text_prefixes, has OpenCLIP's names."""
    return prefix.endswith('.model.')


def clip_modules(config: Config) -> dict[str, str]:
    """Returns {module: same module} for transformers' CLIPTextModel, whose names SD 1.x and SDXL files keep."""
    layer = (*_OPEN_CLIP_LAYER, *_CLIP_FUSED)
    names = [f'encoder.layers.{i}.{name}' for i in range(_clip_layers(config)) for name in layer]
    names += ['embeddings.token_embedding', 'embeddings.position_embedding', 'final_layer_norm']
    return {f'text_model.{name}': f'text_model.{name}' for name in names}


def open_clip_modules(config: Config) -> dict[str, str]:
    """Returns {our module: original module} for OpenCLIP's text encoder, without open_clip_fused and OPEN_CLIP_BARE."""
    table = {'text_model.embeddings.token_embedding': 'token_embedding', 'text_model.final_layer_norm': 'ln_final'}
    for i in range(_clip_layers(config)):
        table |= _inside(f'text_model.encoder.layers.{i}', f'transformer.resblocks.{i}', _OPEN_CLIP_LAYER)
    return table


def open_clip_fused(config: Config) -> dict[str, list[str]]:
    """Returns {original tensor: our tensors, which it holds joined along the first axis} for OpenCLIP's attention."""
    return {
        f'transformer.resblocks.{i}.attn.in_proj_{leaf}': [
            f'text_model.encoder.layers.{i}.{name}.{leaf}' for name in _CLIP_FUSED
        ]
        for i in range(_clip_layers(config))
        for leaf in ('weight', 'bias')
    }


def _clip_layers(config: Config) -> int:
    return {'num_hidden_layers': 12, **config}['num_hidden_layers']  # transformers' default
