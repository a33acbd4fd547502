"""Fixed commits of hub models: a model may change there, but a run continues with the commit in its config.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.generation.cascade import STAGES, Cascade
from dreambooth_jax.weights import hub

_REVISIONS = {'model': 'model_revision', 'super_resolution_model': 'super_resolution_model_revision'}


def read_pinned(config: DreamBoothConfig, workdir: Path) -> tuple[DreamBoothConfig, Cascade]:
    """Reads the model that a run begins or continues with.

    Args:
      workdir: the run's folder, which need not exist yet.

    Returns:
      The settings with the commit of each model that came from the hub, and the model, with quantised kernels if they
      say so. If the settings name no revision, the commit is the one that the run was begun with.

    Raises:
      WeightsError, ConfigError: as Cascade.of.
    """
    begun = _begun(workdir / 'config.json')
    for model, revision in _REVISIONS.items():
        same_model = begun is not None and begun.get(model) == getattr(config, model)
        if same_model and getattr(config, revision) is None and isinstance(begun.get(revision), str):
            config = dataclasses.replace(config, **{revision: begun[revision]})
    cascade = Cascade.of(config, config.lora.frozen_dtype)
    for stage, revision in zip(STAGES, _REVISIONS.values(), strict=True):
        pipeline = getattr(cascade, stage)
        commit = hub.commit_of(pipeline.folder) if pipeline is not None else None
        # A run whose config.json holds no commit gets none now: it would then differ from the settings it began with.
        if commit is not None and (begun is None or begun.get(revision) is not None):
            config = dataclasses.replace(config, **{revision: commit})
    return config, cascade


def _begun(path: Path) -> dict[str, Any] | None:
    try:
        written = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError):  # training.run reports a damaged file when the run begins
        return None
    return written if isinstance(written, dict) else None
