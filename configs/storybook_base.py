"""Pretraining of Storybook's base stage from scratch: T5 encoder and 32 px pixel UNet in DeepFloyd IF's layout.

Expected result: images of all 15 classes in all contexts, as the captions say.
Measured: the shipped weights were trained on 186,000 images, in three runs one after the other, which
storybook/pretrained/README.md names. This file describes one run of about the same length (192,000 images), which was
not tried in this form. Scores of the shipped weights: experiments/storybook_base. Two CPU cores that do nothing else
train on about 31 images/s: 100 minutes.
Command: python -m dreambooth_jax.pretrain --config=configs/storybook_base.py --workdir=runs/storybook_base
"""

from dreambooth_jax.config import PretrainConfig, to_config_dict
from dreambooth_jax.storybook import vocabulary

TEXT_WIDTH = 128


def get_config():
    config = to_config_dict(PretrainConfig())
    config.stage = 'base'
    config.text_encoder = dict(
        vocab_size=len(vocabulary.pieces()),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj='gated-gelu',
    )
    # As deep-floyd/IF-I-M, but narrower. cross_attention_dim must be a multiple of 32, the number of groups in the norm
    # of the text states.
    config.unet = dict(
        sample_size=32,
        in_channels=3,
        out_channels=6,  # prediction and learned variance
        block_out_channels=(32, 64, 128, 192),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=('ResnetDownsampleBlock2D',) * 2 + ('SimpleCrossAttnDownBlock2D',) * 2,
        mid_block_type='UNetMidBlock2DSimpleCrossAttn',
        up_block_types=('SimpleCrossAttnUpBlock2D',) * 2 + ('ResnetUpsampleBlock2D',) * 2,
        attention_head_dim=32,
        cross_attention_dim=128,
        cross_attention_norm='group_norm',
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type='text_proj',
        addition_embed_type='text',
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift='scale_shift',
        act_fn='silu',
    )
    config.scheduler = dict(
        _class_name='DDPMScheduler',
        beta_schedule='squaredcos_cap_v2',
        prediction_type='v_prediction',
        variance_type='learned_range',
        timestep_spacing='trailing',  # so that sampling starts at pure noise, even with few steps
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    config.batch_size = 32
    config.steps = 6000
    config.learning_rate = 8e-4
    config.warmup_steps = 200
    config.ema_decay = 0.998
    config.passes = 1
    config.checkpoint.every = 250
    config.samples.every = 500
    config.samples.num_images = 6
    config.samples.guidance_scale = 4.0
    config.samples.prompts = (
        'a dog in the snow',
        'a red cat wearing a santa hat',
        'a shiny teapot on the beach',
        'a painting of a vase in the style of Vincent van Gogh',
    )
    return config
