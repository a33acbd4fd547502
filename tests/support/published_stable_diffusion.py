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

# Published name, where it comes from, and its published shape.
NAMES = {
    'sd1': """
        model.diffusion_model.time_embed.2.weight = unet.time_embedding.linear_2.weight 1280 1280
        model.diffusion_model.input_blocks.0.0.weight = unet.conv_in.weight 320 4 3 3
        model.diffusion_model.input_blocks.1.0.in_layers.2.weight \
            = unet.down_blocks.0.resnets.0.conv1.weight 320 320 3 3
        model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight \
            = unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight 320 320
        model.diffusion_model.input_blocks.3.0.op.weight = unet.down_blocks.0.downsamplers.0.conv.weight 320 320 3 3
        model.diffusion_model.input_blocks.4.0.skip_connection.weight \
            = unet.down_blocks.1.resnets.0.conv_shortcut.weight 640 320 1 1
        model.diffusion_model.input_blocks.8.1.proj_in.weight \
            = unet.down_blocks.2.attentions.1.proj_in.weight 1280 1280 1 1
        model.diffusion_model.input_blocks.11.0.out_layers.3.bias = unet.down_blocks.3.resnets.1.conv2.bias 1280
        model.diffusion_model.middle_block.1.norm.weight = unet.mid_block.attentions.0.norm.weight 1280
        model.diffusion_model.middle_block.2.emb_layers.1.weight \
            = unet.mid_block.resnets.1.time_emb_proj.weight 1280 1280
        model.diffusion_model.output_blocks.2.1.conv.weight = unet.up_blocks.0.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.5.2.conv.weight = unet.up_blocks.1.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.9.1.transformer_blocks.0.attn2.to_k.weight \
            = unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k.weight 320 768
        model.diffusion_model.output_blocks.11.0.skip_connection.weight \
            = unet.up_blocks.3.resnets.2.conv_shortcut.weight 320 640 1 1
        model.diffusion_model.out.0.weight = unet.conv_norm_out.weight 320
        model.diffusion_model.out.2.bias = unet.conv_out.bias 4
        first_stage_model.encoder.down.0.downsample.conv.weight \
            = vae.encoder.down_blocks.0.downsamplers.0.conv.weight 128 128 3 3
        first_stage_model.encoder.down.1.block.0.nin_shortcut.weight \
            = vae.encoder.down_blocks.1.resnets.0.conv_shortcut.weight 256 128 1 1
        first_stage_model.encoder.mid.attn_1.q.weight = vae.encoder.mid_block.attentions.0.to_q.weight 512 512 1 1
        first_stage_model.decoder.mid.attn_1.proj_out.bias = vae.decoder.mid_block.attentions.0.to_out.0.bias 512
        first_stage_model.decoder.mid.block_2.conv1.weight = vae.decoder.mid_block.resnets.1.conv1.weight 512 512 3 3
        first_stage_model.decoder.up.3.block.0.norm1.weight = vae.decoder.up_blocks.0.resnets.0.norm1.weight 512
        first_stage_model.decoder.up.1.upsample.conv.weight \
            = vae.decoder.up_blocks.2.upsamplers.0.conv.weight 256 256 3 3
        first_stage_model.decoder.up.0.block.0.nin_shortcut.weight \
            = vae.decoder.up_blocks.3.resnets.0.conv_shortcut.weight 128 256 1 1
        first_stage_model.encoder.norm_out.weight = vae.encoder.conv_norm_out.weight 512
        first_stage_model.quant_conv.weight = vae.quant_conv.weight 8 8 1 1
        cond_stage_model.transformer.text_model.embeddings.position_embedding.weight \
            = text_encoder.text_model.embeddings.position_embedding.weight 77 768
        cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight \
            = text_encoder.text_model.encoder.layers.11.self_attn.q_proj.weight 768 768
    """,
    'sd2': """
        model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight \
            = unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight 320 1024
        model.diffusion_model.input_blocks.1.1.proj_in.weight = unet.down_blocks.0.attentions.0.proj_in.weight 320 320
        model.diffusion_model.output_blocks.8.2.conv.bias = unet.up_blocks.2.upsamplers.0.conv.bias 640
        first_stage_model.decoder.up.2.block.2.conv2.weight = vae.decoder.up_blocks.1.resnets.2.conv2.weight 512 512 3 3
        cond_stage_model.model.token_embedding.weight \
            = text_encoder.text_model.embeddings.token_embedding.weight 49408 1024
        cond_stage_model.model.positional_embedding \
            = text_encoder.text_model.embeddings.position_embedding.weight 77 1024
        cond_stage_model.model.ln_final.bias = text_encoder.text_model.final_layer_norm.bias 1024
        cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight \
            = text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight 3072 1024
        cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias \
            = text_encoder.text_model.encoder.layers.3.self_attn.q_proj.bias 3072
        cond_stage_model.model.transformer.resblocks.5.attn.out_proj.weight \
            = text_encoder.text_model.encoder.layers.5.self_attn.out_proj.weight 1024 1024
        cond_stage_model.model.transformer.resblocks.22.ln_1.weight \
            = text_encoder.text_model.encoder.layers.22.layer_norm1.weight 1024
        cond_stage_model.model.transformer.resblocks.22.mlp.c_fc.weight \
            = text_encoder.text_model.encoder.layers.22.mlp.fc1.weight 4096 1024
    """,
    'sdxl': """
        model.diffusion_model.label_emb.0.0.weight = unet.add_embedding.linear_1.weight 1280 2816
        model.diffusion_model.label_emb.0.2.weight = unet.add_embedding.linear_2.weight 1280 1280
        model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight \
            = unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight 640 2048
        model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight \
            = unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight 10240 1280
        model.diffusion_model.middle_block.1.transformer_blocks.9.norm3.weight \
            = unet.mid_block.attentions.0.transformer_blocks.9.norm3.weight 1280
        model.diffusion_model.output_blocks.2.2.conv.weight = unet.up_blocks.0.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.3.1.transformer_blocks.1.attn1.to_out.0.bias \
            = unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0.bias 640
        model.diffusion_model.output_blocks.8.0.in_layers.0.weight = unet.up_blocks.2.resnets.2.norm1.weight 640
        conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc2.weight \
            = text_encoder.text_model.encoder.layers.11.mlp.fc2.weight 768 3072
        conditioner.embedders.1.model.text_projection = text_encoder_2.text_projection.weight 1280 1280
        conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias \
            = text_encoder_2.text_model.encoder.layers.31.mlp.fc2.bias 1280
        conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight \
            = text_encoder_2.text_model.encoder.layers.9.self_attn.q_proj.weight 3840 1280
    """,
    'upscaler': """
        model.diffusion_model.label_emb.weight = unet.class_embedding.weight 1000 1024
        model.diffusion_model.input_blocks.0.0.weight = unet.conv_in.weight 256 7 3 3
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight \
            = unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight 512 1024
        model.diffusion_model.input_blocks.10.0.skip_connection.bias \
            = unet.down_blocks.3.resnets.0.conv_shortcut.bias 1024
        model.diffusion_model.output_blocks.8.2.conv.weight = unet.up_blocks.2.upsamplers.0.conv.weight 512 512 3 3
        first_stage_model.decoder.up.2.block.0.norm1.weight = vae.decoder.up_blocks.0.resnets.0.norm1.weight 512
        cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight \
            = text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight 3072 1024
    """,
}
