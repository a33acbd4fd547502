"""The layer names that other programs look up in a LoRA file, for Stable Diffusion 1, 2 and XL of published size.

These are facts about their code, written anew: ComfyUI a125cd84 (comfy/lora.py), Forge dfdcbab6 (the same map),
AUTOMATIC1111 v1.10.1 (extensions-builtin/Lora/networks.py and network.py), kohya sd-scripts 48d368fa (networks/lora.py
and, for SDXL, library/sdxl_original_unet.py) and OneTrainer 23df3832 (modules/util/load_lora_util.py). All of them were
run on our files.
"""

import functools
import re

from dreambooth_jax.weights import original_names
from tests.support import published_stable_diffusion as published

FAMILIES = ('sd1', 'sd2', 'sdxl')
LAYERS = {'sd1': (282, 72), 'sd2': (282, 138), 'sdxl': (794, 72 + 192)}  # numbers of layers: UNet, text encoders
KOHYA_ENDS = ('.lora_down.weight', '.lora_up.weight', '.alpha')
CLIP_LAYERS = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.out_proj', 'mlp.fc1', 'mlp.fc2')
_NORM = re.compile(r'.*\bnorm\d?|conv_norm_out')
_FORGETFUL = 12  # Forge ignores a file in which it does not know more keys than this


@functools.cache
def unet(family):
    """{path in diffusers: name in Stability's code} for all dense layers and convolutions of the UNet."""
    config = published.CONFIGS[family]['unet']
    channels = config['block_out_channels']
    # A shortcut has a layer only if the channels change: in the first block of a level going down, always going up.
    changes = [i for i in range(1, len(channels)) if channels[i] != channels[i - 1]]
    widens = {f'down_blocks.{i}.resnets.0.conv_shortcut' for i in changes}

    def is_there(path):
        return not path.endswith('conv_shortcut') or path.startswith('up_blocks') or path in widens

    modules = original_names.unet_modules(config)
    return {path: original for path, original in modules.items() if not _NORM.fullmatch(path) and is_there(path)}


def clips(family):
    """{component: paths of all dense layers in the blocks of a CLIP}."""
    configs = published.CONFIGS[family]
    components = [component for component in ('text_encoder', 'text_encoder_2') if component in configs]
    return {
        component: [
            f'text_model.encoder.layers.{i}.{layer}'
            for layer in CLIP_LAYERS
            for i in range(configs[component]['num_hidden_layers'])
        ]
        for component in components
    }


def comfyui(family):
    """ComfyUI's names: original and diffusers' with underscores, original and diffusers' names of 2023 with dots."""
    names = set()
    for path, original in unet(family).items():
        names |= {f'lora_unet_{original}'.replace('.', '_'), f'lora_unet_{path}'.replace('.', '_')}
        old = path.replace('.to_', '.processor.to_')
        old = old.removesuffix('.0') if old.endswith('.to_out.0') else old
        names |= {f'diffusion_model.{original}', old, f'unet.{old}'}
    for component, paths in clips(family).items():
        prefixes = ('lora_te', 'lora_te1') if component == 'text_encoder' else ('lora_te2',)
        for path in paths:
            names |= {f'{prefix}_{path}'.replace('.', '_') for prefix in prefixes} | {f'{component}.{path}'}
    return names


def forge_takes(family, names):
    """Whether Forge accepts a file with these names."""
    return len(set(names) - comfyui(family)) <= _FORGETFUL


def kohya(family):
    """Layers of kohya's LoRANetwork: Linear and Conv2d in transformers, resnets, samplers, CLIP's attention and MLP.

    For SDXL they have the names of kohya's own UNet, which are the original names.
    """
    names = {
        'lora_unet_' + (original if family == 'sdxl' else path).replace('.', '_')
        for path, original in unet(family).items()
        if re.search(r'\.(attentions|resnets|downsamplers|upsamplers)\.', path)
    }
    for index, paths in enumerate(clips(family).values(), 1):
        prefix = f'lora_te{index}' if family == 'sdxl' else 'lora_te'
        names |= {f'{prefix}_{path}'.replace('.', '_') for path in paths}
    return names


def a1111_modules(family):
    """The layers that AUTOMATIC1111 knows, which are those of Stability's own code, with underscores."""
    names = {f'diffusion_model_{original}'.replace('.', '_') for original in unet(family).values()}
    for component, paths in clips(family).items():
        open_clip = family == 'sd2' or component == 'text_encoder_2'
        index = '' if family != 'sdxl' else '1_' if component == 'text_encoder_2' else '0_'
        for path in paths:
            path = _open_clip(path.replace('.', '_')) if open_clip else f'transformer_{path}'.replace('.', '_')
            names.add(f'{index}{path}')
    return names


