"""Tiny random pipelines of diffusers for Stable Diffusion and SDXL, without a VAE, into which LoRA files are loaded."""

import functools

import diffusers
import transformers

from tests.support.torch_reference import randomise

UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=8,
    layers_per_block=2,
)
# SDXL has three blocks, of which the first has no attention.
XL_UNET = UNET | dict(
    block_out_channels=(16, 16, 32),
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
    up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
    transformer_layers_per_block=(1, 1, 2),
    use_linear_projection=True,
    cross_attention_dim=32,
    addition_embed_type='text_time',
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 16,
)
CLIP = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=8,
    projection_dim=16,
    bos_token_id=0,
    eos_token_id=2,
)


@functools.cache
def networks(sdxl: bool = False):
    """{component: torch module}; a test must not change them."""
    found = {'unet': diffusers.UNet2DConditionModel(**(XL_UNET if sdxl else UNET))}
    config = transformers.CLIPTextConfig(**CLIP)
    found['text_encoder'] = transformers.CLIPTextModel(config)
    if sdxl:
        found['text_encoder_2'] = transformers.CLIPTextModelWithProjection(config)
    return {name: randomise(module, seed, std=0.2) for seed, (name, module) in enumerate(found.items())}


def pipeline(networks):
    """diffusers' own pipeline with these networks."""
    sdxl = 'text_encoder_2' in networks
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    parts = dict(networks, vae=None, tokenizer=None, scheduler=scheduler, feature_extractor=None)
    if sdxl:
        return diffusers.StableDiffusionXLPipeline(**parts, tokenizer_2=None, add_watermarker=False)
    return diffusers.StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
