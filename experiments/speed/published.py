"""Published text-to-image models as shapes: their networks have the published sizes and no values.

An array of such a network is one number that is repeated, so that the largest model needs no memory. Networks can be
made with fewer layers, to extrapolate what takes too long to compile, or tiny, to try a script out.

Source: the published files, in published_configs.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import published_configs as configs

from dreambooth_jax.data.table import Examples
from dreambooth_jax.families import (
    deepfloyd_if,
    flux,
    flux2_klein,
    sdxl,
    stable_diffusion,
    stable_diffusion_3,
    z_image,
)
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import functional
from dreambooth_jax.text.tokenize import QWEN_MAX_LENGTH
from dreambooth_jax.weights.pipeline import Layout, Network, Pipeline, abstract_network, apply_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One stage of a published model.

    Attributes:
      family: what it consists of.
      networks: component -> its config.json.
      scheduler: its scheduler_config.json.
      noising: the same of the noise on the low-resolution image; only for second stages.
      stored: the dtype of kernels in its files.
    """

    family: Layout
    networks: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None
    stored: Any = jnp.float32

    @property
    def depth(self) -> int:
        """The largest number of equal layers that follow each other in its denoiser."""
        return max(max(_numbers(self._denoiser.get(key, 1))) for key in _LAYERS)

    def shallow(self, depth: int) -> 'Published':
        """Returns the stage with at most `depth` equal layers behind each other in every place of its denoiser."""
        denoiser = dict(self._denoiser)
        for key in _LAYERS & denoiser.keys():
            found = denoiser[key]
            denoiser[key] = min(found, depth) if isinstance(found, int) else [min(layers, depth) for layers in found]
        if 'dual_attention_layers' in denoiser:  # they are named by their numbers
            denoiser['dual_attention_layers'] = [at for at in denoiser['dual_attention_layers'] if at < depth]
        return dataclasses.replace(self, networks={**self.networks, self.family.denoiser: denoiser})

    def tiny(self) -> 'Published':
        """Returns the stage with a few thousand weights in each block; a UNet has its first and its last level."""
        networks = {name: {**config, **_TINY[_kind(name, config)]} for name, config in self.networks.items()}
        if 'text_encoder_3' in networks:  # the states of both CLIPs, joined, are as wide at most
            networks['text_encoder_3'] |= {'d_model': 64}
        if 'unet' not in networks:
            return dataclasses.replace(self, networks=networks)
        unet = networks['unet']
        levels = len(unet['block_out_channels'])
        of_levels = [key for key, value in unet.items() if isinstance(value, list) and len(value) == levels]
        unet |= {key: [unet[key][0], unet[key][-1]] for key in of_levels} | {'block_out_channels': [32, 32]}
        unet['sample_size'] //= 4
        if self.family.takes_sizes:
            unet |= {'addition_time_embed_dim': 8, 'projection_class_embeddings_input_dim': 32 + 6 * 8}
        if len(self.family.tokenizers) > 1:  # their states are joined
            unet['cross_attention_dim'] = 32 * len(self.family.tokenizers)
        return dataclasses.replace(self, networks=networks)

    @property
    def _denoiser(self) -> Mapping[str, Any]:
        return self.networks[self.family.denoiser]


