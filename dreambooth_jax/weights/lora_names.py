"""What LoRA files call the layers of a network.

`lora_peft` writes dotted paths. `lora_kohya` writes underscores for dots, so a file alone does not tell where a path
has its dots: names are made from the paths of a network and looked up, never taken apart.
Source: kohya-ss/sd-scripts networks/lora.py; diffusers 0.42.1 loaders/lora_conversion_utils.py; AUTOMATIC1111
extensions-builtin/Lora/networks.py; ComfyUI comfy/lora.py.
"""

import re

from dreambooth_jax.weights.errors import WeightsError

# Stable Diffusion 1 and 2 have one text encoder, SDXL has two; files of either spelling of the first are read.
KOHYA_TEXT_ENCODERS = {'text_encoder': ('lora_te', 'lora_te1'), 'text_encoder_2': ('lora_te2',)}
KOHYA_UNET = 'lora_unet'

_PROJECTIONS = r'(to_[qkv]|to_out\.0)'
_TRANSFORMER = rf'transformer_blocks\.\d+\.(attn[12]\.{_PROJECTIONS}|ff\.net\.(0\.proj|2))'
_ATTENTION = rf'attentions\.\d+\.({_PROJECTIONS}|proj_in|proj_out|{_TRANSFORMER})'
_CONVOLUTION = r'(resnets|downsamplers|upsamplers)\.\d+\.(conv[12]?|conv_shortcut|time_emb_proj)'
# The layers that diffusers finds again from their name with underscores; tests/weights/test_lora_files.py loads each.
# Others (IF's add_k_proj, T5's q) have no name in this format.
_UNET = re.compile(
    r'conv_in|conv_out|time_embedding\.linear_[12]|'
    rf'(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.({_ATTENTION}|{_CONVOLUTION})'
)
_CLIP = re.compile(r'text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])')

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


def kohya_name(component: str, path: str, *, sdxl: bool = False) -> str:
    """The name of a layer in a kohya file, e.g. 'lora_unet_down_blocks_0_attentions_0_proj_in'.

    Args:
      component: 'unet', 'text_encoder' or 'text_encoder_2'.
      path: dotted path of the layer.
      sdxl: whether the model is SDXL. Its files use the names of the original Stable Diffusion code
        (lora_unet_input_blocks_4_1_...), since kohya trains SDXL in that code: the only names that kohya,
        AUTOMATIC1111, ComfyUI and diffusers all take for all of its layers. Stable Diffusion 1 and 2 are trained
        there as diffusers names them, and so do all four expect it.
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


def kohya_names(component: str, path: str) -> set[str]:
    """Every name that a kohya file may have for a layer; empty if there is none."""
    names = set()
    for sdxl in (False, True):
        try:
            names.add(kohya_name(component, path, sdxl=sdxl))
        except WeightsError:
            continue
    return names


def _original(path: str) -> str | None:
    if path in _ORIGINAL:
        return _ORIGINAL[path]
    if not _UNET.fullmatch(path):
        return None
    place, rest = re.fullmatch(r'(down_blocks|up_blocks|mid_block)\.(.*)', path).groups()
    block, kind, layer, rest = re.fullmatch(r'(\d*)\.?(\w+)\.(\d+)\.(.*)', rest).groups()
    block, layer = int(block or 0), int(layer)
    inside = 1 if kind == 'attentions' else 0
    if kind == 'resnets':
        rest = _ORIGINAL_RESNET[rest]
    if place == 'mid_block':
        return f'middle_block.{1 if inside else 2 * layer}.{rest}'
    if kind == 'downsamplers':
        return f'input_blocks.{3 * block + 3}.0.op'
    if kind == 'upsamplers':
        return f'output_blocks.{3 * block + 2}.2.conv'
    if place == 'down_blocks':
        return f'input_blocks.{3 * block + layer + 1}.{inside}.{rest}'
    return f'output_blocks.{3 * block + layer}.{inside}.{rest}'
