"""Stable Diffusion 1.5's training as `train` builds it, on weights and images that have shapes and no values.

What memory.py and training.py compile. Networks are the published ones, or tiny ones to try the scripts out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import published

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.finetune import planned_stage
from dreambooth_jax.models.functional import compute_dtype
from dreambooth_jax.training.placement import Pmap
from dreambooth_jax.training.train_run import TrainRun

MODEL = published.PUBLISHED['stable-diffusion-v1-5/stable-diffusion-v1-5']
NUM_INSTANCE = 4  # images of the subject


def networks(tiny: bool) -> Mapping[str, Mapping[str, Any]]:
    """Component -> configuration of the networks, the published ones or tiny ones."""
    return (MODEL.tiny() if tiny else MODEL).networks


def make_run(config: DreamBoothConfig, tiny: bool) -> TrainRun:
    """The training of the base stage under these settings, as `train` makes it; nothing is computed.

    It is for one device. Its arrays, but for the batch, are shapes or read as such.
    """
    dtype = compute_dtype(config.parallel.dtype)
    # Adapters keep frozen kernels in the compute dtype, and to cast a stand-in would give it memory.
    stored = jnp.float32 if config.lora.rank is None else dtype
    cascade = published.ShapesCascade(published.pipeline(MODEL.tiny() if tiny else MODEL, dtype, stored))
    images = published.images(NUM_INSTANCE, cascade.base_size)
    placement = Pmap(jax.local_devices()[:1])
    run = planned_stage.plan_stage(config, 'base', cascade, images, placement).run
    return dataclasses.replace(run, frozen=shapes_of(run.frozen))


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
