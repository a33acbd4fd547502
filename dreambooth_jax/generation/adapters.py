"""Sampling with LoRA adapters from files, merged into the model that they were trained on."""

import os

from dreambooth_jax.config import ConfigError
from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.models import lora
from dreambooth_jax.weights.lora_files import read_lora


def with_lora(cascade: Cascade, path: str | os.PathLike, scale: float = 1.0, stage: str = BASE) -> Cascade:
    """Merges the adapters of a file into the weights of a cascade.

    Several files can be merged one after the other; each is merged into the weights that the earlier ones left.

    Args:
      path: a LoRA file in any format that lora_files.read_lora reads.
      scale: factor of the change that the adapters make. 0 leaves the weights as they are; a negative value leads away
        from what the adapters learned.
      stage: the stage whose networks the file is for, 'base' or 'super_resolution'.

    Raises:
      WeightsError: if the file is not a LoRA of this model.
      ConfigError: if the cascade has no such stage, or its kernels are quantised.
    """
    pipeline = getattr(cascade, stage)
    if pipeline is None:
        raise ConfigError(f'{path} is for a {stage} stage, but {cascade.base.name} has none; leave it out')
    # In the second stage only the denoiser trains.
    networks = {pipeline.family.denoiser: pipeline.denoiser, **(pipeline.text_encoders if stage == BASE else {})}
    if pipeline.denoiser.frozen_dtype is not None:
        raise ConfigError(
            f'{path} is merged into kernels, but those of {pipeline.name} are quantised to '
            f'{pipeline.denoiser.frozen_dtype}; load it without frozen_dtype'
        )
    params = {name: network.params for name, network in networks.items()}
    adapter = read_lora(path, params, ORIGINALS, pipeline.family.lora_layers)
    merged = {
        name: lora.merge({**networks[name].params, **params}, rank=adapter.rank, alpha=adapter.alpha, scale=scale)
        for name, params in adapter.params.items()
    }
    return cascade.with_params(**{stage: merged})
