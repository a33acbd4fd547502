"""Published text-to-image models as shapes: their networks have the published sizes and no values.

An array of such a network is one number that is repeated, so that the largest model needs no memory. Networks can be
made with fewer layers, to extrapolate what takes too long to compile, or tiny, to try a script out.

Source: the published config.json and scheduler_config.json files of the models, without what diffusers' defaults give.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dreambooth_jax.data.table import Examples
from dreambooth_jax.families import deepfloyd_if, sdxl, stable_diffusion
from dreambooth_jax.families.unet import UNetFamily
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import functional
from dreambooth_jax.weights.pipeline import Network, Pipeline, abstract_network

_SD_UNET = {
    'attention_head_dim': 8,
    'block_out_channels': [320, 640, 1280, 1280],
    'cross_attention_dim': 768,
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    'in_channels': 4,
    'out_channels': 4,
    'layers_per_block': 2,
    'sample_size': 64,
}
_XL_UNET = {
    **_SD_UNET,
    'addition_embed_type': 'text_time',
    'addition_time_embed_dim': 256,
    'attention_head_dim': [5, 10, 20],
    'block_out_channels': [320, 640, 1280],
    'cross_attention_dim': 2048,
    'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
    'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
    'projection_class_embeddings_input_dim': 2816,
    'sample_size': 128,
    'transformer_layers_per_block': [1, 2, 10],
    'use_linear_projection': True,
}
_IF_UNET = {
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 64,
    'attention_head_dim': 64,
    'cross_attention_norm': 'group_norm',
    'encoder_hid_dim': 4096,
    'encoder_hid_dim_type': 'text_proj',
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
}
_IF_XL_UNET = {
    **_IF_UNET,
    'block_out_channels': [704, 1408, 2112, 2816],
    'cross_attention_dim': 2816,
    'down_block_types': ['ResnetDownsampleBlock2D'] + ['SimpleCrossAttnDownBlock2D'] * 3,
    'up_block_types': ['SimpleCrossAttnUpBlock2D'] * 3 + ['ResnetUpsampleBlock2D'],
    'in_channels': 3,
    'layers_per_block': 3,
    'sample_size': 64,
}
_IF_II_L_UNET = {
    **_IF_UNET,
    'block_out_channels': [160, 320, 640, 960, 1280],
    'class_embed_type': 'timestep',
    'cross_attention_dim': 1280,
    'down_block_types': ['ResnetDownsampleBlock2D'] * 3 + ['SimpleCrossAttnDownBlock2D'] * 2,
    'up_block_types': ['SimpleCrossAttnUpBlock2D'] * 2 + ['ResnetUpsampleBlock2D'] * 3,
    'in_channels': 6,
    'layers_per_block': [2, 2, 3, 5, 5],
    'mid_block_scale_factor': 1.4142271248762552,
    'resnet_out_scale_factor': 1.4142271248762552,
    'resnet_skip_time_act': True,
    'sample_size': 256,
    'time_embedding_act_fn': 'gelu',
    'time_embedding_dim': 1280,
}
_CLIP_L = {
    'model_type': 'clip_text_model',
    'architectures': ['CLIPTextModel'],
    'hidden_act': 'quick_gelu',
    'hidden_size': 768,
    'intermediate_size': 3072,
    'max_position_embeddings': 77,
    'num_attention_heads': 12,
    'num_hidden_layers': 12,
    'vocab_size': 49408,
    'eos_token_id': 2,
}
_CLIP_BIG_G = {
    **_CLIP_L,
    'architectures': ['CLIPTextModelWithProjection'],
    'hidden_act': 'gelu',
    'hidden_size': 1280,
    'intermediate_size': 5120,
    'num_attention_heads': 20,
    'num_hidden_layers': 32,
    'projection_dim': 1280,
}
_T5_XXL = {
    'model_type': 't5',
    'd_ff': 10240,
    'd_kv': 64,
    'd_model': 4096,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 64,
    'num_layers': 24,
    'vocab_size': 32128,
}
_VAE = {
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'latent_channels': 4,
    'layers_per_block': 2,
    'scaling_factor': 0.18215,
}
_SD_SCHEDULER = {
    '_class_name': 'DDIMScheduler',
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'set_alpha_to_one': False,
    'steps_offset': 1,
}
_IF_SCHEDULER = {
    '_class_name': 'DDPMScheduler',
    'beta_schedule': 'squaredcos_cap_v2',
    'dynamic_thresholding_ratio': 0.95,
    'sample_max_value': 1.5,
    'thresholding': True,
    'variance_type': 'learned_range',
}
_IF_NOISING = {'_class_name': 'DDPMScheduler', 'beta_schedule': 'squaredcos_cap_v2'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One stage of a published model.

    Attributes:
      family: what it consists of.
      networks: component -> its config.json.
      scheduler: its scheduler_config.json.
      noising: the same of the noise on the low-resolution image; only for second stages.
    """

    family: UNetFamily
    networks: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None

    @property
    def depth(self) -> int:
        """The largest number of equal layers that follow each other in its denoiser."""
        return max(max(_numbers(self.networks['unet'].get(key, 1))) for key in _LAYERS)

    def shallow(self, depth: int) -> 'Published':
        """Returns the stage with at most `depth` equal layers behind each other in every place of its denoiser."""
        unet = dict(self.networks['unet'])
        for key in _LAYERS:
            if isinstance(found := unet.get(key, 1), int):
                unet[key] = min(found, depth)
            else:
                unet[key] = [min(layers, depth) for layers in found]
        return dataclasses.replace(self, networks={**self.networks, 'unet': unet})

    def tiny(self) -> 'Published':
        """Returns the stage with the same blocks and a few thousand weights in each."""
        networks = {name: {**config, **_TINY[_kind(name, config)]} for name, config in self.networks.items()}
        unet = networks['unet']
        unet['block_out_channels'] = [32] * len(unet['block_out_channels'])
        unet['sample_size'] //= 4
        if self.family.takes_sizes:
            unet |= {'addition_time_embed_dim': 8, 'projection_class_embeddings_input_dim': 32 + 6 * 8}
        if len(self.family.tokenizers) > 1:  # their states are joined
            unet['cross_attention_dim'] = 32 * len(self.family.tokenizers)
        return dataclasses.replace(self, networks=networks)


