"""What LoRA files call the layers of a network.

`lora_peft` writes dotted paths. `lora_kohya` writes underscores for dots, so a file alone does not tell where a path
has its dots: names are made from the paths of a network and looked up, never taken apart. Files from elsewhere have
more spellings:

    unet.<path>, text_encoder.<path>         diffusers, `lora_peft`; CLIP's also without `text_model.`
    <attention>.processor.to_q, .to_out      diffusers 0.12 to 0.18, with `unet.` or, at first, without
    <attention>.to_q, .to_out                the same of a text encoder, for q_proj and out_proj
    base_model.model.<path>                  PEFT itself
    lora_unet_<path>, lora_te_<path>         kohya, `lora_kohya`; in SDXL lora_te1_, lora_te2_
    lora_unet_<original>, lycoris_<path>     kohya's SDXL; LyCORIS
    diffusion_model.<original>               ComfyUI, as its save node writes them
    text_encoders.clip_l.transformer.<path>

Original names are those of Stability's own code: input_blocks.1.1.transformer_blocks.0.attn1.to_q.
Source: kohya-ss/sd-scripts networks/lora.py; diffusers 0.42.1 loaders/lora_conversion_utils.py and
utils/state_dict_utils.py; AUTOMATIC1111 extensions-builtin/Lora/networks.py; ComfyUI comfy/lora.py.
"""

import re
from collections.abc import Iterable

from dreambooth_jax.weights.errors import WeightsError

# Stable Diffusion 1 and 2 have one text encoder, SDXL has two; files of either spelling of the first are read.
KOHYA_TEXT_ENCODERS = {'text_encoder': ('lora_te', 'lora_te1'), 'text_encoder_2': ('lora_te2',)}
KOHYA_UNET = 'lora_unet'

_PROJECTIONS = r'(to_[qkv]|to_out\.0)'
_TRANSFORMER = rf'transformer_blocks\.\d+\.(attn[12]\.{_PROJECTIONS}|ff\.net\.(0\.proj|2))'
_ATTENTION = rf'attentions\.\d+\.({_PROJECTIONS}|proj_in|proj_out|{_TRANSFORMER})'
_CONVOLUTION = r'(resnets|downsamplers|upsamplers)\.\d+\.(conv[12]?|conv_shortcut|time_emb_proj)'
# The layers that every reader of the format but kohya (UNKNOWN_TO_KOHYA) finds again from their name;
# tests/weights/test_lora_clients.py holds what each asks for. Others (IF's add_k_proj, T5's q) have no name there.
_UNET = re.compile(
    r'conv_in|conv_out|time_embedding\.linear_[12]|'
    rf'(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.({_ATTENTION}|{_CONVOLUTION})'
)
_CLIP = re.compile(r'text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])')
# kohya's own LoRA network has Transformer2DModel, resnets and samplers of the UNet: these it drops without a word.
UNKNOWN_TO_KOHYA = re.compile(r'conv_in|conv_out|(time|add)_embedding\.linear_[12]')

# Original Stable Diffusion's names of SDXL's layers, whose blocks have two layers.
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
_PROJECTION = 'text_projection'  # of SDXL's second text encoder: read under kohya's name, but not all readers know it


def kohya_name(component: str, path: str, *, sdxl: bool = False) -> str:
    """The name of a layer in a kohya file, e.g. 'lora_unet_down_blocks_0_attentions_0_proj_in'.

    Args:
      component: 'unet', 'text_encoder' or 'text_encoder_2'.
      path: dotted path of the layer.
      sdxl: whether the model is SDXL. Its files use the names of the original Stable Diffusion code
        (lora_unet_input_blocks_4_1_...), since kohya trains SDXL in that code: the only names that kohya,
        AUTOMATIC1111, ComfyUI and diffusers all take. Stable Diffusion 1 and 2 are trained there as diffusers names
        them, and so do all four expect it. kohya itself leaves out the layers of UNKNOWN_TO_KOHYA.
    Raises: WeightsError if a layer has no name that readers of the format know.
    """
    if component == 'unet':
        spelling = _original(path) if sdxl else path if _UNET.fullmatch(path) else None
        prefix = KOHYA_UNET
    else:
        spelling = path if _CLIP.fullmatch(path) and component in KOHYA_TEXT_ENCODERS else None
        prefix = KOHYA_TEXT_ENCODERS.get(component, ('',))[-1 if sdxl else 0]
    if spelling is None:
        raise WeightsError(f'{component}.{path} has no name in the lora_kohya format.')
    return f'{prefix}_{spelling}'.replace('.', '_')


def layer_names(component: str, path: str) -> set[str]:
    """Every name that any file that is read may have for a layer."""
    names = {f'{component}.{path}', f'{component}.{PEFT_PREFIX}{path}', f'{PEFT_PREFIX}{path}'}
    if component == 'unet':
        names |= _unet_names(path)
    else:
        names |= _text_names(component, path)
    return names


def owners(layers: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """{name in a file: (component, path)} of a model's layers.

    A name that two layers could have says nothing and is left out: `base_model.model.` of either of two text encoders,
    original names of networks that were never in the original code.
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
    # Recent transformers have no `text_model` in a CLIP, nor have the LoRA files made with them.
    short = path.removeprefix('text_model.')
    # diffusers' first files call a text encoder's projections as the UNet's.
    old = re.sub(r'\.self_attn\.(\w+)_proj$', r'.self_attn.to_\1', path)
    names = {f'{component}.{spelling}' for spelling in (short, old)} | {f'{PEFT_PREFIX}{short}'}
    if _CLIP.fullmatch(path) or path == _PROJECTION:
        prefixes = KOHYA_TEXT_ENCODERS.get(component, ())
        names |= {f'{prefix}_{path}'.replace('.', '_') for prefix in prefixes}
        prefixes = _COMFYUI_TEXT_ENCODERS.get(component, ())
        names |= {f'text_encoders.{prefix}.transformer.{path}' for prefix in prefixes}
    return names


def _original_after_resnet(path: str) -> str | None:
    """The name of an upsampler in a block without attention, as Stable Diffusion 1 and 2 have one; None of others."""
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
