"""The names that LoRA files give to the layers of a network.

`lora_peft` uses the dotted path of a layer. `lora_kohya` replaces dots by underscores, so the path cannot be recovered
from the name alone. Therefore names are never parsed: all possible names are made from the paths of a network, and the
name in a file is looked up among them. Files of other programs have more spellings:

    unet.<path>, text_encoder.<path>         diffusers, `lora_peft`; CLIP's also without `text_model.`
    <attention>.processor.to_q, .to_out      diffusers 0.12 to 0.18, with `unet.` or, at first, without
    <attention>.to_q, .to_out                the same for a text encoder, instead of q_proj and out_proj
    base_model.model.<path>                  PEFT itself
    lora_unet_<path>, lora_te_<path>         kohya, `lora_kohya`; in SDXL lora_te1_, lora_te2_
    lora_unet_<original>, lycoris_<path>     kohya's SDXL; LyCORIS
    diffusion_model.<original>               ComfyUI's save node
    text_encoders.clip_l.transformer.<path>  ComfyUI's save node

Original names are those of Stability's own code: input_blocks.1.1.transformer_blocks.0.attn1.to_q.

Source: kohya-ss/sd-scripts networks/lora.py; diffusers 0.42.1 loaders/lora_conversion_utils.py and
utils/state_dict_utils.py; AUTOMATIC1111 extensions-builtin/Lora/networks.py; ComfyUI comfy/lora.py.
"""

import re
from collections.abc import Iterable

from dreambooth_jax.weights.errors import WeightsError

# Stable Diffusion 1 and 2 have one text encoder and SDXL has two. The first one is read under either of its prefixes.
KOHYA_TEXT_ENCODERS = {'text_encoder': ('lora_te', 'lora_te1'), 'text_encoder_2': ('lora_te2',)}
KOHYA_UNET = 'lora_unet'

_PROJECTIONS = r'(to_[qkv]|to_out\.0)'
_TRANSFORMER = rf'transformer_blocks\.\d+\.(attn[12]\.{_PROJECTIONS}|ff\.net\.(0\.proj|2))'
_ATTENTION = rf'attentions\.\d+\.({_PROJECTIONS}|proj_in|proj_out|{_TRANSFORMER})'
_CONVOLUTION = r'(resnets|downsamplers|upsamplers)\.\d+\.(conv[12]?|conv_shortcut|time_emb_proj)'
# The layers that every reader of the format, except kohya itself (UNKNOWN_TO_KOHYA), finds by their kohya names;
# tests/weights/test_lora_clients.py records what each reader needs. Other layers, such as IF's add_k_proj and T5's q,
# have no name in the format.
_UNET = re.compile(
    r'conv_in|conv_out|time_embedding\.linear_[12]|'
    rf'(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.({_ATTENTION}|{_CONVOLUTION})'
)
_CLIP = re.compile(r'text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])')
# kohya's own LoRA network covers Transformer2DModel, resnets, downsamplers and upsamplers of the UNet. It silently
# drops the layers that match this pattern.
UNKNOWN_TO_KOHYA = re.compile(r'conv_in|conv_out|(time|add)_embedding\.linear_[12]')

# The original Stable Diffusion code's names of SDXL's layers; SDXL has two layers in each block.
_ORIGINAL = {
    'conv_in': 'input_blocks.0.0',
    'conv_out': 'out.2',
    'time_embedding.linear_1': 'time_embed.0',
    'time_embedding.linear_2': 'time_embed.2',
    'add_embedding.linear_1': 'label_emb.0.0',
    'add_embedding.linear_2': 'label_emb.0.2',
}
_ORIGINAL_RESNET = {
    'conv1': 'in_layers.2',
    'conv2': 'out_layers.3',
    'time_emb_proj': 'emb_layers.1',
    'conv_shortcut': 'skip_connection',
}
_COMFYUI_TEXT_ENCODERS = {'text_encoder': ('clip_l', 'clip_h'), 'text_encoder_2': ('clip_g',)}
PEFT_PREFIX = 'base_model.model.'
_PROJECTION = 'text_projection'  # of SDXL's second text encoder; we read its kohya name, but not all programs know it


