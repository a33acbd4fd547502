"""Seeded torch networks and pipelines that are small enough to be written and read in milliseconds."""

import functools

import diffusers
import transformers

from dreambooth_jax.storybook import vocabulary
from tests.support.torch_reference import randomise

UNET = {
    '_class_name': 'UNet2DConditionModel',
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 4,
    'attention_head_dim': 16,
    'block_out_channels': [16, 32],
    'cross_attention_dim': 32,
    'cross_attention_norm': 'group_norm',
    'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
    'encoder_hid_dim': 24,
    'encoder_hid_dim_type': 'text_proj',
    'in_channels': 3,
    'layers_per_block': 1,
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'norm_num_groups': 8,
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
    'sample_size': 8,
    'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
}
SUPER_RESOLUTION_UNET = {
    **UNET,
    'in_channels': 6,
    'class_embed_type': 'timestep',
    'resnet_skip_time_act': True,
    'time_embedding_act_fn': 'gelu',
    'sample_size': 16,
}
TEXT_ENCODER = {
    'd_ff': 32,
    'd_kv': 8,
    'd_model': 24,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 3,
    'num_layers': 2,
    'vocab_size': len(vocabulary.pieces()),
}
SCHEDULER = {
    '_class_name': 'DDPMScheduler',
    'beta_schedule': 'squaredcos_cap_v2',
    'thresholding': True,
    'variance_type': 'learned_range',
}
NOISING_SCHEDULER = {'_class_name': 'DDPMScheduler', 'beta_schedule': 'squaredcos_cap_v2'}


@functools.cache
def torch_unet(super_resolution: bool = False):
    config = SUPER_RESOLUTION_UNET if super_resolution else UNET
    return randomise(diffusers.UNet2DConditionModel.from_config(config), seed=1 + super_resolution)


@functools.cache
def torch_text_encoder():
    return randomise(transformers.T5EncoderModel(transformers.T5Config(**TEXT_ENCODER)), seed=3)


def torch_pipeline(tokenizer_folder, super_resolution: bool = False):
    """diffusers' own pipeline, with random weights and Storybook's tokenizer."""
    parts = dict(
        tokenizer=transformers.T5Tokenizer.from_pretrained(tokenizer_folder),
        text_encoder=torch_text_encoder(),
        unet=torch_unet(super_resolution),
        scheduler=diffusers.DDPMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    if not super_resolution:
        return diffusers.IFPipeline(**parts)
    noising = diffusers.DDPMScheduler.from_config(NOISING_SCHEDULER)
    return diffusers.IFSuperResolutionPipeline(image_noising_scheduler=noising, **parts)
