"""Generating with LoRA adapters that lie in files of their own, beside the model that they were trained on."""

import os

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.models import lora
from dreambooth_jax.weights.lora_files import read_lora
from dreambooth_jax.weights.pipeline import COMPONENTS


def with_lora(cascade: Cascade, path: str | os.PathLike, scale: float = 1.0, stage: str = BASE) -> Cascade:
    """The cascade with a file's adapters merged into its weights; of several files each changes what is there by then.

    Args:
      path: of a LoRA file in any format that lora_files.read_lora reads.
      scale: factor on the difference that the adapters make; 0 generates as without them, less than 0 away from
        them.
      stage: whose networks the file is for.
    Raises: WeightsError for a file that is no LoRA of this model; ConfigError if the cascade has no such stage.
    """
    pipeline = getattr(cascade, stage)
    if pipeline is None:
        raise ConfigError(f'{path} is for a {stage} stage, but {cascade.base.name} has none; leave it out')
    adapted = COMPONENTS if stage == BASE else ('unet',)  # of the second stage nothing else trains
    networks = {name: network for name in adapted if name != 'vae' and (network := getattr(pipeline, name))}
    adapter = read_lora(path, {name: network.params for name, network in networks.items()})
    merged = {
        name: lora.merge({**networks[name].params, **params}, rank=adapter.rank, alpha=adapter.alpha, scale=scale)
        for name, params in adapter.params.items()
    }
    return cascade.with_params(**{name if stage == BASE else f'{stage}_{name}': new for name, new in merged.items()})