def kohya_name(component: str, path: str, *, original: bool = False) -> str:
    """Returns the name of a layer in a kohya file, such as 'lora_unet_down_blocks_0_attentions_0_proj_in'.

    Args:
      component: 'unet', 'text_encoder' or 'text_encoder_2'.
      path: dotted path of the layer.
      original: whether the files of this model use the names of the original code (lora_unet_input_blocks_4_1_...),
        as those of SDXL do, because kohya trains SDXL in that code; only these names are read by kohya,
        AUTOMATIC1111, ComfyUI and diffusers alike. For Stable Diffusion 1 and 2 all four use the names of diffusers.
        kohya itself ignores the layers of UNKNOWN_TO_KOHYA.

    Raises:
      WeightsError: if the layer has no name that the readers of the format know.
    """
    if component == 'unet':
        spelling = _original(path) if original else path if _UNET.fullmatch(path) else None
        prefix = KOHYA_UNET
    else:
        spelling = path if _CLIP.fullmatch(path) and component in KOHYA_TEXT_ENCODERS else None
        prefix = KOHYA_TEXT_ENCODERS.get(component, ('',))[-1 if original else 0]
    if spelling is None:
        raise WeightsError(f'{component}.{path} has no name in the lora_kohya format.')
    return f'{prefix}_{spelling}'.replace('.', '_')


def layer_names(component: str, path: str) -> set[str]:
    """Returns every name that a layer may have in a file that we can read, without the ending for its part."""
    names = {f'{component}.{path}', f'{component}.{PEFT_PREFIX}{path}', f'{PEFT_PREFIX}{path}'}
    if component == 'unet':
        names |= _unet_names(path)
    else:
        names |= _text_names(component, path)
    return names


def owners(layers: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Maps every possible name in a file to the layer of the model that it stands for.

    A name that could stand for two layers is left out: `base_model.model.` with a path that both text encoders have,
    and original names of networks that were never part of the original code.

    Args:
      layers: (component, path) of every layer of the model.

    Returns:
      {name in a file: (component, path)}.
    """
    found, doubtful = {}, set()
    for layer in layers:
        for name in layer_names(*layer):
            if found.setdefault(name, layer) != layer:
                doubtful.add(name)
    return {name: layer for name, layer in found.items() if name not in doubtful}


def _unet_names(path: str) -> set[str]:
    attention, dot, projection = path.rpartition('.to_')
    spellings = {path}
    if dot:
        projection = projection.removesuffix('.0')
        spellings |= {f'{attention}.processor.to_{projection}', f'{attention}.to_{projection}'}
    names = spellings | {f'unet.{spelling}' for spelling in spellings}
    if _UNET.fullmatch(path):
        underscores = path.replace('.', '_')
        names |= {f'{KOHYA_UNET}_{underscores}', f'lycoris_{underscores}'}
    for original in filter(None, (_original(path), _original_after_resnet(path))):
        names |= {f'diffusion_model.{original}', f'{KOHYA_UNET}_{original}'.replace('.', '_')}
    return names


def _text_names(component: str, path: str) -> set[str]:
    # A CLIP of recent transformers has no `text_model`, and neither have LoRA files that were made with it.
    short = path.removeprefix('text_model.')
    # The first LoRA files of diffusers name the projections of a text encoder like those of a UNet.
    old = re.sub(r'\.self_attn\.(\w+)_proj$', r'.self_attn.to_\1', path)
    names = {f'{component}.{spelling}' for spelling in (short, old)} | {f'{PEFT_PREFIX}{short}'}
    if _CLIP.fullmatch(path) or path == _PROJECTION:
        prefixes = KOHYA_TEXT_ENCODERS.get(component, ())
        names |= {f'{prefix}_{path}'.replace('.', '_') for prefix in prefixes}
        prefixes = _COMFYUI_TEXT_ENCODERS.get(component, ())
        names |= {f'text_encoders.{prefix}.transformer.{path}' for prefix in prefixes}
    return names


def _original_after_resnet(path: str) -> str | None:
    """Returns the original name of the upsampler of a block without attention, which SD 1 and 2 have; else None."""
    match = re.fullmatch(r'up_blocks\.(\d+)\.upsamplers\.0\.conv', path)
    return f'output_blocks.{3 * int(match[1]) + 2}.1.conv' if match else None


def _original(path: str) -> str | None:
    if path in _ORIGINAL:
        return _ORIGINAL[path]
    if not _UNET.fullmatch(path):
        return None
    group, rest = re.fullmatch(r'(down_blocks|up_blocks|mid_block)\.(.*)', path).groups()
    block, kind, layer, rest = re.fullmatch(r'(\d*)\.?(\w+)\.(\d+)\.(.*)', rest).groups()
    block, layer = int(block or 0), int(layer)
    inside = 1 if kind == 'attentions' else 0
    if kind == 'resnets':
        rest = _ORIGINAL_RESNET[rest]
    if group == 'mid_block':
        return f'middle_block.{1 if inside else 2 * layer}.{rest}'
    if kind == 'downsamplers':
        return f'input_blocks.{3 * block + 3}.0.op'
    if kind == 'upsamplers':
        return f'output_blocks.{3 * block + 2}.2.conv'
    if group == 'down_blocks':
        return f'input_blocks.{3 * block + layer + 1}.{inside}.{rest}'
    return f'output_blocks.{3 * block + layer}.{inside}.{rest}'
