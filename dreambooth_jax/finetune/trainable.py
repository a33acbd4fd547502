"""What of a stage's networks trains, and how the networks' parameters come of it.

Full fine-tuning trains parameters as they are; LoRA trains adapters beside frozen ones, textual inversion rows of a
frozen token table. A stage's loss (stages/) knows nothing of it: it is given the full parameters, which `assemble`
makes of what trains and of what is frozen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from dreambooth_jax.config import ConfigError, LoraConfig
from dreambooth_jax.generation.new_words import NewRows
from dreambooth_jax.models import functional, lora
from dreambooth_jax.weights.pipeline import Pipeline, abstract_network

Components = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The networks of one stage as they train.

    Attributes:
      apply: component -> pure function of its full parameters; the UNet, and the text encoders that train in part.
      params: component -> what the optimiser changes, on the host; not empty.
      frozen: component -> the other weights that a step needs, kernels in the compute dtype.
      start: component -> the network's own parameters before training, in f32.
      lora: the adapters' settings, or None where whole networks train.
      new_rows: text encoder -> the rows of its token table that train by themselves.
    """

    apply: Mapping[str, Callable]
    params: Components
    frozen: Components
    start: Mapping[str, Mapping[str, Any]]
    lora: LoraConfig | None = None
    new_rows: Mapping[str, NewRows] = dataclasses.field(default_factory=dict)

    @property
    def trains_text(self) -> bool:
        """Whether prompts must be read anew at every step."""
        return any(component != 'unet' for component in self.params)

    def assemble(self, params: Components, frozen: Mapping[str, Mapping[str, Any]]) -> Components:
        """The full parameters of every network in the step; pure."""
        names = {**frozen, **params}
        full = {name: {**frozen.get(name, {}), **params.get(name, {})} for name in names}
        return full | {name: rows.put(full[name]) for name, rows in self.new_rows.items()}

    def plain(self, params: Components) -> Components:
        """The parameters of the networks that train, without adapters: what is generated with and exported."""
        full = self.assemble(params, {name: self.start[name] for name in params})
        if self.lora is None:
            return full
        scale = {'rank': self.lora.rank, 'alpha': self.lora.scale_alpha}
        return {name: lora.merge(part, **scale) for name, part in full.items()}


def make_trainable(
    pipeline: Pipeline,
    components: tuple[str, ...],
    settings: LoraConfig,
    *,
    new_rows: Mapping[str, NewRows] | None = None,
    dtype: Any,
    remat: bool,
    seed: int,
) -> Trainable:
    """The networks of a pipeline, those named by `components` made ready to train.

    Args:
      settings: adapters, or with rank None the whole networks. A network in which no target matches stays as it is.
      new_rows: text encoder -> rows that train as well, whether or not it is named.
      dtype: of the compute. remat: compute activations again in the backward pass instead of keeping them (the UNet's).
      seed: of the adapters' start.
    Raises: ConfigError for targets that none of these networks has.
    """
    new_rows = dict(new_rows or {})
    apply, params, frozen, start = {}, {}, {}, {}
    models = {
        component: abstract_network(
            component, getattr(pipeline, component).config, dtype, **({'remat': remat} if component == 'unet' else {})
        )
        for component in dict.fromkeys(('unet', *components, *new_rows))
    }
    targets = {}
    if settings.rank is not None:
        targets = lora_targets(settings, {component: models[component] for component in components})
        if not any(targets.get(component) for component in components if component != 'unet') and not new_rows:
            models = {'unet': models['unet']}  # prompts are read once
    for index, (component, model) in enumerate(models.items()):
        network = getattr(pipeline, component)
        adapted = bool(targets.get(component))
        whole = component in components and settings.rank is None
        apply[component], shapes = functional.split(_adapted(model, settings, targets[component]) if adapted else model)
        start[component] = network.params
        trained = {}
        if adapted:
            rngs = functional.Keys(jax.random.key(seed + index))
            trained = jax.tree.map(np.asarray, lora.init_adapter(shapes, network.params, rngs=rngs))
        elif whole:
            trained = dict(network.params)
        if not whole:
            frozen[component] = stored(network.params, dtype)
        if component in new_rows:
            rows = new_rows[component]
            trained[rows.name] = np.asarray(rows.take(network.params))
        if trained:
            params[component] = trained
    return Trainable(apply, params, frozen, start, settings if settings.rank is not None else None, new_rows)


def _adapted(model, settings: LoraConfig, targets):
    options = {'rank': settings.rank, 'alpha': settings.scale_alpha, 'dora': settings.dora, 'targets': targets}
    try:
        return nnx.eval_shape(lambda model: lora.adapt(model, rngs=functional.Keys(0), **options), model)
    except ValueError as error:
        raise ConfigError(f'config.lora: {error}') from None


def lora_targets(settings: LoraConfig, models: Mapping[str, nnx.Module]) -> dict[str, tuple[str, ...]]:
    """The targets that each of some networks has; a target that none of them has may be meant for another stage.

    Args:
      models: {component: network} of those that are to train; empty if none is.
    Raises: ConfigError if no target matches in any of them.
    """
    targets = settings.targets or lora.ATTENTION_PROJECTIONS
    try:
        found = {component: lora.matching(model, targets) for component, model in models.items()}
        if found and not any(found.values()):
            lora.check_targets(models, targets)
    except ValueError as error:
        raise ConfigError(f'config.lora: {error}') from None
    return found


def stored(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Frozen parameters as a step keeps them.

    A kernel is only ever read in the compute dtype: kept so, it takes half the memory and computes the same.
    """
    return {
        name: np.asarray(value).astype(dtype, copy=False) if name.endswith('.kernel') else value
        for name, value in params.items()
    }
