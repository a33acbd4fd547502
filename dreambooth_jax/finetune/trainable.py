"""Which parameters of a stage's networks train, and how the networks' full parameters are made of them.

Full fine-tuning trains the parameters themselves. LoRA trains adapters beside frozen parameters, and textual inversion
trains rows of a frozen token table. The loss of a stage (losses/) does not know the difference: it gets the full
parameters, which `assemble` makes of the trained and the frozen ones.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from dreambooth_jax.config import ConfigError, LoraConfig
from dreambooth_jax.generation.new_words import NewRows
from dreambooth_jax.models import functional, lora, quantised
from dreambooth_jax.weights.pipeline import Pipeline, abstract_network

Components = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The networks of one stage, divided into parameters that train and parameters that are frozen.

    Attributes:
      denoiser: the component that denoises.
      apply: component -> pure function of its full parameters, for the denoiser and every text encoder that trains.
      params: component -> the parameters that the optimizer changes, on the host; not empty.
      frozen: component -> the other parameters that a step needs, with kernels quantised or in the compute dtype.
      start: component -> the network's own parameters before training, as they were read (functional.held, quantised).
      lora: the adapters' settings; None if whole networks train.
      new_rows: text encoder -> the rows of its token table that train as a parameter of their own.
    """

    denoiser: str
    apply: Mapping[str, Callable]
    params: Components
    frozen: Components
    start: Mapping[str, Mapping[str, Any]]
    lora: LoraConfig | None = None
    new_rows: Mapping[str, NewRows] = dataclasses.field(default_factory=dict)

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder trains, so that prompts must be encoded at every step."""
        return any(component != self.denoiser for component in self.params)

    def assemble(self, params: Components, frozen: Mapping[str, Mapping[str, Any]]) -> Components:
        """Returns the full parameters of every network that a step uses. Pure."""
        names = {**frozen, **params}
        full = {name: {**frozen.get(name, {}), **params.get(name, {})} for name in names}
        return full | {name: rows.put(full[name]) for name, rows in self.new_rows.items()}

    @property
    def adapts_denoiser(self) -> bool:
        """Whether the denoiser has adapters, beside which its kernels stay as they are."""
        return any(map(lora.is_adapter, self.params.get(self.denoiser, {})))

    def beside(self, kernels: Mapping[str, Any], adapters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the denoiser's parameters with adapters beside its kernels, for sampling; nothing is copied.

        Args:
          kernels: the denoiser's own parameters.
          adapters: those that train.
        """
        return lora.at_scale_one({**kernels, **adapters}, rank=self.lora.rank, alpha=self.lora.scale_alpha)

    def plain(self, params: Components, start: Mapping[str, Mapping[str, Any]] | None = None) -> Components:
        """Returns the parameters of the networks that train, adapters merged, for export.

        Beside quantised kernels adapters stay as they are (trained.with_whole_kernels).

        Args:
          start: component -> a network's own parameters; None: those before training.
        """
        start = self.start if start is None else start
        full = self.assemble(params, {name: start[name] for name in params})
        if self.lora is None:
            return full
        scale = {'rank': self.lora.rank, 'alpha': self.lora.scale_alpha}
        return {
            name: (lora.at_scale_one if quantised.kernel_names(part) else lora.merge)(part, **scale)
            for name, part in full.items()
        }


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
    """Divides the networks of a pipeline into parameters that train and parameters that are frozen.

    Args:
      components: the networks that train.
      settings: the adapters' settings; if the rank is None, whole networks train. A network without a matching target
        gets no adapters and stays as it is.
      new_rows: text encoder -> token-table rows that train too, whether or not `components` names that encoder.
      dtype: the dtype that the networks compute in.
      remat: compute the denoiser's activations again in the backward pass instead of keeping them.
      seed: seed of the adapters' initial values.

    Raises:
      ConfigError: if none of these networks has a layer that a target matches.
    """
    denoiser, new_rows = pipeline.family.denoiser, dict(new_rows or {})
    apply, params, frozen, start = {}, {}, {}, {}
    # If one text encoder trains, prompts are encoded at every step, for which the others are needed too.
    trains_text = any(component != denoiser for component in components) or new_rows
    texts = pipeline.text_encoders if trains_text else ()
    models = {
        component: abstract_network(
            component,
            pipeline.components[component].config,
            dtype,
            pipeline.components[component].frozen_dtype,
            **({'remat': remat} if component == denoiser else {}),
        )
        for component in dict.fromkeys((denoiser, *texts))
    }
    targets = {}
    if settings.rank is not None:
        trained = {component: models[component] for component in components}
        targets = lora_targets(settings, trained, usual_targets(pipeline, components))
        if not any(targets.get(component) for component in components if component != denoiser) and not new_rows:
            # No text encoder trains, so prompts are encoded once, outside the step.
            models = {denoiser: models[denoiser]}
    # A network has adapters, or trains as a whole, or is frozen; learned rows of its token table may come in addition.
    for index, (component, model) in enumerate(models.items()):
        network = pipeline.components[component]
        adapted = bool(targets.get(component))
        whole = component in components and settings.rank is None
        apply[component], shapes = functional.split(_adapted(model, settings, targets[component]) if adapted else model)
        start[component] = network.params
        trained = {}
        if adapted:
            rngs = functional.Keys(jax.random.key(seed + index))
            trained = jax.tree.map(np.asarray, lora.init_adapter(shapes, network.params, rngs=rngs))
        elif whole:
            fixed = functional.constants(model)
            trained = {name: value for name, value in network.params.items() if name not in fixed}
            trained = functional.in_float32(trained)
            if fixed:
                frozen[component] = {name: network.params[name] for name in fixed}
        if not whole:
            frozen[component] = functional.cast_kernels(network.params, dtype)
        if component in new_rows:
            rows = new_rows[component]
            trained[rows.name] = np.asarray(rows.take(network.params))
        if trained:
            params[component] = trained
    adapters = settings if settings.rank is not None else None
    return Trainable(denoiser, apply, params, frozen, start, adapters, new_rows)


def _adapted(model, settings: LoraConfig, targets):
    options = {'rank': settings.rank, 'alpha': settings.scale_alpha, 'dora': settings.dora, 'targets': targets}
    try:
        return nnx.eval_shape(lambda model: lora.adapt(model, rngs=functional.Keys(0), **options), model)
    except ValueError as error:
        raise ConfigError(f'config.lora: {error}') from None


def usual_targets(pipeline: Pipeline, components: Sequence[str]) -> tuple[str, ...]:
    """Returns the LoRA targets where the settings name none: the family's, and attention in text encoders that train.

    Args:
      components: the networks that train.
    """
    family = pipeline.family
    texts = any(component != family.denoiser for component in components)
    return (*family.lora_targets, *(lora.TEXT_PROJECTIONS if texts else ()))


def lora_targets(
    settings: LoraConfig, models: Mapping[str, nnx.Module], usual: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Finds the LoRA targets that each network has. A target that no network has may be meant for another stage.

    Args:
      models: component -> network, for the networks that train; it may be empty.
      usual: the family's targets, which are taken if the settings name none.

    Returns:
      Component -> the targets that match one of its layers.

    Raises:
      ConfigError: if no target matches in any network.
    """
    targets = settings.targets or usual
    try:
        found = {component: lora.matching(model, targets) for component, model in models.items()}
        if found and not any(found.values()):
            lora.check_targets(models, targets)
    except ValueError as error:
        raise ConfigError(f'config.lora: {error}') from None
    return found
