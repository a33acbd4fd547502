"""Pretraining of Storybook's super-resolution stage, 32 -> 128 px, in the layout of DeepFloyd IF's second stage.

Expected result: a 32 px image is enlarged to 128 px, sharply and, at low noise levels, faithfully.
Measured: the shipped weights were trained on 120,000 crops in four runs (storybook/pretrained/README.md). Outlines are
sharp, surfaces with much detail look brushed, and the images are nearer to the truth than bilinear upsampling. This
file describes one run of 64,000 crops, which was not tried. Two CPU cores train on about 28 crops/s: 40 minutes.
Command: python -m dreambooth_jax.pretrain --config=configs/storybook_super_resolution.py
           --workdir=runs/storybook_super_resolution      (after storybook_base.py, whose text encoder it uses)
"""

from dreambooth_jax.config import PretrainConfig, to_config_dict


def get_config():
    config = to_config_dict(PretrainConfig())
    config.stage = 'super_resolution'
    config.base = 'runs/storybook_base/model'
    config.batch_size = 16
    config.crop = 64  # a convolutional network learns detail from crops too, and they cost less
    # As deep-floyd/IF-II-M, but narrower, and with attention at the lowest resolution only.
    config.unet = dict(
        sample_size=128,
        in_channels=6,  # noisy target and upsampled low-resolution image
        out_channels=6,  # prediction and learned variance
        block_out_channels=(16, 24, 48, 96),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=('ResnetDownsampleBlock2D',) * 3 + ('SimpleCrossAttnDownBlock2D',),
        mid_block_type='UNetMidBlock2DSimpleCrossAttn',
        up_block_types=('SimpleCrossAttnUpBlock2D',) + ('ResnetUpsampleBlock2D',) * 3,
        attention_head_dim=32,
        cross_attention_dim=128,
        cross_attention_norm='group_norm',
        encoder_hid_dim=128,  # the base stage's d_model
        encoder_hid_dim_type='text_proj',
        addition_embed_type='text',
        addition_embed_type_num_heads=4,
        class_embed_type='timestep',  # the noise level
        resnet_time_scale_shift='scale_shift',
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
        mid_block_scale_factor=2**0.5,
        time_embedding_act_fn='silu',
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
        sample_max_value=1.0,
    )
    config.image_noising_scheduler = dict(
        _class_name='DDPMScheduler', beta_schedule='squaredcos_cap_v2', prediction_type='epsilon'
    )
    config.noise_level = (0, 250)
    config.steps = 4000
    config.learning_rate = 1e-3
    config.warmup_steps = 50
    config.ema_decay = 0.998
    config.pool_size = 1024
    config.passes = 1
    config.checkpoint.every = 250
    return config
