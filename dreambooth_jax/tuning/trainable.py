"""What of a stage's networks trains, and how the networks' parameters come of it.

Full fine-tuning trains parameters as they are; LoRA trains adapters beside frozen ones. A stage's loss (stages/) knows
nothing of it: it is given the full parameters, which `assemble` makes of what trains and of what is frozen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from dreambooth_jax.config import LoraConfig, SettingsError
from dreambooth_jax.models import functional, lora
from dreambooth_jax.weights.pipeline import Pipeline, abstract_network

Components = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The networks of one stage as they train.

    Attributes:
      apply: component -> pure function of its full parameters.
      params: component -> what the optimiser changes, on the host.
      frozen: component -> the other weights that a step needs; those of networks that do not train are not among them.
      lora: the adapters' settings, or None where whole networks train.
    """

    apply: Mapping[str, Callable]
    params: Components
    frozen: Components
    lora: LoraConfig | None = None

    @property
    def trains_text(self) -> bool:
        """Whether prompts must be read anew at every step."""
        return any(component != 'unet' for component in self.params)

    def assemble(self, params: Components, frozen: Components) -> Components:
        """The full parameters of every network in the step; pure."""
        names = {**frozen, **params}
        return {name: {**frozen.get(name, {}), **params.get(name, {})} for name in names}

    def plain(self, params: Components) -> Components:
        """The parameters of the same networks without adapters: what is drawn with and exported."""
        if self.lora is None:
            return params
        scale = {'rank': self.lora.rank, 'alpha': self.lora.scale_alpha}
        return {name: lora.merge({**self.frozen[name], **part}, **scale) for name, part in params.items()}


def make_trainable(
    pipeline: Pipeline, components: tuple[str, ...], settings: LoraConfig, *, dtype: Any, remat: bool, seed: int
) -> Trainable:
    """The networks `components` of a pipeline, made ready to train.

    Args:
      settings: adapters, or with rank None the whole networks.
      dtype: of the compute. remat: compute activations again in the backward pass instead of keeping them (the UNet's).
      seed: of the adapters' start.
    Raises: SettingsError for targets that a network does not have.
    """
    apply, params, frozen = {}, {}, {}
    for place, component in enumerate(components):
        network = getattr(pipeline, component)
        options = {'remat': remat} if component == 'unet' else {}
        model = abstract_network(component, network.config, dtype, **options)
        if settings.rank is not None:
            model = _adapted(model, settings)
        apply[component], shapes = functional.split(model)
        if settings.rank is None:
            params[component] = dict(network.params)
            continue
        params[component] = jax.tree.map(
            np.asarray, lora.init_adapter(shapes, network.params, rngs=functional.Keys(jax.random.key(seed + place)))
        )
        frozen[component] = _stored(network.params, dtype)
    return Trainable(apply, params, frozen, settings if settings.rank is not None else None)


def _adapted(model, settings: LoraConfig):
    options = {'rank': settings.rank, 'alpha': settings.scale_alpha, 'dora': settings.dora}
    options |= {'targets': settings.targets} if settings.targets else {}
    try:
        return nnx.eval_shape(lambda model: lora.adapt(model, rngs=functional.Keys(0), **options), model)
    except ValueError as error:
        raise SettingsError(f'config.lora: {error}') from None


def _stored(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    # A frozen kernel is only ever read in the compute dtype: kept so, it takes half the memory and computes the same.
    return {
        name: np.asarray(value).astype(dtype, copy=False) if name.endswith('.kernel') else value
        for name, value in params.items()
    }
