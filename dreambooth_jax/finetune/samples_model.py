"""The model that generates a run's samples where the setting samples.model names another than the one that trains.

What people train is often not what they generate with: a distilled model, made from the one that trains, takes its
LoRA and needs a tenth of the steps. The samples of the run then show what its users will see.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from dreambooth_jax.config import NO_MODEL, ConfigError, DreamBoothConfig
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights.pipeline import Network


def read(config: DreamBoothConfig, cascade: Cascade) -> Cascade | None:
    """Reads the model that generates the samples.

    It warns if the makers of that model generate in another way than the settings say.

    Args:
      cascade: the model that trains.

    Returns:
      The model, with kernels quantised as those of the one that trains; None if that one generates itself.

    Raises:
      ConfigError: if the other model is of another family or size, or the run has a second stage or a new word.
      WeightsError: if it cannot be read.
    """
    if config.samples.model is None:
        return None
    setting = f'config.samples.model is {config.samples.model!r}'
    if cascade.super_resolution is not None:
        raise ConfigError(
            f'{setting} but {cascade.base.name} has a second stage; set config.super_resolution_model to '
            f'{NO_MODEL!r}, or config.samples.model to None'
        )
    if config.textual_inversion.token is not None:
        raise ConfigError(f'{setting} but another model does not know the word that is learned; set it to None')
    other = Cascade.load(
        config.samples.model,
        super_resolution_model=NO_MODEL,
        dtype=config.parallel.dtype,
        frozen_dtype=config.lora.frozen_dtype,
        size=cascade.size,
        clip_skip=cascade.clip_skip,
        revisions=(config.samples.model_revision, None),
    )
    _check_fits(setting, cascade, other, config.lora.targets or cascade.base.family.lora_targets)
    usual = other.base.family.usual_sampling(other.base)
    differ = {name: value for name, value in usual.items() if getattr(config.samples, name) != value}
    if differ:
        told = ', '.join(f'samples.{name} {value!r}' for name, value in differ.items())
        logging.warning('the makers of %s generate with %s', other.base.name, told)
    return other


def _check_fits(setting: str, cascade: Cascade, other: Cascade, targets: Sequence[str]) -> None:
    """Checks that the layers that get adapters are layers of the other model; a layer of another kind may be missing.

    So FLUX.1 schnell, which is told no guidance, takes what dev learns in its blocks.
    """
    if other.base.family is not cascade.base.family:
        raise ConfigError(
            f'{setting}, a {other.base.family.title} model, but {cascade.base.name}, which trains, is a '
            f'{cascade.base.family.title} model; give one that was made from it'
        )
    for component in cascade.base.components:
        ours, theirs = (_shapes(one.base.components.get(component)) for one in (cascade, other))
        differ = {name for name in ours if theirs.get(name) != ours[name]}
        if differ & theirs.keys() or any(_is_target(name, targets) for name in differ):
            raise ConfigError(
                f'{setting}, which has another {component} than {cascade.base.name}; give one that was made from it'
            )


def _is_target(name: str, targets: Sequence[str]) -> bool:
    layer = name.partition('.kernel')[0]
    return layer != name and any(re.fullmatch(target, layer) for target in targets)


def _shapes(network: Network | None) -> Mapping[str, Any]:
    return {} if network is None else {name: value.shape for name, value in network.params.items()}
