"""What each stage of pretraining trains: its loss, its parameters, and what it keeps of a pool of painted images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.families.image_space import encode_images
from dreambooth_jax.families.prompts import take
from dreambooth_jax.losses.autoencoder import AutoencoderLoss
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective
from dreambooth_jax.losses.super_resolution import SuperResolutionLoss
from dreambooth_jax.models import functional, vae
from dreambooth_jax.storybook.pools import Pool
from dreambooth_jax.training import optimizer
from dreambooth_jax.weights.kinds import is_partial
from dreambooth_jax.weights.pipeline import Pipeline

_PROMPTS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """One stage of pretraining.

    Attributes:
      loss: the loss of its examples (losses/stage.py).
      params: component -> parameters that train.
      data: pool -> what the loss finds in `frozen`, on the host.
      held: component -> masks of the parameters whose learning rate is multiplied by 0.
      samples: whether what trains generates images by itself.
    """

    loss: Callable
    params: dict[str, Any]
    data: Callable[[Pool], dict[str, Any]]
    held: dict[str, Any]
    samples: bool


def pretraining_of(config: PretrainConfig, pipeline: Pipeline) -> Pretraining:
    """Returns the stage that the settings ask for.

    Args:
      pipeline: the pipeline that training starts from, with all networks of its family.

    Raises:
      ConfigError: if the model has no such stage, or its loss cannot be as the settings say.
      WeightsError: if the prompts of the model cannot be read.
    """
    if config.stage == 'autoencoder':
        return _autoencoder(config, pipeline)
    objective = Objective.from_settings(config)
    objective.check(pipeline.family.process(pipeline), pipeline.name)
    encoder = pipeline.family.prompt_encoder(pipeline, size=pipeline.size)
    texts = {component: functional.in_float32(network.params) for component, network in pipeline.text_encoders.items()}
    partial = any(is_partial(component, network.config) for component, network in pipeline.text_encoders.items())
    trains_text = config.stage == 'base' and not partial
    denoiser = pipeline.family.denoiser
    params = {denoiser: functional.in_float32(pipeline.denoiser.params)}
    if config.stage == 'base':
        encode = encoder if trains_text else None
        stage = DenoisingLoss.of(pipeline, pipeline.denoiser.apply, objective=objective, encode=encode)
    else:
        pairing = {'factor': config.factor, 'noise_level': config.noise_level, 'crop': config.crop}
        stage = SuperResolutionLoss.of(pipeline, pipeline.denoiser.apply, objective=objective, **pairing)
    # A multiplier of 0 freezes the outputs that predict the variance.
    held = {} if config.train_variance else {denoiser: optimizer.variance_head_masks(params[denoiser])}

    read = functools.partial(jax.jit(encoder), texts)

    def data(pool):
        tokens = encoder.tokens(['', *pool.captions])
        kept = pipeline.space.prepare(pool.images, None, flip=False, pairs=config.stage == 'super_resolution')
        kept['prompt_of'] = np.arange(1, len(pool.images) + 1, dtype=np.int32)
        return kept | ({'tokens': tokens} if trains_text else {'text': _states(read, tokens, len(pool.captions) + 1)})

    return Pretraining(stage.loss, params | (texts if trains_text else {}), data, held, samples=config.stage == 'base')


def _states(read: Callable, tokens: Mapping[str, Any], count: int) -> Any:
    """Returns the conditioning by all prompts, on the host."""
    slices = (slice(first, first + _PROMPTS_AT_ONCE) for first in range(0, count, _PROMPTS_AT_ONCE))
    parts = [jax.tree.map(np.asarray, read(take(tokens, examples))) for examples in slices]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


def _autoencoder(config: PretrainConfig, pipeline: Pipeline) -> Pretraining:
    component = pipeline.space.decoder
    if component is None:
        raise ConfigError(f"config.stage is 'autoencoder' but a {pipeline.class_name} works on pixels and has none")
    network = pipeline.components[component]
    weights = {'kl_weight': config.kl_weight, 'edge_weight': config.edge_weight}
    stage = AutoencoderLoss(component=component, apply=network.apply, crop=config.crop, **weights)
    params = {component: functional.in_float32(network.params)}
    return Pretraining(stage.loss, params, lambda pool: {'images': pool.images}, {}, samples=False)


def with_scaled_latents(pipeline: Pipeline, images: np.ndarray) -> Pipeline:
    """Returns the pipeline whose denoiser sees latents of mean 0 and standard deviation 1, as measured on images.

    Args:
      pipeline: a pipeline on latents whose autoencoder has trained.
      images: uint8[N, H, W, 3].
    """
    component = pipeline.space.decoder
    network = pipeline.components[component]
    latents = np.asarray(vae.latent_mode(encode_images(network.apply, network.params, images), 1.0))
    found = {'shift_factor': float(latents.mean()), 'scaling_factor': float(1 / latents.std())}
    scaled = dataclasses.replace(network, config={**network.config, **found})
    return pipeline.with_components(**{component: scaled})
