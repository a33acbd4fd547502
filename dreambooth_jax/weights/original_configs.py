"""Recognises the model in a single file of the original layout, and derives the configurations of its networks.

Such a file does not say how its networks are built. The names and shapes of its tensors determine the family and all
sizes. Whatever leaves no trace in a tensor (number of heads, activations, scale of the latents, scheduler) is taken
from the published models of the family. So a published file gives the published configuration, and a file with narrower
or fewer layers gives a configuration that fits it.

Source: the published model_index.json, unet, vae, text_encoder and scheduler configurations of stable-diffusion-v1-5,
-2-1, -2-1-base, -x4-upscaler and -xl-base-1.0; how to tell the families apart: diffusers 0.42.1 single_file_utils.py.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_jax.weights import guard, original_names
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_facts import PREDICTION_TYPES, Config, OriginalLayout, Shapes

_HEAD_WIDTH = 64  # width of a head in every CLIP, and in UNets of no fixed number of heads
_TEXT = {'bos_token_id': 0, 'eos_token_id': 2, 'pad_token_id': 1, 'layer_norm_eps': 1e-5}


def detect(shapes: Shapes, layouts: Sequence[OriginalLayout], *, source: str = 'the file') -> OriginalLayout:
    """Recognises the family of a whole model in the original layout.

    Args:
      shapes: {original name: shape}, as files.read_header returns them.
      layouts: those that are supported, in the order in which they are tried.
      source: name of the file for an error.

    Returns:
      One of `layouts`.

    Raises:
      WeightsError: one sentence, if the file holds only a part of a model, has another layout, or holds a model that is
        not supported.
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
            f'first is {min(shapes, default="not there")}); give a whole model of {_titles(layouts)}, or a '
            f'pipeline folder.'
        )
    layout = next((layout for layout in layouts if layout.matches(shapes)), None)
    if layout is None:
        raise WeightsError(
            f'{source} has a text encoder of another model, such as the SDXL refiner; supported are {_titles(layouts)}.'
        )
    # Inpainting and other variants have the same names but more input channels.
    channels = _Sizes(shapes, source).unet('input_blocks.0.0.weight')[1]
    guard.check_channels(source, layout.title, channels, layout.in_channels)
    return layout


def _titles(layouts: Sequence[OriginalLayout]) -> str:
    # The plainest models are tried last and named first.
    return ', '.join(layout.title for layout in reversed(layouts))


def layout_of(configs: Mapping[str, Mapping[str, Any]], layouts: Sequence[OriginalLayout]) -> OriginalLayout:
    """Recognises the family of the networks of a pipeline folder.

    Args:
      configs: {component: contents of its config.json}; must hold 'unet' and 'text_encoder', others are not read.
      layouts: those that are supported, in the order in which they are tried.

    Returns:
      One of `layouts`.

    Raises:
      WeightsError: one sentence, if the networks are of no such family.
    """
    if not {'unet', 'text_encoder'} <= configs.keys():
        raise WeightsError(f'configs holds {", ".join(configs) or "nothing"} but must hold unet and text_encoder.')
    layout = next((layout for layout in layouts if layout.fits(configs)), None)
    if layout is None:
        activation = {'hidden_act': 'quick_gelu', **configs['text_encoder']}['hidden_act']
        raise WeightsError(
            f'text_encoder is no CLIP (its hidden_act is {activation!r}), but only {_titles(layouts)} '
            f'have an original layout; export a diffusers folder instead.'
        )
    return layout


def derive(
    shapes: Shapes,
    layout: OriginalLayout,
    *,
    prediction_type: str | None = None,
    resolution: int | None = None,
    source: str = 'the file',
) -> dict[str, Config]:
    """Derives the configurations that a pipeline folder would have for the networks of a file.

    Args:
      shapes: {original name: shape}.
      layout: the result of `detect`.
      prediction_type: one of PREDICTION_TYPES; by default that of the layout.
      resolution: side in pixels of the images that the model is made for, if the file's metadata says it; by default
        that of the published models.
      source: name of the file for an error.

    Returns:
      {name: contents of that JSON file} for 'model_index', 'unet', 'vae', 'text_encoder' and 'scheduler'; also the
      other text encoders and schedulers of the layout.

    Raises:
      WeightsError: one sentence, if a tensor that every such model has is missing.
    """
    prediction_type = prediction_type or layout.default_prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise WeightsError(f'prediction_type is {prediction_type!r}; it must be one of {PREDICTION_TYPES}.')
    sizes = _Sizes(shapes, source)
    resolution = resolution or layout.resolutions[prediction_type]
    configs = {
        'vae': _vae(sizes, layout, resolution),
        'scheduler': {**layout.scheduler(prediction_type), 'prediction_type': prediction_type},
    }
    for component, prefix in layout.text_prefixes.items():
        configs[component] = _text(sizes, prefix, component in layout.projected)
    latent_size = resolution // 2 ** (len(configs['vae']['block_out_channels']) - 1)
    configs['unet'] = _unet(sizes, layout, latent_size) | layout.unet(sizes.unet, prediction_type)
    configs |= {name: dict(config) for name, config in layout.further_schedulers.items()}
    return {'model_index': _model_index(layout, configs), **configs}


def _model_index(layout: OriginalLayout, configs: Mapping[str, Config]) -> Config:
    index = {**layout.model_index, 'unet': ['diffusers', 'UNet2DConditionModel'], 'vae': ['diffusers', 'AutoencoderKL']}
    for component, config in configs.items():
        if 'scheduler' in component:
            index[component] = ['diffusers', config['_class_name']]
        elif 'text_encoder' in component:
            index[component] = ['transformers', *config['architectures']]
    return index | dict.fromkeys(layout.pad_tokens, ['transformers', 'CLIPTokenizer'])


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


def _unet(sizes: _Sizes, layout: OriginalLayout, sample_size: int) -> Config:
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
        'attention_head_dim': heads if layout.heads is None else layout.heads,
    }
    if layout.only_cross_attention:
        config['only_cross_attention'] = [True] * (len(widths) - 1) + [False]
    return config


def _vae(sizes: _Sizes, layout: OriginalLayout, resolution: int) -> Config:
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
        'sample_size': resolution // layout.vae_reduction,  # side of the images that the VAE was trained on
        **layout.vae,
    }


def _text(sizes: _Sizes, prefix: str, is_projected: bool) -> Config:
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
    if is_open_clip and not is_projected:
        layers = min(layers, original_names.OPEN_CLIP_H_LAYERS)
    vocabulary, width = sizes(tokens)[:2]
    config = {
        'model_type': 'clip_text_model',
        **_TEXT,
        'architectures': ['CLIPTextModelWithProjection' if is_projected else 'CLIPTextModel'],
        'vocab_size': vocabulary,
        'hidden_size': width,
        'max_position_embeddings': sizes(positions)[0],
        'num_hidden_layers': layers,
        'num_attention_heads': max(1, width // _HEAD_WIDTH),
        'intermediate_size': sizes(layer.format(0) + wide)[0],
        'hidden_act': activation,
    }
    return (
        config | {'projection_dim': sizes(prefix + original_names.OPEN_CLIP_PROJECTION)[1]} if is_projected else config
    )
