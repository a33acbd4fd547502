"""The weights that a run starts from: those of its model or, with the setting init_from, of another run of that model.

Class images, the frozen model of distillation and the scores of the model before training come from `model` all the
same: what the other run has learned of its subject is no part of the class.
"""

from typing import Any

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.finetune import textual_inversion
from dreambooth_jax.generation.cascade import STAGES, Cascade
from dreambooth_jax.training.inputs import INIT_FROM
from dreambooth_jax.weights.pipeline import hash_networks


def initial(config: DreamBoothConfig, original: Cascade, *, dtype: Any) -> tuple[Cascade, dict[str, dict[str, str]]]:
    """Returns the model that a run starts from, with the new word of textual inversion, if there is one.

    Args:
      original: the run's `model`. If its kernels are quantised, those of the other run are too.
      dtype: the dtype that networks compute in.

    Returns:
      The model; and, for training/inputs.py, the setting init_from -> the hashes of its weights. The latter is empty
      if the setting is None.

    Raises:
      ConfigError: if the other model is of another kind, or the word is known or cannot be begun.
      WeightsError: if it cannot be read.
    """
    start, hashes = original, {}
    if config.init_from is not None:
        other = Cascade.load(config.init_from, dtype=dtype, frozen_dtype=original.base.denoiser.frozen_dtype)
        weights = [hash_networks(getattr(other, name).components) for name in STAGES if getattr(other, name)]
        start, hashes = _with_weights(config, original, other), {INIT_FROM: {'weights': ' '.join(weights)}}
    return textual_inversion.with_word(start, config.textual_inversion, dtype=dtype, seed=config.seed), hashes


def _with_weights(config: DreamBoothConfig, original: Cascade, other: Cascade) -> Cascade:
    for name in STAGES:
        stage, source = getattr(original, name), getattr(other, name)
        if stage is None or source is None:
            continue
        given = {component: network.params for component, network in source.components.items()}
        for component, network in stage.components.items():
            if _shapes(given.get(component, {})) != _shapes(network.params):
                raise ConfigError(
                    f'config.{INIT_FROM} is {config.init_from!r}, whose {name} stage has another {component} than '
                    f'{stage.name}; give a run of the same model'
                )
        original = original.with_params(**{name: {component: given[component] for component in stage.components}})
    return original


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in params.items()}
