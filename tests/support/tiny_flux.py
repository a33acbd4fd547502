"""Tiny random pipelines of FLUX.1 in folders that diffusers wrote; made once a session."""

import functools
import tempfile
from pathlib import Path

import diffusers
from transformers import CLIPTextModel, T5EncoderModel

from tests.support import tiny_clip, tiny_flow
from tests.support.tiny_flow import randomise

SIZE = 24  # side of its images in pixels: 6 x 6 tokens
_ROOT = tempfile.TemporaryDirectory(prefix='tiny_flux_')


@functools.cache
def torch_pipeline(schnell: bool = False) -> diffusers.FluxPipeline:
    """diffusers' own pipeline, with guidance embedded as in dev, or without it and a shift, as schnell."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=not schnell,
        axes_dims_rope=(4, 6, 6),
    )
    made = diffusers.FluxPipeline(
        transformer=randomise(transformer, 0),
        text_encoder=randomise(CLIPTextModel(tiny_flow.clip_config('quick_gelu')), 1),
        text_encoder_2=randomise(T5EncoderModel(tiny_flow.t5_config(24)), 2),
        vae=randomise(tiny_flow.autoencoder(0.3611, 0.1159), 3),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell
        ),
        tokenizer=tiny_clip.tokenizer(),
        tokenizer_2=tiny_flow.t5_tokenizer(),
    )
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def folder(schnell: bool = False) -> Path:
    """The folder; a test must not change it."""
    path = Path(_ROOT.name) / ('schnell' if schnell else 'dev')
    torch_pipeline(schnell).save_pretrained(path)
    return path
