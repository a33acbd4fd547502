"""Reads models of every family: the readers of weights/folders.py, given what the families know."""

from typing import Any

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.pipeline import Pipeline


def read_pipeline(name: str, **options: Any) -> Pipeline:
    """Reads a pipeline from a folder, a single file or the hub; arguments and errors of folders.read_pipeline."""
    return folders.read_pipeline(name, layouts=ORIGINALS, **options)


def read_second_stage(name: str, base: Pipeline, **options: Any) -> Pipeline:
    """Reads a second stage for `base`; arguments and errors of folders.read_second_stage."""
    return folders.read_second_stage(name, base, layouts=ORIGINALS, **options)
