"""Runs of the smallest pipelines as a plan sees them: their settings, photos and stages, before anything is trained."""

import dataclasses
import functools

import jax
import numpy as np

from dreambooth_jax.config import DreamBoothConfig, resolve
from dreambooth_jax.data.table import Examples
from dreambooth_jax.finetune import planned_stage
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training.placement import Placement, make_placement
from tests.support import smallest_pipelines

DATA = {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
QUICK = {'steps': 1, 'guidance_scale': 1.0, 'sampler': 'ddim'}


@functools.cache
def _model(kind, frozen_dtype):
    return Cascade.load(smallest_pipelines.folder(kind), frozen_dtype=frozen_dtype)


def cascade(kind, frozen_dtype=None):
    """A cascade that has placed nothing yet; what it reads is read once a session."""
    model = _model(kind, frozen_dtype)
    return Cascade(model.base, model.super_resolution)


def settings(**given):
    prior = {'num_images': 3, **QUICK, **given.pop('prior', {})}
    samples = {**QUICK, 'num_images': 1, **given.pop('samples', {})}
    base = {'steps': 4, **given.pop('base', {})}
    return resolve(DreamBoothConfig, {'data': DATA, 'prior': prior, 'samples': samples, 'base': base, **given})


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What scores a run, as a plan sees it: one encoder of images, of 4 KiB."""

    options: SamplingOptions
    most_images: int
    placement: Placement

    def programs(self):
        params = self.placement.placed_shapes({'kernel': jax.ShapeDtypeStruct((256, 4), np.float32)})
        images = self.placement.split_shapes(jax.ShapeDtypeStruct((8, 256), np.float32))
        return {'dino image': (jax.jit(lambda params, images: images @ params['kernel']), params, images)}


def evaluated(config):
    options = dataclasses.replace(SamplingOptions.of_samples(config.samples), super_resolution=False)
    return Evaluated(options, config.evaluation.class_images, make_placement(config.parallel.mode))


def photos(cascade, config, masks=False):
    """Instance images of both stages: three of one size."""
    rng, found = np.random.default_rng(0), {}
    for name, side in ((BASE, cascade.base_size), (SUPER_RESOLUTION, cascade.super_resolution_size)):
        images = rng.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
        mask = np.full((3, side, side, 1), 255, np.uint8) if masks else None
        found[name] = [Examples(images, ['a sks dog'] * 3, mask, ['a dog'] * 3)]
    return found


def planned(cascade, config, masks=False):
    parallel = config.parallel
    placement = make_placement(parallel.mode, fsdp_min_bytes=parallel.fsdp_min_bytes)
    instance = photos(cascade, config, masks)
    stages = {
        name: planned_stage.plan_stage(config, name, cascade, instance[name], placement)
        for name in (BASE, SUPER_RESOLUTION)
        if getattr(config, name).steps
    }
    return placement, stages
