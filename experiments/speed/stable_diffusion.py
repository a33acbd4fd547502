"""Stable Diffusion 1.5's training step as `train` builds it, on weights and images that have shapes and no values.

What both scripts here compile. Networks are the published ones, or tiny ones to try the scripts out.
Source: the published unet, vae, text_encoder and scheduler configurations of stable-diffusion-v1-5.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.data.feed import Feed
from dreambooth_jax.families import stable_diffusion
from dreambooth_jax.families.prompts import ClipPrompts
from dreambooth_jax.finetune.stage import make_stage, trained_components
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.models import functional
from dreambooth_jax.training import optimizer
from dreambooth_jax.training.state import init_state
from dreambooth_jax.training.step import make_train_step
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


@dataclasses.dataclass(frozen=True)
class Training:
    """A training step and the shapes of what it is called with.

    Attributes:
      make_step: (axis name, steps of one call) -> (state, frozen, key, batch) -> (state, metrics).
      state: TrainState of shapes. frozen: what lives on the device beside it: images, prompts, weights that do not
        train. batch: rows, of values.
    """

    make_step: Callable[[str | None, int], Callable]
    state: Any
    frozen: Mapping[str, Any]
    batch: Mapping[str, np.ndarray]


def training(config: DreamBoothConfig, networks: Mapping[str, Mapping[str, Any]], *, dtype: Any) -> Training:
    """The base stage's step under these settings (dreambooth_jax/finetune/stage.py); nothing is computed.

    Args:
      networks: PUBLISHED or TINY. dtype: of the compute.
    """
    unet = networks['unet']
    side, length = unet['sample_size'], networks['text_encoder']['max_position_embeddings']
    stored = jnp.float32 if config.lora.rank is None else dtype
    pipeline = Pipeline(
        family=stable_diffusion.FAMILY,
        scheduler=SCHEDULER,
        components={
            'vae': Network(VAE, None, {}),
            **{component: _network(component, network, stored) for component, network in networks.items()},
        },
    )
    cascade = types.SimpleNamespace(
        base=pipeline,
        # Prompts are read inside the step, from ids: it needs no tokenizer.
        prompt_encoder=lambda name: ClipPrompts({'text_encoder': pipeline.components['text_encoder'].apply}, {}),
    )
    trainable = make_trainable(
        pipeline,
        trained_components(config, 'base', cascade),
        config.lora,
        dtype=dtype,
        remat=config.parallel.remat,
        seed=config.seed,
    )
    stage = make_stage(config, 'base', cascade, trainable)
    feed = Feed(config.seed, config.base.steps, [NUM_INSTANCE], config.prior.num_images)
    rows = config.base.batch_size
    _, tx = optimizer.from_settings(config.optimizer, config.base.learning_rate, config.base.steps)

    def loss(params, frozen, batch, keys):
        return stage.loss(trainable.assemble(params, frozen['weights']), frozen, batch, keys)

    def make_step(axis_name, num_steps):
        return make_train_step(
            loss,
            tx,
            ema_decay=config.optimizer.ema_decay,
            axis_name=axis_name,
            pick=feed.pick,
            num_steps=num_steps,
            gradient_accumulation_steps=config.base.gradient_accumulation_steps,
            unroll=jax.default_backend() == 'cpu',
        )

    count = NUM_INSTANCE + config.prior.num_images
    frozen = {
        'moments': jax.ShapeDtypeStruct((count, side, side, 2 * unet['in_channels']), jnp.float32),
        'prompt_of': jax.ShapeDtypeStruct((count,), jnp.int32),
        'weights': shapes_of(trainable.frozen),
        **shapes_of(feed.arrays),
    }
    if trainable.trains_text:
        ids = jax.ShapeDtypeStruct((NUM_PROMPTS, length), jnp.int32)
        frozen['tokens'] = {'text_encoder': {'ids': ids, 'mask': ids}}
    else:
        states = jax.ShapeDtypeStruct((NUM_PROMPTS, length, unet['cross_attention_dim']), jnp.float32)
        frozen['text'] = {'encoder_hidden_states': states}
    params = shapes_of(trainable.params)
    state = jax.eval_shape(lambda params: init_state(params, tx, ema=config.optimizer.ema_decay is not None), params)
    return Training(make_step, state, frozen, feed.batch(rows, rows, config.prior.weight, 1))


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


def values(training: Training) -> tuple[Any, Any]:
    """(state, frozen) with weights that are no zeros; traced inside jit."""

    def spread(number, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        # Not random numbers: a thousand random numbers would take minutes to compile.
        waves = jnp.sin(1.7 * jnp.arange(x.size, dtype=jnp.float32) + number)
        return (0.03 * waves).reshape(x.shape).astype(x.dtype)

    def spread_all(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([spread(number, x) for number, x in enumerate(leaves)])

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), training.state)
    return dataclasses.replace(zeros, params=spread_all(training.state.params)), spread_all(training.frozen)
