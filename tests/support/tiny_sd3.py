"""A tiny random pipeline of Stable Diffusion 3.5 medium in a folder that diffusers wrote; made once a session."""

import functools
import tempfile
from pathlib import Path

import diffusers
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from tests.support import tiny_clip, tiny_flow
from tests.support.tiny_flow import randomise

SIZE = 24  # side of its images in pixels: 6 x 6 tokens, of which its table has 8 x 8
_ROOT = tempfile.TemporaryDirectory(prefix='tiny_sd3_')


@functools.cache
def torch_pipeline() -> diffusers.StableDiffusion3Pipeline:
    """diffusers' own pipeline."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=40,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        qk_norm='rms_norm',
        dual_attention_layers=(0,),
    )
    made = diffusers.StableDiffusion3Pipeline(
        transformer=randomise(transformer, 0),
        text_encoder=randomise(CLIPTextModelWithProjection(tiny_flow.clip_config('quick_gelu')), 1),
        text_encoder_2=randomise(CLIPTextModelWithProjection(tiny_flow.clip_config('gelu')), 2),
        text_encoder_3=randomise(T5EncoderModel(tiny_flow.t5_config(40)), 3),
        vae=randomise(tiny_flow.autoencoder(1.5305, 0.0609), 4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tiny_clip.tokenizer(),
        tokenizer_2=tiny_clip.tokenizer('!'),
        tokenizer_3=tiny_flow.t5_tokenizer(),
    )
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def folder() -> Path:
    """The folder; a test must not change it."""
    path = Path(_ROOT.name) / 'sd3'
    torch_pipeline().save_pretrained(path)
    return path
