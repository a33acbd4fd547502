"""Published configurations and parameter counts of the Stable Diffusion families."""

CLIP_L = {
    'architectures': ['CLIPTextModel'],
    'bos_token_id': 0,
    'eos_token_id': 2,
    'hidden_act': 'quick_gelu',
    'hidden_size': 768,
    'intermediate_size': 3072,
    'layer_norm_eps': 1e-05,
    'max_position_embeddings': 77,
    'num_attention_heads': 12,
    'num_hidden_layers': 12,
    'pad_token_id': 1,
    'vocab_size': 49408,
}
CLIP_H = {
    **CLIP_L,
    'hidden_act': 'gelu',
    'hidden_size': 1024,
    'intermediate_size': 4096,
    'num_attention_heads': 16,
    'num_hidden_layers': 23,
}
CLIP_BIG_G = {
    **CLIP_L,
    'architectures': ['CLIPTextModelWithProjection'],
    'hidden_act': 'gelu',
    'hidden_size': 1280,
    'intermediate_size': 5120,
    'num_attention_heads': 20,
    'num_hidden_layers': 32,
    'projection_dim': 1280,
}
VAE = {
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'in_channels': 3,
    'out_channels': 3,
    'latent_channels': 4,
    'layers_per_block': 2,
    'sample_size': 512,
}
UNET = {
    'attention_head_dim': 8,
    'block_out_channels': [320, 640, 1280, 1280],
    'cross_attention_dim': 768,
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    'in_channels': 4,
    'out_channels': 4,
    'layers_per_block': 2,
    'sample_size': 64,
}
UNET_2 = {
    **UNET,
    'attention_head_dim': [5, 10, 20, 20],
    'cross_attention_dim': 1024,
    'use_linear_projection': True,
}
SCHEDULER = {
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'set_alpha_to_one': False,
    'skip_prk_steps': True,
    'steps_offset': 1,
}
UPSCALER_BETAS = {'beta_start': 0.0001, 'beta_end': 0.02}
INDEX = {
    'text_encoder': ['transformers', 'CLIPTextModel'],
    'tokenizer': ['transformers', 'CLIPTokenizer'],
    'unet': ['diffusers', 'UNet2DConditionModel'],
    'vae': ['diffusers', 'AutoencoderKL'],
}
CONFIGS = {
    'sd1': {
        'model_index': {
            **INDEX,
            '_class_name': 'StableDiffusionPipeline',
            'scheduler': ['diffusers', 'PNDMScheduler'],
        },
        'unet': UNET,
        'vae': VAE,
        'text_encoder': CLIP_L,
        'scheduler': {**SCHEDULER, '_class_name': 'PNDMScheduler', 'prediction_type': 'epsilon'},
    },
    'sd2': {  # 2.1 for 768 pixels
        'model_index': {
            **INDEX,
            '_class_name': 'StableDiffusionPipeline',
            'scheduler': ['diffusers', 'DDIMScheduler'],
        },
        'unet': {**UNET_2, 'sample_size': 96, 'upcast_attention': True},
        'vae': {**VAE, 'sample_size': 768},
        'text_encoder': CLIP_H,
        'scheduler': {**SCHEDULER, '_class_name': 'DDIMScheduler', 'prediction_type': 'v_prediction'},
    },
    'sdxl': {
        'model_index': {
            **INDEX,
            '_class_name': 'StableDiffusionXLPipeline',
            'force_zeros_for_empty_prompt': True,
            'scheduler': ['diffusers', 'EulerDiscreteScheduler'],
            'text_encoder_2': ['transformers', 'CLIPTextModelWithProjection'],
            'tokenizer_2': ['transformers', 'CLIPTokenizer'],
        },
        'unet': {
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': 256,
            'attention_head_dim': [5, 10, 20],
            'block_out_channels': [320, 640, 1280],
            'cross_attention_dim': 2048,
            'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
            'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
            'in_channels': 4,
            'out_channels': 4,
            'layers_per_block': 2,
            'projection_class_embeddings_input_dim': 2816,
            'sample_size': 128,
            'transformer_layers_per_block': [1, 2, 10],
            'use_linear_projection': True,
        },
        'vae': {**VAE, 'sample_size': 1024, 'scaling_factor': 0.13025, 'force_upcast': True},
        'text_encoder': CLIP_L,
        'text_encoder_2': CLIP_BIG_G,
        'scheduler': {
            **SCHEDULER,
            '_class_name': 'EulerDiscreteScheduler',
            'prediction_type': 'epsilon',
            'timestep_spacing': 'leading',
        },
    },
    'upscaler': {
        'model_index': {
            **INDEX,
            '_class_name': 'StableDiffusionUpscalePipeline',
            'low_res_scheduler': ['diffusers', 'DDPMScheduler'],
            'max_noise_level': 350,
            'scheduler': ['diffusers', 'DDIMScheduler'],
        },
        'unet': {
            **UNET_2,
            'attention_head_dim': 8,
            'block_out_channels': [256, 512, 512, 1024],
            'down_block_types': ['DownBlock2D'] + ['CrossAttnDownBlock2D'] * 3,
            'up_block_types': ['CrossAttnUpBlock2D'] * 3 + ['UpBlock2D'],
            'in_channels': 7,
            'num_class_embeds': 1000,
            'only_cross_attention': [True, True, True, False],
            'sample_size': 128,
        },
        'vae': {
            **VAE,
            'block_out_channels': [128, 256, 512],
            'down_block_types': ['DownEncoderBlock2D'] * 3,
            'up_block_types': ['UpDecoderBlock2D'] * 3,
            'sample_size': 256,
            'scaling_factor': 0.08333,
        },
        'text_encoder': CLIP_H,
        'scheduler': {
            **SCHEDULER,
            **UPSCALER_BETAS,
            '_class_name': 'DDIMScheduler',
            'prediction_type': 'v_prediction',
        },
        'low_res_scheduler': {
            **UPSCALER_BETAS,
            '_class_name': 'DDPMScheduler',
            'beta_schedule': 'scaled_linear',
            'clip_sample': True,
            'num_train_timesteps': 1000,
            'prediction_type': 'epsilon',
            'variance_type': 'fixed_small',
        },
    },
}
PARAMETERS = {
    'sd1': 859_520_964 + 83_653_863 + 123_060_480,
    'sd2': 865_910_724 + 83_653_863 + 340_387_840,
    'sdxl': 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840,
    'upscaler': 473_398_020 + 55_325_927 + 340_387_840,
}
