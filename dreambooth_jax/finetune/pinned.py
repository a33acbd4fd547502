"""Fixed commits of hub models: a model may change there, but a run continues with the commit in its config.json."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.generation.cascade import STAGES, Cascade
from dreambooth_jax.weights import hub

_REVISIONS = {'model': 'model_revision', 'super_resolution_model': 'super_resolution_model_revision'}
_OF_SAMPLES = {'model': 'model_revision'}


def read_pinned(config: DreamBoothConfig, workdir: Path) -> tuple[DreamBoothConfig, Cascade]:
    """Reads the model that a run begins or continues with.

    Args:
      workdir: the run's folder, which need not exist yet.

    Returns:
      The settings with the commit of each model that came from the hub, and the model, with quantised kernels if they
      say so. If the settings name no revision, the commit is the one that the run was begun with. The same
      holds for samples.model, except that it is not read here: with_commit_of_samples adds its commit.

    Raises:
      WeightsError, ConfigError: as Cascade.of.
    """
    begun = _begun(workdir / 'config.json')
    if begun is not None:
        config = _as_begun(config, begun, _REVISIONS)
        samples = begun.get('samples')
        if isinstance(samples, dict):
            config = dataclasses.replace(config, samples=_as_begun(config.samples, samples, _OF_SAMPLES))
    cascade = Cascade.of(config, config.lora.frozen_dtype)
    for stage, revision in zip(STAGES, _REVISIONS.values(), strict=True):
        pipeline = getattr(cascade, stage)
        commit = hub.commit_of(pipeline.folder) if pipeline is not None else None
        # A run whose config.json holds no commit gets none now: it would then differ from the settings it began with.
        if commit is not None and (begun is None or begun.get(revision) is not None):
            config = dataclasses.replace(config, **{revision: commit})
    return config, cascade


def with_commit_of_samples(config: DreamBoothConfig, sampled_on: Cascade | None) -> DreamBoothConfig:
    """Returns the settings with the commit of samples.model if that came from the hub.

    Args:
      sampled_on: the model that generates the samples (samples_model.read); None: the one that trains.
    """
    commit = hub.commit_of(sampled_on.base.folder) if sampled_on is not None else None
    if commit is None:
        return config
    return dataclasses.replace(config, samples=dataclasses.replace(config.samples, model_revision=commit))


def _as_begun(settings: Any, begun: Mapping[str, Any], revisions: Mapping[str, str]) -> Any:
    """Returns settings whose revisions are those that a run was begun with, where the models are the same.

    Args:
      settings: a part of the settings, or all.
      begun: the same part in the run's config.json.
      revisions: the setting that names a model -> the one that names its revision.
    """
    for model, revision in revisions.items():
        same_model = begun.get(model) == getattr(settings, model)
        if same_model and getattr(settings, revision) is None and isinstance(begun.get(revision), str):
            settings = dataclasses.replace(settings, **{revision: begun[revision]})
    return settings


def _begun(path: Path) -> dict[str, Any] | None:
    try:
        written = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError):  # training.run reports a damaged file when the run begins
        return None
    return written if isinstance(written, dict) else None