def _open_clip(path):
    layer, part = re.fullmatch(r'text_model_encoder_layers_(\d+)_(.*)', path).groups()
    part = part.replace('mlp_fc1', 'mlp_c_fc').replace('mlp_fc2', 'mlp_c_proj').replace('self_attn', 'attn')
    return f'model_transformer_resblocks_{layer}_{part}'


_RESNET = {
    'conv1': 'in_layers_2',
    'conv2': 'out_layers_3',
    'time_emb_proj': 'emb_layers_1',
    'conv_shortcut': 'skip_connection',
}
# How AUTOMATIC1111 translates the name of a UNet layer, counting three per block. SDXL's names match none and stay.
_A1111 = (
    (r'conv_in', lambda: 'input_blocks_0_0'),
    (r'conv_out', lambda: 'out_2'),
    (r'time_embedding_linear_(\d)', lambda n: f'time_embed_{2 * int(n) - 2}'),
    (r'down_blocks_(\d)_resnets_(\d)_(.+)', lambda b, n, x: f'input_blocks_{1 + 3 * int(b) + int(n)}_0_{_RESNET[x]}'),
    (r'down_blocks_(\d)_attentions_(\d)_(.+)', lambda b, n, x: f'input_blocks_{1 + 3 * int(b) + int(n)}_1_{x}'),
    (r'mid_block_resnets_(\d)_(.+)', lambda n, x: f'middle_block_{2 * int(n)}_{_RESNET[x]}'),
    (r'mid_block_attentions_\d_(.+)', lambda x: f'middle_block_1_{x}'),
    (r'up_blocks_(\d)_resnets_(\d)_(.+)', lambda b, n, x: f'output_blocks_{3 * int(b) + int(n)}_0_{_RESNET[x]}'),
    (r'up_blocks_(\d)_attentions_(\d)_(.+)', lambda b, n, x: f'output_blocks_{3 * int(b) + int(n)}_1_{x}'),
    (r'down_blocks_(\d)_downsamplers_0_conv', lambda b: f'input_blocks_{3 + 3 * int(b)}_0_op'),
    (r'up_blocks_(\d)_upsamplers_0_conv', lambda b: f'output_blocks_{2 + 3 * int(b)}_{2 if int(b) else 1}_conv'),
)


def a1111(family, name):
    """The layer that AUTOMATIC1111 looks up for `name` in a file."""
    if match := re.fullmatch('lora_unet_(.+)', name):
        found = ((re.fullmatch(pattern, match[1]), to) for pattern, to in _A1111)
        return 'diffusion_model_' + next((to(*groups.groups()) for groups, to in found if groups), match[1])
    if match := re.fullmatch('lora_te2_(.+)', name):
        return f'1_{_open_clip(match[1])}'
    if match := re.fullmatch('lora_te1_(.+)', name):
        return f'0_transformer_{match[1]}'
    match = re.fullmatch('lora_te_(.+)', name)
    return name if not match else _open_clip(match[1]) if family == 'sd2' else f'transformer_{match[1]}'


def a1111_version(metadata):
    """The models for which AUTOMATIC1111's Lora page shows a file; 'unknown' is shown for all."""
    if metadata.get('ss_base_model_version', '').startswith('sdxl_'):
        return 'sdxl'
    if metadata.get('ss_v2') == 'True':
        return 'sd2'
    return 'sd1' if metadata else 'unknown'


def forge_version(metadata):
    """The same for Forge, which reads the metadata of Stability's standard."""
    architecture = metadata.get('modelspec.architecture', '')
    known = {'stable-diffusion-v1': 'sd1', 'stable-diffusion-xl': 'sdxl'}
    return next((version for start, version in known.items() if architecture.startswith(start)), 'unknown')


# OneTrainer reads diffusers' dotted names with these endings, and kohya's names. It refuses any other ending.
ONETRAINER_ENDS = (
    '.lora_A.weight',
    '.lora_B.weight',
    '.lora.down.weight',
    '.lora.up.weight',
    '.lora_down.weight',
    '.lora_up.weight',
    '.lora_magnitude_vector.weight',
    '.dora_scale',
    '.alpha',
)


def onetrainer(family):
    """The names of layers that OneTrainer knows in its own models."""
    names = {f'unet.{path}' for path in unet(family)}
    names |= {f'lora_unet_{name}'.replace('.', '_') for pair in unet(family).items() for name in pair}
    for index, (component, paths) in enumerate(clips(family).items(), 1):
        prefix = f'lora_te{index}' if family == 'sdxl' else 'lora_te'
        names |= {f'{component}.{path}' for path in paths} | {f'{prefix}_{path}'.replace('.', '_') for path in paths}
    return names
