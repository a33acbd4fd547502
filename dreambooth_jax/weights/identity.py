"""Identifies a model by its contents, not by its name or path: hashes of weights, noise schedules and tokenizers."""

import hashlib
import json
from pathlib import Path

from dreambooth_jax.weights.hub import TOKENIZER_SUFFIXES
from dreambooth_jax.weights.pipeline import Pipeline

_NOTES = ('_diffusers_version', '_name_or_path')  # who wrote the file and where the model came from: not its contents


def identity(pipeline: Pipeline) -> dict[str, str]:
    """Hashes everything that a stage generates and trains with.

    Returns:
      {'weights': ..., 'scheduler': ...} and, if the stage has tokenizers, 'tokenizer': sha256, hexadecimal.
    """
    found = {'weights': pipeline.weights_hash, 'scheduler': scheduler_hash(pipeline)}
    if pipeline.tokenizers:
        found['tokenizer'] = _folders_hash(list(pipeline.tokenizers.values()))
    return found


def scheduler_hash(pipeline: Pipeline) -> str:
    """sha256 of the contents of a stage's scheduler files: its noise schedules and what its UNet predicts."""
    schedulers = [pipeline.scheduler, pipeline.image_noising_scheduler]
    plain = [
        {key: config[key] for key in sorted(config) if key not in _NOTES} if config else None for config in schedulers
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _folders_hash(folders: list[Path]) -> str:
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix in TOKENIZER_SUFFIXES):
            data = path.read_bytes()
            found.update(f'{path.name} {len(data)} '.encode())
            found.update(data)
    return found.hexdigest()
