"""Tiny random pipelines of both stages (8 and 16 px) in our own types; written once a session."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from dreambooth_jax.models import functional
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.pipeline import Network, Pipeline, abstract_network
from tests.support import made_pipelines
from tests.support import tiny_networks as tiny

_ROOT = tempfile.TemporaryDirectory(prefix='tiny_pipelines_')


def random_network(component: str, config, seed: int) -> Network:
    """Returns a network with random parameters: scales of norms are near one and all others near zero."""
    apply, shapes = functional.split(abstract_network(component, config))
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(float(name.endswith('.scale')), 0.05, shape.shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return Network(config, apply, params)


@functools.cache
def tokenizer_folder() -> Path:
    folder = Path(_ROOT.name) / 'tokenizer'
    vocabulary.write_tokenizer(folder)
    return folder


@functools.cache
def base(seed: int = 0) -> Pipeline:
    return made_pipelines.pipeline(
        'IFPipeline',
        scheduler=tiny.SCHEDULER,
        unet=random_network('unet', tiny.UNET, 3 * seed),
        text_encoder=random_network('text_encoder', tiny.TEXT_ENCODER, 3 * seed + 1),
        tokenizer=tokenizer_folder(),
    )


@functools.cache
def super_resolution(seed: int = 0) -> Pipeline:
    """The second stage, which has no text encoder of its own, like Storybook's."""
    unet = random_network('unet', tiny.SUPER_RESOLUTION_UNET, 3 * seed + 2)
    return made_pipelines.pipeline(
        'IFSuperResolutionPipeline',
        scheduler=tiny.SCHEDULER,
        unet=unet,
        image_noising_scheduler=tiny.NOISING_SCHEDULER,
    )


@functools.cache
def folder() -> Path:
    """The folder of both stages, written by write_pipeline; a test must not change it."""
    return folders.write_pipeline(base(), Path(_ROOT.name) / 'model', super_resolution=super_resolution())