# Keys of a denoiser's config.json that say how often a layer is repeated.
_LAYERS = {'layers_per_block', 'transformer_layers_per_block', 'num_layers', 'num_single_layers', 'n_layers'}
_TINY_VAE = {'block_out_channels': [32] * 4, 'layers_per_block': 1}
_TINY = {
    'unet': {
        'addition_embed_type_num_heads': 4,
        'attention_head_dim': 4,
        'cross_attention_dim': 32,
        'layers_per_block': 1,
        'transformer_layers_per_block': 1,
    },
    'if': {'encoder_hid_dim': 32, 'time_embedding_dim': None},
    'vae': _TINY_VAE,
    'AutoencoderKL': _TINY_VAE,
    'AutoencoderKLFlux2': _TINY_VAE,
    'clip_text_model': {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_attention_heads': 2,
        'num_hidden_layers': 2,
        'vocab_size': 100,
        'max_position_embeddings': 16,
        'projection_dim': 32,
    },
    flux2_klein.FAMILY.transformer: {
        'attention_head_dim': 16,
        'axes_dims_rope': [4, 4, 4, 4],
        'joint_attention_dim': 3 * 32,
        'num_attention_heads': 2,
        'num_layers': 1,
        'num_single_layers': 2,
    },
    flux.FAMILY.transformer: {
        'attention_head_dim': 16,
        'axes_dims_rope': [4, 4, 8],
        'joint_attention_dim': 32,
        'num_attention_heads': 2,
        'num_layers': 1,
        'num_single_layers': 2,
        'pooled_projection_dim': 32,
    },
    stable_diffusion_3.FAMILY.transformer: {
        'attention_head_dim': 16,
        'caption_projection_dim': 32,
        'dual_attention_layers': [0],
        'joint_attention_dim': 64,
        'num_attention_heads': 2,
        'num_layers': 2,
        'pooled_projection_dim': 64,
        'pos_embed_max_size': 192,
    },
    z_image.FAMILY.transformer: {
        'axes_dims': [8, 4, 4],
        'cap_feat_dim': 32,
        'dim': 64,
        'n_heads': 4,
        'n_kv_heads': 4,
        'n_layers': 2,
        'n_refiner_layers': 1,
    },
    'qwen3': {
        'head_dim': 16,
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_attention_heads': 2,
        'num_hidden_layers': 4,
        'num_key_value_heads': 1,
        'vocab_size': 100,
    },
    't5': {'d_ff': 64, 'd_kv': 8, 'd_model': 32, 'num_heads': 4, 'num_layers': 1, 'vocab_size': 100},
}
_TINY['if'] |= _TINY['unet']

# By the names that config/presets.py gives.
PUBLISHED = {
    'stable-diffusion-v1-5/stable-diffusion-v1-5': Published(
        family=stable_diffusion.FAMILY,
        networks={'unet': configs.SD_UNET, 'vae': configs.VAE, 'text_encoder': configs.CLIP_L},
        scheduler=configs.SD_SCHEDULER,
    ),
    'stabilityai/stable-diffusion-xl-base-1.0': Published(
        family=sdxl.FAMILY,
        networks={
            'unet': configs.XL_UNET,
            'vae': {**configs.VAE, 'scaling_factor': 0.13025},
            'text_encoder': configs.CLIP_L,
            'text_encoder_2': configs.CLIP_BIG_G,
        },
        scheduler=configs.SD_SCHEDULER,
    ),
    'DeepFloyd/IF-I-XL-v1.0': Published(
        family=deepfloyd_if.BASE,
        networks={'unet': configs.IF_XL_UNET, 'text_encoder': configs.T5_XXL},
        scheduler=configs.IF_SCHEDULER,
    ),
    'black-forest-labs/FLUX.2-klein-base-4B': Published(
        family=flux2_klein.FAMILY,
        networks={
            'transformer': configs.KLEIN_TRANSFORMER,
            'vae': configs.KLEIN_VAE,
            'text_encoder': configs.QWEN3_4B,
        },
        scheduler=configs.KLEIN_SCHEDULER,
        stored=jnp.bfloat16,
    ),
    'Tongyi-MAI/Z-Image': Published(
        family=z_image.FAMILY,
        networks={
            'transformer': configs.Z_IMAGE_TRANSFORMER,
            'vae': configs.Z_IMAGE_VAE,
            'text_encoder': configs.QWEN3_4B,
        },
        scheduler=configs.Z_IMAGE_SCHEDULER,
        stored=jnp.bfloat16,
    ),
    'stabilityai/stable-diffusion-3.5-medium': Published(
        family=stable_diffusion_3.FAMILY,
        networks={
            'transformer': configs.SD35_MEDIUM_TRANSFORMER,
            'vae': configs.SD35_VAE,
            'text_encoder': configs.SD3_CLIP_L,
            'text_encoder_2': configs.CLIP_BIG_G,
            'text_encoder_3': configs.T5_XXL,
        },
        scheduler=configs.SD35_SCHEDULER,
        stored=jnp.bfloat16,
    ),
    'black-forest-labs/FLUX.1-dev': Published(
        family=flux.FAMILY,
        networks={
            'transformer': configs.FLUX1_DEV_TRANSFORMER,
            'vae': configs.Z_IMAGE_VAE,
            'text_encoder': configs.CLIP_L,
            'text_encoder_2': configs.T5_XXL,
        },
        scheduler=configs.FLUX1_DEV_SCHEDULER,
        stored=jnp.bfloat16,
    ),
    # Its text encoder is that of the first stage, which `train` then does not read again.
    'DeepFloyd/IF-II-L-v1.0': Published(
        family=deepfloyd_if.SUPER_RESOLUTION,
        networks={'unet': configs.IF_II_L_UNET},
        scheduler={**configs.IF_SCHEDULER, 'sample_max_value': 1.0},
        noising=configs.IF_NOISING,
    ),
}


