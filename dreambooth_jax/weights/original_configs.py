"""Recognises the model in a single file of the original layout, and derives the configurations of its networks.

Such a file does not say how its networks are built. The names and shapes of its tensors determine the family and all
sizes. Whatever leaves no trace in a tensor (number of heads, activations, scale of the latents, scheduler) is taken
from the published models of the family. So a published file gives the published configuration, and a file with narrower
or fewer layers gives a configuration that fits it.

Families: 'sd1' (Stable Diffusion 1.x), 'sd2' (2.0, 2.1), 'sdxl' (SDXL base) and 'upscaler' (x4 upscaler).

Source: the published model_index.json, unet, vae, text_encoder and scheduler configurations of stable-diffusion-v1-5,
-2-1, -2-1-base, -x4-upscaler and -xl-base-1.0; how to tell the families apart: diffusers 0.42.1 single_file_utils.py.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_jax.weights import guard, original_names
from dreambooth_jax.weights.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

TITLES = {
    'sd1': 'Stable Diffusion 1.x',
    'sd2': 'Stable Diffusion 2.x',
    'sdxl': 'Stable Diffusion XL',
    'upscaler': 'the Stable Diffusion x4 upscaler',
}
FAMILIES = tuple(TITLES)
EPSILON, V_PREDICTION = PREDICTION_TYPES = ('epsilon', 'v_prediction')
# Names of the files as which SD 2.0 and 2.1 were published. Files of the two kinds differ only in the values of their
# tensors, so neither names nor shapes of tensors tell which prediction a file was trained for.
PUBLISHED_PREDICTION_TYPES = {
    **dict.fromkeys(('512-base-ema', 'v2-1_512-ema-pruned', 'v2-1_512-nonema-pruned'), EPSILON),
    **dict.fromkeys(('768-v-ema', 'v2-1_768-ema-pruned', 'v2-1_768-nonema-pruned'), V_PREDICTION),
}

# The padding token of each tokenizer. All are CLIPTokenizers with one vocabulary; a single file does not hold it.
PAD_TOKENS: dict[str, dict[str, str]] = {
    'sd1': {'tokenizer': '<|endoftext|>'},
    'sd2': {'tokenizer': '!'},
    'sdxl': {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'},
    'upscaler': {'tokenizer': '!'},
}
_PIPELINES: dict[str, Config] = {
    'sd1': {'_class_name': 'StableDiffusionPipeline'},
    'sd2': {'_class_name': 'StableDiffusionPipeline'},
    'sdxl': {'_class_name': 'StableDiffusionXLPipeline', 'force_zeros_for_empty_prompt': True},
    'upscaler': {'_class_name': 'StableDiffusionUpscalePipeline', 'max_noise_level': 350},
}
_IN_CHANNELS = {'sd1': 4, 'sd2': 4, 'sdxl': 4, 'upscaler': 7}
_VAE: dict[str, Config] = {
    'sd1': {'scaling_factor': 0.18215},
    'sd2': {'scaling_factor': 0.18215},
    'sdxl': {'scaling_factor': 0.13025, 'force_upcast': True},
    'upscaler': {'scaling_factor': 0.08333},
}
_HEAD_WIDTH = 64  # width of a head in every CLIP and in the UNets of SD 2.x and SDXL
_HEADS = 8  # number of heads in the UNets of SD 1.x and the upscaler
_TEXT_TIME_WIDTH = 256  # SDXL: number of sinusoidal features for each size and crop value
_TEXT = {'bos_token_id': 0, 'eos_token_id': 2, 'pad_token_id': 1, 'layer_norm_eps': 1e-5}
_BETAS = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012, 'num_train_timesteps': 1000}
_UPSCALER_BETAS = {**_BETAS, 'beta_start': 0.0001, 'beta_end': 0.02}
_SAMPLING = {'clip_sample': False, 'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1}


def detect(shapes: Shapes, *, source: str = 'the file') -> str:
    """Recognises the family of a whole model in the original layout.

    Args:
      shapes: {original name: shape}, as files.read_header returns them.
      source: name of the file for an error.
    Returns: one of FAMILIES.
    Raises: WeightsError, one sentence, if the file holds only a part of a model, has another layout, or holds a model
      that is not supported.
    """
    parts = {
        'UNet': original_names.UNET_PREFIX,
        'VAE': original_names.VAE_PREFIX,
        'text encoder': ('cond_stage_model.', 'conditioner.embedders.'),
    }
    missing = [part for part, prefix in parts.items() if not any(name.startswith(prefix) for name in shapes)]
    if missing:
        raise WeightsError(
            f'{source} holds no {" and no ".join(missing)} under names of the original Stable Diffusion layout (its '
            f'first is {min(shapes, default="not there")}); give a whole model of {", ".join(TITLES.values())}, or a '
            f'pipeline folder.'
        )
    # The order matters: the upscaler has the text encoder of SD 2.x, so it must be recognised first.
    labels = original_names.UNET_PREFIX + 'label_emb'
    if f'{labels}.weight' in shapes:
        family = 'upscaler'
    elif any(name.startswith(original_names.TEXT_PREFIXES['sdxl']['text_encoder_2']) for name in shapes):
        family = 'sdxl'
    elif any(name.startswith(original_names.TEXT_PREFIXES['sd2']['text_encoder']) for name in shapes):
        family = 'sd2'
    elif any(name.startswith(original_names.TEXT_PREFIXES['sd1']['text_encoder']) for name in shapes):
        family = 'sd1'
    else:
        raise WeightsError(
            f'{source} has a text encoder of another model, such as the SDXL refiner; supported are '
            f'{", ".join(TITLES.values())}.'
        )
    # Inpainting and other variants have the same names but more input channels.
    channels = _Sizes(shapes, source).unet('input_blocks.0.0.weight')[1]
    guard.check_channels(source, TITLES[family], channels, _IN_CHANNELS[family])
    return family


def family_of(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Recognises the family of the networks of a pipeline folder.

    Args:
      configs: {component: contents of its config.json}; must hold 'unet' and 'text_encoder', others are not read.
    Returns: one of FAMILIES.
    Raises: WeightsError, one sentence, if the networks are of no such family.
    """
    if not {'unet', 'text_encoder'} <= configs.keys():
        raise WeightsError(f'configs holds {", ".join(configs) or "nothing"} but must hold unet and text_encoder.')
    unet, text = configs['unet'], configs['text_encoder']
    # Older configurations lack these keys; then they have the default that is given here.
    if {'addition_embed_type': None, **unet}['addition_embed_type'] == 'text_time':
        return 'sdxl'
    if {'num_class_embeds': None, **unet}['num_class_embeds'] is not None:
        return 'upscaler'
    activation = {'hidden_act': 'quick_gelu', **text}['hidden_act']
    if activation not in ('quick_gelu', 'gelu') or 'd_model' in text:
        raise WeightsError(
            f'text_encoder is no CLIP (its hidden_act is {activation!r}), but only {", ".join(TITLES.values())} '
            f'have an original layout; export a diffusers folder instead.'
        )
    return 'sd1' if activation == 'quick_gelu' else 'sd2'


