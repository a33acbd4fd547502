"""The result of a run, read from its checkpoints: the model and, if the run trained LoRA, the adapters.

Each stage's weights come from its newest checkpoint or, if the run was evaluated, from its best one (best.json). They
are the averaged weights, if the run averages. Everything else comes from the model that the run began with.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, with_new_names
from dreambooth_jax.finetune import model_card
from dreambooth_jax.finetune.initial import initial
from dreambooth_jax.finetune.model_card import Export
from dreambooth_jax.finetune.stage import stage_trainable
from dreambooth_jax.generation.cascade import STAGES, SUPER_RESOLUTION, Cascade
from dreambooth_jax.models import lora
from dreambooth_jax.training import best_checkpoint, run
from dreambooth_jax.training.checkpoint import CheckpointError
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.lora_files import Adapter

_MODEL = 'model'


class Trained(NamedTuple):
    """What a run has trained.

    Attributes:
      name: name of the run's folder.
      config: the run's settings.
      cascade: the model, on the host, adapters merged.
      stages: the stages whose weights come from a checkpoint.
      adapters: stage -> its adapters; empty if whole networks trained.
      origins: lines of text that say where each stage's weights come from.
      workdir: the run's folder; None: it is not known.
      steps: stage -> the step of the checkpoint that its weights come from.
    """

    name: str
    config: DreamBoothConfig
    cascade: Cascade
    stages: tuple[str, ...]
    adapters: dict[str, Adapter]
    origins: list[str]
    workdir: Path | None = None
    steps: Mapping[str, int] = MappingProxyType({})


def read_config(workdir: Path) -> DreamBoothConfig:
    """Reads the settings of a run; raises ConfigError if `workdir` is not a run's folder."""
    path = workdir / 'config.json'
    if not path.is_file():
        raise ConfigError(f"{workdir} is no run's folder: {path} is missing; give the --workdir of train")
    try:
        return resolve(DreamBoothConfig, with_new_names(DreamBoothConfig, json.loads(path.read_text('utf-8'))))
    except ValueError as error:
        raise ConfigError(f'{path} is no readable JSON ({error})') from None


def read_trained(workdir: Path, step: int | None = None) -> Trained:
    """Reads what a run has trained. If the run has no checkpoints, its model/ is read.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint; None: the best one by evaluation, or the newest of a stage that is not evaluated. A
        stage without a checkpoint of that step gives the one that None would give.

    Raises:
      ConfigError: if `workdir` is not a run's folder, or its best.json is damaged.
      CheckpointError: if there is nothing to read, no stage has a checkpoint of `step`, or one does not fit the model.
      WeightsError: if the model that the run began with cannot be read.
    """
    config = read_config(workdir)
    name = workdir.absolute().name
    # Where scores are off now, a choice counts all the same if it stands because the second stage was trained on it.
    chosen = config.evaluation.every or SUPER_RESOLUTION in run.trained_stages(workdir)
    best = {stage: best_checkpoint.step_of(workdir, stage) if chosen else None for stage in STAGES}
    found = {stage: _read_checkpoint(workdir / stage / 'checkpoints', (step, best[stage])) for stage in STAGES}
    found = {stage: checkpoint for stage, checkpoint in found.items() if checkpoint}
    if step is not None and step not in [at for at, _ in found.values()]:
        kinds = {stage: 'best' if at == best[stage] else 'newest' for stage, (at, _) in found.items()}
        has = '; '.join(f'the {kinds[stage]} of {stage} is {at}' for stage, (at, _) in found.items()) or 'it has none'
        usual = 'best' if 'best' in kinds.values() else 'newest'
        raise CheckpointError(f'{workdir} has no checkpoint {step}: {has}; leave --step out to take the {usual}')
    if not found:
        model = workdir / _MODEL
        if not (model / 'model_index.json').is_file():
            raise CheckpointError(f'{workdir} holds neither checkpoints nor a model/; start train with it first')
        return Trained(name, config, Cascade.load(model), (), {}, [f'both stages: {model}'], workdir)
    cascade, _ = initial(config, Cascade.of(config), dtype=jnp.float32)
    adapters, origins = {}, []
    for stage in STAGES:
        if getattr(cascade, stage) is None or stage not in found:
            origins += [f'{stage}: as in {config.init_from or config.model}'] if getattr(cascade, stage) else []
            continue
        at, params = found[stage]
        try:
            cascade, adapter = _finetuned(config, cascade, stage, params)
        except ValueError as error:
            raise CheckpointError(
                f'checkpoint {at} in {workdir / stage} does not fit the {error} of the model {config.model!r}; '
                f'put that model back as it was when the run began'
            ) from None
        adapters |= {stage: adapter} if adapter else {}
        origins.append(f'{stage}: checkpoint {at}{", the best by evaluation" if at == best[stage] else ""}')
    steps = {stage: at for stage, (at, _) in found.items()}
    return Trained(name, config, cascade, tuple(found), adapters, origins, workdir, steps)


