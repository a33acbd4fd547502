"""Torch networks of every Stable Diffusion family: tiny and seeded, or of published size without values.

The sizes keep what all models of a family have in common, because configurations are derived from the tensors: groups
of 32 channels, and 8 heads or heads of 64 channels. Names are those of published checkpoints.
"""

import functools

import diffusers
import numpy as np
import torch
import transformers

from tests.support import tiny_clip
from tests.support.torch_reference import randomise

CLIP = {
    'bos_token_id': 0,
    'eos_token_id': 2,
    'pad_token_id': 1,
    'hidden_act': 'quick_gelu',
    'hidden_size': 32,
    'intermediate_size': 48,
    'max_position_embeddings': tiny_clip.LENGTH,
    'num_attention_heads': 1,
    'num_hidden_layers': 2,
    'projection_dim': 32,
    'vocab_size': tiny_clip.VOCABULARY_SIZE,
}
OPEN_CLIP = {**CLIP, 'hidden_act': 'gelu', 'num_hidden_layers': 3}
VAE = {
    'block_out_channels': [32, 32, 64],
    'down_block_types': ['DownEncoderBlock2D'] * 3,
    'up_block_types': ['UpDecoderBlock2D'] * 3,
    'layers_per_block': 1,
    'latent_channels': 4,
    'sample_size': 32,
}
UNET = {
    'sample_size': 8,
    'block_out_channels': [32, 64],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': 32,
    'attention_head_dim': 8,
}
LAST_LEVELS_ATTEND = {
    'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D'],
    'up_block_types': ['CrossAttnUpBlock2D', 'UpBlock2D'],
    'use_linear_projection': True,
}
CONFIGS = {
    'sd1': {'unet': UNET, 'vae': VAE, 'text_encoder': CLIP},
    'sd2': {
        'unet': {**UNET, 'attention_head_dim': [1, 1], 'use_linear_projection': True},
        'vae': VAE,
        'text_encoder': OPEN_CLIP,
    },
    'sdxl': {
        'unet': {
            **UNET,
            **LAST_LEVELS_ATTEND,
            'layers_per_block': 2,  # with 1, diffusers reports something when it loads LoRA files
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': 256,
            'attention_head_dim': [1, 1],
            'cross_attention_dim': 96,
            'projection_class_embeddings_input_dim': 48 + 6 * 256,
            'transformer_layers_per_block': [1, 2],
        },
        'vae': {**VAE, 'scaling_factor': 0.13025, 'force_upcast': True},
        'text_encoder': CLIP,
        'text_encoder_2': {**OPEN_CLIP, 'hidden_size': 64, 'projection_dim': 48},
    },
    'upscaler': {
        'unet': {
            **UNET,
            **LAST_LEVELS_ATTEND,
            'in_channels': 7,
            'num_class_embeds': 10,
            'only_cross_attention': [True, False],
        },
        'vae': {**VAE, 'scaling_factor': 0.08333, 'sample_size': 16},
        'text_encoder': OPEN_CLIP,
    },
}
FAMILIES = tuple(CONFIGS)
PIPELINES = {
    'sd1': diffusers.StableDiffusionPipeline,
    'sd2': diffusers.StableDiffusionPipeline,
    'sdxl': diffusers.StableDiffusionXLPipeline,
    'upscaler': diffusers.StableDiffusionUpscalePipeline,
}


def build(component: str, config) -> torch.nn.Module:
    """Builds the network of a configuration on torch's current device."""
    if component == 'unet':
        return diffusers.UNet2DConditionModel.from_config(config)
    if component == 'vae':
        return diffusers.AutoencoderKL.from_config({'in_channels': 3, 'out_channels': 3, **config})
    projects = component == 'text_encoder_2'
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**config))


@functools.cache
def networks(family: str) -> dict[str, torch.nn.Module]:
    return {
        component: randomise(build(component, config), seed=i)
        for i, (component, config) in enumerate(CONFIGS[family].items())
    }


def published_names(component: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """{name in the published checkpoints: parameter}; later versions of transformers use other names."""
    prefix = 'text_model.' if component == 'text_encoder' and not hasattr(module, 'text_model') else ''
    return {prefix + name: value for name, value in module.named_parameters()}


@functools.cache
def components(family: str) -> dict[str, dict[str, np.ndarray]]:
    """{component: {published name: array}}."""
    return {
        component: {name: value.detach().numpy() for name, value in published_names(component, network).items()}
        for component, network in networks(family).items()
    }


def scheduler(prediction_type='epsilon') -> dict:
    return {
        'beta_schedule': 'scaled_linear',
        'beta_start': 0.00085,
        'beta_end': 0.012,
        'clip_sample': False,
        'prediction_type': prediction_type,
    }


def pipeline(family: str) -> diffusers.DiffusionPipeline:
    """diffusers' own pipeline without tokenizers, which a single file does not hold."""
    parts = {**networks(family), 'tokenizer': None, 'scheduler': diffusers.DDIMScheduler.from_config(scheduler())}
    if family == 'sdxl':
        parts |= {'tokenizer_2': None, 'add_watermarker': False}
    elif family == 'upscaler':
        parts |= {'low_res_scheduler': diffusers.DDPMScheduler()}
    else:
        parts |= {'safety_checker': None, 'feature_extractor': None, 'requires_safety_checker': False}
    return PIPELINES[family](**parts)


def folder_configs(family):
    """Configurations as a folder holds them."""
    names = {'text_encoder': 'CLIPTextModel', 'text_encoder_2': 'CLIPTextModelWithProjection'}
    return {
        component: config
        if component not in names
        else {'model_type': 'clip_text_model', 'architectures': [names[component]], **config}
        for component, config in CONFIGS[family].items()
    }