def derive(
    shapes: Shapes,
    family: str,
    *,
    prediction_type: str | None = None,
    resolution: int | None = None,
    source: str = 'the file',
) -> dict[str, Config]:
    """Derives the configurations that a pipeline folder would have for the networks of a file.

    Args:
      shapes: {original name: shape}.
      family: the result of `detect`.
      prediction_type: one of PREDICTION_TYPES; by default V_PREDICTION for the upscaler and EPSILON for the others.
      resolution: side in pixels of the images that the model is made for, if the file's metadata says it; by default
        that of the published models.
      source: name of the file for an error.
    Returns: {name: contents of that JSON file} for 'model_index', 'unet', 'vae', 'text_encoder' and 'scheduler'; also
      'text_encoder_2' for SDXL and 'low_res_scheduler' for the upscaler.
    Raises: WeightsError, one sentence, if a tensor that every such model has is missing.
    """
    prediction_type = prediction_type or (V_PREDICTION if family == 'upscaler' else EPSILON)
    if prediction_type not in PREDICTION_TYPES:
        raise WeightsError(f'prediction_type is {prediction_type!r}; it must be one of {PREDICTION_TYPES}.')
    sizes = _Sizes(shapes, source)
    published = {'sd1': 512, 'sd2': 512 if prediction_type == EPSILON else 768, 'sdxl': 1024, 'upscaler': 512}
    resolution = resolution or published[family]
    configs = {
        'vae': _vae(sizes, family, resolution),
        'scheduler': _scheduler(family, prediction_type),
    }
    for component, prefix in original_names.TEXT_PREFIXES[family].items():
        configs[component] = _text(sizes, prefix, family)
    configs['unet'] = _unet(sizes, family, resolution // 2 ** (len(configs['vae']['block_out_channels']) - 1))
    # The published configurations of these models differ from the others in this.
    if family == 'sd2' and prediction_type == V_PREDICTION:
        configs['unet']['upcast_attention'] = True
    if family == 'upscaler':
        configs['low_res_scheduler'] = {
            **_UPSCALER_BETAS,
            '_class_name': 'DDPMScheduler',
            'clip_sample': True,
            'prediction_type': EPSILON,
            'variance_type': 'fixed_small',
        }
    return {'model_index': _model_index(family, configs), **configs}


def _model_index(family: str, configs: Mapping[str, Config]) -> Config:
    index = {**_PIPELINES[family], 'unet': ['diffusers', 'UNet2DConditionModel'], 'vae': ['diffusers', 'AutoencoderKL']}
    for component, config in configs.items():
        if 'scheduler' in component:
            index[component] = ['diffusers', config['_class_name']]
        elif 'text_encoder' in component:
            index[component] = ['transformers', *config['architectures']]
    return index | dict.fromkeys(PAD_TOKENS[family], ['transformers', 'CLIPTokenizer'])


class _Sizes:
    """Shapes of the matrices and kernels in a file; a missing tensor, or one with fewer axes, is a WeightsError."""

    def __init__(self, shapes: Shapes, source: str):
        self.shapes, self.source = shapes, source

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise WeightsError(f'{self.source} holds no {name}; it is no complete model: download or export it again.')
        if len(self.shapes[name]) < 2:
            raise WeightsError(
                f'{self.source} holds {name} of shape {list(self.shapes[name])}, which is no matrix; download or '
                f'export it again.'
            )
        return self.shapes[name]

    def unet(self, name: str) -> tuple[int, ...]:
        return self(original_names.UNET_PREFIX + name)

    def count(self, pattern: str) -> int:
        """Counts the consecutive tensors with the names pattern.format(0), pattern.format(1), ..."""
        return next(i for i in itertools.count() if pattern.format(i) not in self.shapes)


def _single(values: Sequence) -> Any:
    """Returns a single value if it is the same in all blocks, else the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def _unet(sizes: _Sizes, family: str, sample_size: int) -> Config:
    prefix = original_names.UNET_PREFIX
    # The original code numbers the input blocks through all levels; a downsampling block ends a level.
    blocks: list[list[int]] = [[]]  # indices of the input_blocks in each down block
    for index in itertools.count(1):
        if f'{prefix}input_blocks.{index}.0.op.weight' in sizes.shapes:
            blocks.append([])
        elif f'{prefix}input_blocks.{index}.0.in_layers.2.weight' in sizes.shapes:
            blocks[-1].append(index)
        else:
            break
    if not all(blocks):
        raise WeightsError(f'{sizes.source} has a UNet without ResNets at a level; download or export it again.')
    first = [f'input_blocks.{block[0]}' for block in blocks]
    widths = [sizes.unet(f'{name}.0.in_layers.2.weight')[0] for name in first]
    depths = [sizes.count(f'{prefix}{name}.1.transformer_blocks.{{}}.norm1.weight') for name in first]
    attends = ['CrossAttn' if depth else '' for depth in depths]
    heads = [max(1, width // _HEAD_WIDTH) for width in widths]
    config = {
        'sample_size': sample_size,
        'in_channels': sizes.unet('input_blocks.0.0.weight')[1],
        'out_channels': sizes.unet('out.2.weight')[0],
        'block_out_channels': widths,
        'layers_per_block': _single([len(block) for block in blocks]),
        'down_block_types': [f'{name}DownBlock2D' for name in attends],
        'up_block_types': [f'{name}UpBlock2D' for name in reversed(attends)],
        'transformer_layers_per_block': _single([max(1, depth) for depth in depths]),
        'cross_attention_dim': sizes.unet('middle_block.1.transformer_blocks.0.attn2.to_k.weight')[1],
        'use_linear_projection': len(sizes.unet('middle_block.1.proj_in.weight')) == 2,
        'attention_head_dim': heads if family in ('sd2', 'sdxl') else _HEADS,
    }
    if family == 'sdxl':
        config |= {
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': _TEXT_TIME_WIDTH,
            'projection_class_embeddings_input_dim': sizes.unet('label_emb.0.0.weight')[1],
        }
    if family == 'upscaler':
        config |= {
            'num_class_embeds': sizes.unet('label_emb.weight')[0],
            'only_cross_attention': [True] * (len(widths) - 1) + [False],
        }
    return config


def _vae(sizes: _Sizes, family: str, resolution: int) -> Config:
    prefix = original_names.VAE_PREFIX
    levels = sizes.count(prefix + 'encoder.down.{}.block.0.conv1.weight')
    names = [f'{prefix}encoder.down.{level}.block' for level in range(levels)]
    return {
        'in_channels': sizes(f'{prefix}encoder.conv_in.weight')[1],
        'out_channels': sizes(f'{prefix}decoder.conv_out.weight')[0],
        'latent_channels': sizes(f'{prefix}decoder.conv_in.weight')[1],
        'block_out_channels': [sizes(f'{name}.0.conv1.weight')[0] for name in names],
        'down_block_types': ['DownEncoderBlock2D'] * levels,
        'up_block_types': ['UpDecoderBlock2D'] * levels,
        'layers_per_block': sizes.count(f'{prefix}encoder.down.0.block.{{}}.conv1.weight'),
        # Side of the images that the VAE was trained on. The upscaler's VAE was trained on images of half the side.
        'sample_size': resolution // 2 if family == 'upscaler' else resolution,
        **_VAE[family],
    }


def _text(sizes: _Sizes, prefix: str, family: str) -> Config:
    is_open_clip = original_names.is_open_clip(prefix)
    if is_open_clip:
        tokens, positions = f'{prefix}token_embedding.weight', f'{prefix}positional_embedding'
        layer, wide, activation = f'{prefix}transformer.resblocks.{{}}.', 'mlp.c_fc.weight', 'gelu'
    else:
        embeddings = f'{prefix}text_model.embeddings.'
        tokens, positions = f'{embeddings}token_embedding.weight', f'{embeddings}position_embedding.weight'
        layer, wide, activation = f'{prefix}text_model.encoder.layers.{{}}.', 'mlp.fc1.weight', 'quick_gelu'
    # The last layer of OpenCLIP-H is in the file but not in diffusers' folders.
    layers = sizes.count(layer + wide)
    if is_open_clip and family != 'sdxl':
        layers = min(layers, original_names.OPEN_CLIP_H_LAYERS)
    vocabulary, width = sizes(tokens)[:2]
    projected = is_open_clip and family == 'sdxl'
    config = {
        'model_type': 'clip_text_model',
        **_TEXT,
        'architectures': ['CLIPTextModelWithProjection' if projected else 'CLIPTextModel'],
        'vocab_size': vocabulary,
        'hidden_size': width,
        'max_position_embeddings': sizes(positions)[0],
        'num_hidden_layers': layers,
        'num_attention_heads': max(1, width // _HEAD_WIDTH),
        'intermediate_size': sizes(layer.format(0) + wide)[0],
        'hidden_act': activation,
    }
    return config | {'projection_dim': sizes(prefix + original_names.OPEN_CLIP_PROJECTION)[1]} if projected else config


def _scheduler(family: str, prediction_type: str) -> Config:
    if family == 'upscaler':
        config = {**_UPSCALER_BETAS, **_SAMPLING, '_class_name': 'DDIMScheduler'}
    elif family == 'sdxl':
        config = {**_BETAS, **_SAMPLING, '_class_name': 'EulerDiscreteScheduler', 'timestep_spacing': 'leading'}
    else:
        name = 'DDIMScheduler' if prediction_type == V_PREDICTION else 'PNDMScheduler'
        config = {**_BETAS, **_SAMPLING, '_class_name': name}
    return {**config, 'prediction_type': prediction_type}
