"""A tiny random pipeline of Z-Image in a folder that diffusers wrote; made once a session."""

import functools
import tempfile
from pathlib import Path

import diffusers
from transformers import Qwen3Model

from tests.support import tiny_qwen
from tests.support.tiny_flow import autoencoder, qwen_config, randomise

SIZE = 24  # side of its images in pixels: 6 x 6 tokens, which are padded to 64
_ROOT = tempfile.TemporaryDirectory(prefix='tiny_z_image_')


@functools.cache
def torch_pipeline() -> diffusers.ZImagePipeline:
    """diffusers' own pipeline."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    made = diffusers.ZImagePipeline(
        transformer=randomise(transformer, 0),
        text_encoder=randomise(Qwen3Model(qwen_config()), 1),
        vae=randomise(autoencoder(0.3611, 0.1159), 2),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        tokenizer=tiny_qwen.tokenizer(),
    )
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def folder() -> Path:
    """The folder; a test must not change it."""
    path = Path(_ROOT.name) / 'z_image'
    torch_pipeline().save_pretrained(path)
    return path