class ShapesCascade(Cascade):
    """A cascade whose tokenizers give zeros, so that nothing is downloaded."""

    def _tokenizers(self, stage):
        pipeline = self._reader(stage)
        return {name: _Zeros(network.config) for name, network in pipeline.text_encoders.items()}


def pipeline(stage: Published, dtype: Any, cast: Any = None, frozen_dtype: str | None = None) -> Pipeline:
    """Returns a stage as shapes.

    Args:
      dtype: the dtype that its networks compute in.
      cast: the dtype of its denoiser's kernels, as adapters need them; None: as in the files.
      frozen_dtype: how kernels are quantised; None: they are not.
    """
    networks = {}
    for name, config in stage.networks.items():
        config = {**config, **stage.family.reading.get(name, {})}
        stored = cast if cast is not None and name == stage.family.denoiser else stage.stored
        networks[name] = network(name, config, dtype, stored, stage.family.frozen(name, frozen_dtype))
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


def network(
    component: str,
    config: Mapping[str, Any],
    dtype: Any,
    stored: Any = jnp.float32,
    frozen_dtype: str | None = None,
) -> Network:
    """Returns one network as shapes: f32, with kernels quantised or in the dtype `stored`, computing in `dtype`."""
    options = component, config, jnp.dtype(dtype), frozen_dtype
    shapes = functional.split(abstract_network(*options))[1]

    def stand_in(name, value):
        narrow = stored == jnp.bfloat16 and name.endswith('.kernel')
        return np.broadcast_to((ml_dtypes.bfloat16 if narrow else value.dtype.type)(0), value.shape)

    params = {name: stand_in(name, value) for name, value in shapes.items()}
    return Network(config, apply_of(*options), params, jnp.dtype(dtype), frozen_dtype)


class _Zeros:
    """A tokenizer that gives zeros."""

    def __init__(self, config: Mapping[str, Any]):
        self.kind = {'t5': 't5', 'qwen3': 'qwen'}.get(config['model_type'], 'clip')
        # As in text/tokenize.py, a Qwen's own length is far longer than any prompt.
        self.max_length = QWEN_MAX_LENGTH if self.kind == 'qwen' else config.get('max_position_embeddings', 77)

    def with_template(self, template):
        return self

    def as_written(self, max_length=None):
        self.max_length = self.max_length if max_length is None else max_length
        return self

    def __call__(self, prompts):
        return (np.zeros((len(prompts), self.max_length), np.int32),) * 2


def _numbers(found: int | list[int]) -> list[int]:
    return [found] if isinstance(found, int) else found


def _kind(component: str, config: Mapping[str, Any]) -> str:
    if component == 'unet':
        return 'if' if config.get('encoder_hid_dim') else 'unet'
    return config.get('model_type', config.get('_class_name', component))
