"""A tiny random pipeline of FLUX.2 Klein in a folder that diffusers wrote; made once a session.

Everything is random, the gates, the modulation and the autoencoder's statistics too, so that nothing is without effect.
"""

import functools
import tempfile
from pathlib import Path

import diffusers
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.support import tiny_qwen

SIZE = 32  # side of its images in pixels: 8 x 8 tokens
LAYERS = (1, 2, 3)  # what Klein's 9, 18 and 27 are here
_ROOT = tempfile.TemporaryDirectory(prefix='tiny_klein_')


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives matrices the scale of their input, and everything else values near what it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim >= 2:
                value.copy_(noise if 'embed_tokens' in name else noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + ('norm' in name and name.endswith('weight')))
        for name, value in module.named_buffers():
            if name.endswith('running_mean'):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            elif name.endswith('running_var'):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module.eval()


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
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=320,
            max_position_embeddings=512,
            rope_theta=1000000,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
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
