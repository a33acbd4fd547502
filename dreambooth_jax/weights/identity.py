"""Models known by what they are, not by their name or place: hashes of weights, noise schedules and tokenizers."""

import hashlib
import json
from pathlib import Path

from dreambooth_jax.weights.hub import TOKENIZER_SUFFIXES
from dreambooth_jax.weights.pipeline import Pipeline

_NOTES = ('_diffusers_version', '_name_or_path')  # of the program that wrote a file, and where it found the model


def identity(pipeline: Pipeline) -> dict[str, str]:
    """sha256 of what a stage generates and learns with: 'weights', 'scheduler' and 'tokenizer', of those that it
    has."""
    found = {'weights': pipeline.weights_hash, 'scheduler': scheduler_hash(pipeline)}
    if pipeline.tokenizer_folders:
        found['tokenizer'] = _folders_hash(list(pipeline.tokenizer_folders.values()))
    return found


def scheduler_hash(pipeline: Pipeline) -> str:
    """sha256 of a stage's noise schedules, with what its UNet predicts: the contents of its scheduler files."""
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
