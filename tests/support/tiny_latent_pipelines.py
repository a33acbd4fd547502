"""Tiny random pipelines of every Stable Diffusion family, in folders that diffusers wrote; made once a session."""

import functools
import tempfile
from pathlib import Path

import diffusers

from dreambooth_jax.generation.cascade import Cascade
from tests.support import tiny_clip, tiny_stable_diffusion

_ROOT = tempfile.TemporaryDirectory(prefix='tiny_latent_pipelines_')
SCHEDULER = tiny_stable_diffusion.scheduler()
FAMILIES = tiny_stable_diffusion.FAMILIES


@functools.cache
def torch_pipeline(family: str) -> diffusers.DiffusionPipeline:
    """diffusers' own pipeline; sd1 and sdxl predict epsilon, sd2 and the upscaler predict v."""
    prediction = 'v_prediction' if family in ('sd2', 'upscaler') else 'epsilon'
    config = {**tiny_stable_diffusion.scheduler(prediction), 'steps_offset': 1, 'set_alpha_to_one': False}
    made = tiny_stable_diffusion.pipeline(family)
    made.register_modules(tokenizer=tiny_clip.tokenizer(), scheduler=diffusers.DDIMScheduler.from_config(config))
    if family == 'sdxl':
        made.register_modules(tokenizer_2=tiny_clip.tokenizer('!'))
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def folder(family: str) -> Path:
    """The folder of a family; a test must not change it."""
    path = Path(_ROOT.name) / family
    torch_pipeline(family).save_pretrained(path)
    return path


@functools.cache
def cascade(family: str) -> Cascade:
    """Our cascade of one stage. Tests that sample with the same steps and sampler share the compiled program."""
    return Cascade.load(folder(family))
