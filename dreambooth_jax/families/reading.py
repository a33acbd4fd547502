"""Reads models of every family: folders, single files and models of the hub."""

import os

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.pipeline import Pipeline


def read_pipeline(name: str | os.PathLike, **options) -> Pipeline:
    """Reads one stage of a model; arguments and errors are those of weights.folders.read_pipeline."""
    return folders.read_pipeline(name, families=FAMILIES, **options)


def read_second_stage(name: str | os.PathLike, base: Pipeline, **options) -> Pipeline:
    """Reads a second stage; arguments and errors are those of weights.folders.read_second_stage."""
    return folders.read_second_stage(name, base, families=FAMILIES, **options)