# Keys of a UNet's config.json that say how often a layer is repeated.
_LAYERS = ('layers_per_block', 'transformer_layers_per_block')
_TINY = {
    'unet': {
        'addition_embed_type_num_heads': 4,
        'attention_head_dim': 4,
        'cross_attention_dim': 32,
        'layers_per_block': 1,
        'transformer_layers_per_block': 1,
    },
    'if': {'encoder_hid_dim': 32, 'time_embedding_dim': None},
    'vae': {'block_out_channels': [32] * 4, 'layers_per_block': 1},
    'clip_text_model': {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_attention_heads': 2,
        'num_hidden_layers': 2,
        'vocab_size': 100,
        'max_position_embeddings': 16,
        'projection_dim': 32,
    },
    't5': {'d_ff': 64, 'd_kv': 8, 'd_model': 32, 'num_heads': 4, 'num_layers': 1, 'vocab_size': 100},
}
_TINY['if'] |= _TINY['unet']

# By the names that config/presets.py gives.
PUBLISHED = {
    'stable-diffusion-v1-5/stable-diffusion-v1-5': Published(
        family=stable_diffusion.FAMILY,
        networks={'unet': _SD_UNET, 'vae': _VAE, 'text_encoder': _CLIP_L},
        scheduler=_SD_SCHEDULER,
    ),
    'stabilityai/stable-diffusion-xl-base-1.0': Published(
        family=sdxl.FAMILY,
        networks={
            'unet': _XL_UNET,
            'vae': {**_VAE, 'scaling_factor': 0.13025},
            'text_encoder': _CLIP_L,
            'text_encoder_2': _CLIP_BIG_G,
        },
        scheduler=_SD_SCHEDULER,
    ),
    'DeepFloyd/IF-I-XL-v1.0': Published(
        family=deepfloyd_if.BASE,
        networks={'unet': _IF_XL_UNET, 'text_encoder': _T5_XXL},
        scheduler=_IF_SCHEDULER,
    ),
    # Its text encoder is that of the first stage, which `train` then does not read again.
    'DeepFloyd/IF-II-L-v1.0': Published(
        family=deepfloyd_if.SUPER_RESOLUTION,
        networks={'unet': _IF_II_L_UNET},
        scheduler={**_IF_SCHEDULER, 'sample_max_value': 1.0},
        noising=_IF_NOISING,
    ),
}


class ShapesCascade(Cascade):
    """A cascade whose tokenizers give zeros, so that nothing is downloaded."""

    def _tokenizers(self, stage):
        pipeline = self._reader(stage)
        return {name: _Zeros(network.config) for name, network in pipeline.text_encoders.items()}


def pipeline(stage: Published, dtype: Any, stored: Any = jnp.float32) -> Pipeline:
    """Returns a stage as shapes.

    Args:
      dtype: the dtype that its networks compute in.
      stored: the dtype of its denoiser's kernels, float32 as in the files or `dtype`, as adapters need them.
    """
    denoiser = stage.family.denoiser
    networks = {
        name: network(name, config, dtype, stored if name == denoiser else jnp.float32)
        for name, config in stage.networks.items()
    }
    return Pipeline(
        family=stage.family,
        scheduler=stage.scheduler,
        image_noising_scheduler=stage.noising,
        components=networks,
        tokenizers={name: Path('none') for name in stage.family.tokenizers if name in networks},  # not opened
    )


def images(count: int, side: int) -> list[Examples]:
    """Returns so many black images of a subject, of one size in pixels."""
    return [Examples(np.broadcast_to(np.uint8(0), (count, side, side, 3)), ['a sks dog'] * count)]


def network(component: str, config: Mapping[str, Any], dtype: Any, stored: Any = jnp.float32) -> Network:
    """Returns one network as shapes: f32, with kernels in the dtype `stored`, computing in `dtype`."""
    apply, shapes = functional.split(abstract_network(component, config, jnp.dtype(dtype)))

    def stand_in(name, shape):
        kind = ml_dtypes.bfloat16 if stored == jnp.bfloat16 and name.endswith('.kernel') else np.float32
        return np.broadcast_to(kind(0), shape)

    params = {name: stand_in(name, value.shape) for name, value in shapes.items()}
    return Network(config, apply, params, jnp.dtype(dtype))


class _Zeros:
    """A tokenizer that gives zeros."""

    def __init__(self, config: Mapping[str, Any]):
        self.kind = 't5' if config['model_type'] == 't5' else 'clip'
        self.max_length = config.get('max_position_embeddings', 77)

    def __call__(self, prompts):
        return (np.zeros((len(prompts), self.max_length), np.int32),) * 2


def _numbers(found: int | list[int]) -> list[int]:
    return [found] if isinstance(found, int) else found


def _kind(component: str, config: Mapping[str, Any]) -> str:
    if component == 'unet':
        return 'if' if config.get('encoder_hid_dim') else 'unet'
    return config.get('model_type', component)
