"""Stable Diffusion 1.5's training as `train` builds it, on weights and images that have shapes and no values.

What both scripts here compile. Networks are the published ones, or tiny ones to try the scripts out.
Source: the published unet, vae, text_encoder and scheduler configurations of stable-diffusion-v1-5.
"""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.families import stable_diffusion
from dreambooth_jax.families.prompts import ClipPrompts
from dreambooth_jax.finetune.stage import make_feed, stage_trainable
from dreambooth_jax.finetune.stage import make_run as make_stage_run
from dreambooth_jax.generation.cascade import compute_dtype
from dreambooth_jax.models import functional
from dreambooth_jax.training.placement import Pmap
from dreambooth_jax.training.train_run import TrainRun
from dreambooth_jax.weights.pipeline import Network, Pipeline, abstract_network

UNET = {
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
CLIP_L = {
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
VAE = {
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'latent_channels': 4,
    'layers_per_block': 2,
    'scaling_factor': 0.18215,
}
SCHEDULER = {
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
PUBLISHED = {'unet': UNET, 'text_encoder': CLIP_L}
TINY = {
    'unet': {
        **UNET,
        'block_out_channels': [32],
        'cross_attention_dim': 32,
        'layers_per_block': 1,
        'sample_size': 8,
        'down_block_types': UNET['down_block_types'][:1],
        'up_block_types': UNET['up_block_types'][-1:],
    },
    'text_encoder': {
        **CLIP_L,
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_attention_heads': 2,
        'num_hidden_layers': 1,
        'vocab_size': 100,
        'max_position_embeddings': 16,
    },
}
NUM_INSTANCE = 4  # images of the subject
NUM_PROMPTS = 3  # the empty one, the subject's and its class's


def make_run(config: DreamBoothConfig, networks: Mapping[str, Mapping[str, Any]]) -> TrainRun:
    """The training of the base stage under these settings, as `train` makes it; nothing is computed.

    It is for one device. Its arrays, but for the batch, are shapes or read as such.

    Args:
      networks: PUBLISHED or TINY.
    """
    unet, dtype = networks['unet'], compute_dtype(config.parallel.dtype)
    side, length = unet['sample_size'], networks['text_encoder']['max_position_embeddings']
    stored = jnp.float32 if config.lora.rank is None else dtype
    made = {component: _network(component, network, stored) for component, network in networks.items()}
    pipeline = _pipeline({'vae': Network(VAE, None, {}), **made})
    cascade = types.SimpleNamespace(
        base=pipeline,
        # Prompts are read inside the step, from ids: it needs no tokenizer.
        prompt_encoder=lambda name: ClipPrompts({'text_encoder': pipeline.components['text_encoder'].apply}, {}),
    )
    trainable = stage_trainable(config, 'base', cascade)
    feed = make_feed(config, 'base', [NUM_INSTANCE], config.prior.num_images)
    run = make_stage_run(config, 'base', cascade, cascade, trainable, feed, Pmap(jax.local_devices()[:1]))
    count = NUM_INSTANCE + config.prior.num_images
    data = {
        'moments': jax.ShapeDtypeStruct((count, side, side, 2 * unet['in_channels']), jnp.float32),
        'prompt_of': jax.ShapeDtypeStruct((count,), jnp.int32),
        **feed.arrays,
    }
    if trainable.trains_text:
        ids = jax.ShapeDtypeStruct((NUM_PROMPTS, length), jnp.int32)
        data['tokens'] = {'text_encoder': {'ids': ids, 'mask': ids}}
    else:
        states = jax.ShapeDtypeStruct((NUM_PROMPTS, length, unet['cross_attention_dim']), jnp.float32)
        data['text'] = {'encoder_hidden_states': states}
    return dataclasses.replace(run, frozen=shapes_of({**run.frozen, 'data': [data]}))


def make_pipeline(networks: Mapping[str, Mapping[str, Any]], dtype: Any) -> Pipeline:
    """The base stage with all of its networks, f32 weights of one number each, computing in `dtype`."""
    made = {}
    for component, config in networks.items():
        network = _network(component, config, jnp.float32)
        apply = functional.split(abstract_network(component, config, jnp.dtype(dtype)))[0]
        made[component] = dataclasses.replace(network, apply=apply, dtype=jnp.dtype(dtype))
    # Whoever makes a cascade of it gives tokens in another way: this folder is not opened.
    return dataclasses.replace(_pipeline(made), tokenizers={'text_encoder': Path('none')})


def _pipeline(components: Mapping[str, Network]) -> Pipeline:
    return Pipeline(family=stable_diffusion.FAMILY, scheduler=SCHEDULER, components=components)


def _network(component: str, config: Mapping[str, Any], stored: Any) -> Network:
    apply, shapes = functional.split(abstract_network(component, config))

    def stand_in(name, shape):  # an array of one number: it has a shape and takes no memory
        kind = ml_dtypes.bfloat16 if stored == jnp.bfloat16 and name.endswith('.kernel') else np.float32
        return np.broadcast_to(kind(0), shape)

    return Network(config, apply, {name: stand_in(name, value.shape) for name, value in shapes.items()})


def shapes_of(tree: Any) -> Any:
    """The shapes and dtypes of a pytree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def size_of(tree: Any) -> int:
    """Bytes of a pytree of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def values(run: TrainRun) -> tuple[Any, Any]:
    """(state, frozen data of the first step) with weights that are no zeros; traced inside jit."""

    def spread(number, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        # Not random numbers: a thousand random numbers would take minutes to compile.
        waves = jnp.sin(1.7 * jnp.arange(x.size, dtype=jnp.float32) + number)
        return (0.03 * waves).reshape(x.shape).astype(x.dtype)

    def spread_all(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([spread(number, x) for number, x in enumerate(leaves)])

    state = run.state_shapes
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    return dataclasses.replace(zeros, params=spread_all(state.params)), spread_all(run.frozen_at(run.frozen, 0))