def with_whole_kernels(config: DreamBoothConfig, cascade: Cascade) -> Cascade:
    """Returns the model of a run with the kernels of its files and the adapters merged into them, on the host.

    Args:
      cascade: what the run has trained, maybe with quantised kernels and adapters beside them; if there are none, it is
        returned as it is.

    Raises:
      WeightsError: if the model that the run began with cannot be read.
    """
    if config.lora.frozen_dtype is None:
        return cascade
    original, _ = initial(config, Cascade.of(config), dtype=jnp.float32)
    stages = {}
    for stage in STAGES:
        for component, network in getattr(cascade, stage).components.items() if getattr(cascade, stage) else ():
            if network.frozen_dtype is None:
                continue
            adapter, own = lora.separate(network.params)
            whole = getattr(original, stage).components[component]
            # Only the kernels come from the files: a token table may have learned rows.
            params = {name: own.get(name, value) for name, value in whole.params.items()}
            params = lora.merge({**params, **adapter}, rank=1, alpha=1.0)  # Trainable.plain has scaled the adapters
            stages.setdefault(stage, {})[component] = dataclasses.replace(whole, params=params)
    return dataclasses.replace(
        original, **{stage: getattr(original, stage).with_components(**new) for stage, new in stages.items()}
    )


def write_model(config: DreamBoothConfig, cascade: Cascade, folder: Path) -> None:
    """Writes the model that a run has trained as a pipeline folder with a model card, into the run's folder.

    Arguments and errors are those of with_whole_kernels.
    """
    cascade, workdir = with_whole_kernels(config, cascade), folder.parent
    card = model_card.text(Export(config=config, cascade=cascade, workdir=workdir))
    folders.write_pipeline(cascade.base, folder, super_resolution=cascade.super_resolution, card=card)


def _read_checkpoint(folder: Path, wanted: tuple[int | None, ...]) -> tuple[int, dict[str, dict[str, Any]]] | None:
    """Reads a checkpoint of one stage.

    Args:
      folder: <workdir>/<stage>/checkpoints; it need not exist.
      wanted: steps; the first of which there is a checkpoint is read, or else the newest.

    Returns:
      The step, and component -> dotted path -> f32 array: the averaged weights if the run averages. None if the stage
      has no checkpoint.
    """
    if not folder.is_dir():
        return None
    step = None
    try:
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.PyTreeCheckpointHandler()
        ) as manager:
            steps = manager.all_steps()
            if not steps:
                return None
            step = next((one for one in wanted if one in steps), max(steps))
            tree = manager.item_metadata(step).tree
            part = 'ema' if tree.get('ema') else 'params'
            shapes = {part: jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree[part])}
            to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            asked = ocp.args.PyTreeRestore(item=shapes, restore_args=to_host, partial_restore=True)
            return step, manager.restore(step, args=asked)[part]
    except Exception as error:  # Orbax raises many kinds, from OSError to its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'checkpoint {step or ""} in {folder} could not be read: {reason}') from error


def _finetuned(config: DreamBoothConfig, cascade: Cascade, stage: str, params) -> tuple[Cascade, Adapter | None]:
    """Returns the cascade with the trained weights of a stage, and the stage's adapters or None.

    Raises:
      ValueError: with the name of a component that the model lacks, or that has other shapes there.
    """
    pipeline = getattr(cascade, stage)
    for component in params:
        if component not in pipeline.components:
            raise ValueError(component)
    # In float32, like the master weights: merging adapters into kernels in the compute dtype would round the kernels.
    trainable = stage_trainable(config, stage, cascade, dtype=jnp.float32, remat=False)
    for component in {**trainable.params, **params}:
        if _shapes(params.get(component, {})) != _shapes(trainable.params.get(component, {})):
            raise ValueError(component)
    given = trainable.plain(params)
    adapter = None
    if config.lora.rank is not None:
        own = {component: lora.separate(part)[0] for component, part in params.items()}
        own = {component: part for component, part in own.items() if part}  # new rows may train alone
        adapter = Adapter(own, config.lora.rank, config.lora.scale_alpha) if own else None
    return cascade.with_params(**{stage: given}), adapter


def _shapes(params) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in params.items()}
