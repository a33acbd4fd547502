"""A tiny random pipeline of FLUX.2 Klein in a folder that diffusers wrote; made once a session."""

import functools
import tempfile
from pathlib import Path

import diffusers
from transformers import Qwen3ForCausalLM

from tests.support import tiny_qwen
from tests.support.tiny_flow import qwen_config, randomise

SIZE = 32  # side of its images in pixels: 8 x 8 tokens
LAYERS = (1, 2, 3)  # what Klein's 9, 18 and 27 are here
_ROOT = tempfile.TemporaryDirectory(prefix='tiny_klein_')


@functools.cache
def torch_pipeline() -> diffusers.Flux2KleinPipeline:
    """diffusers' own pipeline."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    text_encoder = Qwen3ForCausalLM(qwen_config())
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    made = diffusers.Flux2KleinPipeline(
        transformer=randomise(transformer, 0),
        text_encoder=randomise(text_encoder, 1),
        vae=randomise(vae, 2),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        tokenizer=tiny_qwen.tokenizer(),
        is_distilled=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def folder() -> Path:
    """The folder; a test must not change it."""
    path = Path(_ROOT.name) / 'klein'
    torch_pipeline().save_pretrained(path)
    return path
