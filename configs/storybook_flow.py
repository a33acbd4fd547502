"""Pretraining of Storybook's flow model from scratch: a transformer on latents of 128 px images, in Z-Image's layout.

First the autoencoder, then the transformer on its latents:
  python -m dreambooth_jax.pretrain --config=configs/storybook_flow.py:autoencoder --workdir=runs/storybook_flow_vae
  python -m dreambooth_jax.pretrain --config=configs/storybook_flow.py --workdir=runs/storybook_flow

Expected result: images of all 15 classes in all contexts, as the captions say, at 128 px in one stage.
Measured: the shipped model (storybook/pretrained_flow/README.md says how it was made) in experiments/storybook_flow.

The text encoder is the token embedding of a Qwen3, with random values that never change: Z-Image reads the states
before the last layer, and here there is one. The transformer's own layers for the text learn what words mean.
"""

from dreambooth_jax.config import PretrainConfig, to_config_dict
from dreambooth_jax.storybook import vocabulary

SIZE = 128
CHANNELS, WIDTH, TEXT_WIDTH = 16, 192, 128


def get_config(stage: str = 'base'):
    config = to_config_dict(PretrainConfig())
    config.stage = stage
    config.text_encoder = dict(
        model_type='qwen3',
        architectures=['Qwen3Model'],
        vocab_size=len(vocabulary.qwen_vocabulary()[0]),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=1.0,  # of the embedding, which is read as it is
    )
    config.vae = dict(
        sample_size=SIZE,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        scaling_factor=1.0,  # measured when the autoencoder has trained, and so is shift_factor
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    config.transformer = dict(
        _class_name='ZImageTransformer2DModel',
        in_channels=CHANNELS,
        dim=WIDTH,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=(16, 24, 24),
        axes_lens=(1024, 64, 64),
    )
    config.scheduler = dict(
        _class_name='FlowMatchEulerDiscreteScheduler', num_train_timesteps=1000, shift=1.5, use_dynamic_shifting=False
    )
    config.samples.sampler = 'euler'
    if stage == 'autoencoder':
        config.batch_size = 16
        config.crop = 64  # a convolutional network learns from crops too, and sees more images for the same work
        config.steps = 4000
        config.learning_rate = 1e-3
        config.warmup_steps = 100
        config.pool_size = 1024
        config.passes = 2
        return config
    config.init = 'runs/storybook_flow_vae/model'
    config.batch_size = 32
    config.steps = 7400
    config.learning_rate = 1e-3
    config.warmup_steps = 300
    config.ema_decay = 0.999
    config.time_distribution = 'logit_normal'
    config.pool_size = 4096
    config.passes = 8
    config.checkpoint.every = 500
    config.samples.every = 2000
    config.samples.num_images = 6
    config.samples.guidance_scale = 4.0
    config.samples.prompts = (
        'a dog in the snow',
        'a red cat wearing a santa hat',
        'a shiny teapot on the beach',
        'a painting of a vase in the style of Vincent van Gogh',
    )
    return config
