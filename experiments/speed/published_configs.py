"""Configurations of published models: their config.json and scheduler_config.json, without diffusers' defaults."""

SD_UNET = {
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
XL_UNET = {
    **SD_UNET,
    'addition_embed_type': 'text_time',
    'addition_time_embed_dim': 256,
    'attention_head_dim': [5, 10, 20],
    'block_out_channels': [320, 640, 1280],
    'cross_attention_dim': 2048,
    'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
    'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
    'projection_class_embeddings_input_dim': 2816,
    'sample_size': 128,
    'transformer_layers_per_block': [1, 2, 10],
    'use_linear_projection': True,
}
IF_UNET = {
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 64,
    'attention_head_dim': 64,
    'cross_attention_norm': 'group_norm',
    'encoder_hid_dim': 4096,
    'encoder_hid_dim_type': 'text_proj',
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
}
IF_XL_UNET = {
    **IF_UNET,
    'block_out_channels': [704, 1408, 2112, 2816],
    'cross_attention_dim': 2816,
    'down_block_types': ['ResnetDownsampleBlock2D'] + ['SimpleCrossAttnDownBlock2D'] * 3,
    'up_block_types': ['SimpleCrossAttnUpBlock2D'] * 3 + ['ResnetUpsampleBlock2D'],
    'in_channels': 3,
    'layers_per_block': 3,
    'sample_size': 64,
}
IF_II_L_UNET = {
    **IF_UNET,
    'block_out_channels': [160, 320, 640, 960, 1280],
    'class_embed_type': 'timestep',
    'cross_attention_dim': 1280,
    'down_block_types': ['ResnetDownsampleBlock2D'] * 3 + ['SimpleCrossAttnDownBlock2D'] * 2,
    'up_block_types': ['SimpleCrossAttnUpBlock2D'] * 2 + ['ResnetUpsampleBlock2D'] * 3,
    'in_channels': 6,
    'layers_per_block': [2, 2, 3, 5, 5],
    'mid_block_scale_factor': 1.4142271248762552,
    'resnet_out_scale_factor': 1.4142271248762552,
    'resnet_skip_time_act': True,
    'sample_size': 256,
    'time_embedding_act_fn': 'gelu',
    'time_embedding_dim': 1280,
}
CLIP_L = {
    'model_type': 'clip_text_model',
    'architectures': ['CLIPTextModel'],
    'hidden_act': 'quick_gelu',
    'hidden_size': 768,
    'intermediate_size': 3072,
    'max_position_embeddings': 77,
    'num_attention_heads': 12,
    'num_hidden_layers': 12,
    'vocab_size': 49408,
    'eos_token_id': 2,
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
T5_XXL = {
    'model_type': 't5',
    'd_ff': 10240,
    'd_kv': 64,
    'd_model': 4096,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 64,
    'num_layers': 24,
    'vocab_size': 32128,
}
VAE = {
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'latent_channels': 4,
    'layers_per_block': 2,
    'scaling_factor': 0.18215,
}
SD_SCHEDULER = {
    '_class_name': 'DDIMScheduler',
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'set_alpha_to_one': False,
    'steps_offset': 1,
}
IF_SCHEDULER = {
    '_class_name': 'DDPMScheduler',
    'beta_schedule': 'squaredcos_cap_v2',
    'dynamic_thresholding_ratio': 0.95,
    'sample_max_value': 1.5,
    'thresholding': True,
    'variance_type': 'learned_range',
}
IF_NOISING = {'_class_name': 'DDPMScheduler', 'beta_schedule': 'squaredcos_cap_v2'}

# Rectified flows; what diffusers' defaults give is written here too where a family reads it.
KLEIN_TRANSFORMER = {
    '_class_name': 'Flux2Transformer2DModel',
    'attention_head_dim': 128,
    'axes_dims_rope': [32, 32, 32, 32],
    'guidance_embeds': False,
    'in_channels': 128,
    'joint_attention_dim': 7680,
    'mlp_ratio': 3.0,
    'num_attention_heads': 24,
    'num_layers': 5,
    'num_single_layers': 20,
    'patch_size': 1,
    'rope_theta': 2000,
    'timestep_guidance_channels': 256,
}
KLEIN_VAE = {
    '_class_name': 'AutoencoderKLFlux2',
    'batch_norm_eps': 1e-4,
    'batch_norm_momentum': 0.1,
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'latent_channels': 32,
    'layers_per_block': 2,
    'patch_size': [2, 2],
    'sample_size': 1024,
    'use_post_quant_conv': True,
    'use_quant_conv': True,
}
KLEIN_SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler',
    'base_image_seq_len': 256,
    'base_shift': 0.5,
    'max_image_seq_len': 4096,
    'max_shift': 1.15,
    'num_train_timesteps': 1000,
    'shift': 3.0,
    'time_shift_type': 'exponential',
    'use_dynamic_shifting': True,
}
Z_IMAGE_TRANSFORMER = {
    '_class_name': 'ZImageTransformer2DModel',
    'all_f_patch_size': [1],
    'all_patch_size': [2],
    'axes_dims': [32, 48, 48],
    'axes_lens': [1536, 512, 512],
    'cap_feat_dim': 2560,
    'dim': 3840,
    'in_channels': 16,
    'n_heads': 30,
    'n_kv_heads': 30,
    'n_layers': 30,
    'n_refiner_layers': 2,
    'norm_eps': 1e-5,
    'qk_norm': True,
    'rope_theta': 256.0,
    't_scale': 1000.0,
}
Z_IMAGE_VAE = {
    **VAE,
    '_class_name': 'AutoencoderKL',
    'latent_channels': 16,
    'sample_size': 1024,
    'scaling_factor': 0.3611,
    'shift_factor': 0.1159,
    'use_post_quant_conv': False,
    'use_quant_conv': False,
}
Z_IMAGE_SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler',
    'num_train_timesteps': 1000,
    'shift': 6.0,
    'use_dynamic_shifting': False,
}
QWEN3_4B = {
    'model_type': 'qwen3',
    'architectures': ['Qwen3ForCausalLM'],
    'head_dim': 128,
    'hidden_size': 2560,
    'intermediate_size': 9728,
    'max_position_embeddings': 40960,
    'num_attention_heads': 32,
    'num_hidden_layers': 36,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-6,
    'rope_theta': 1000000,
    'tie_word_embeddings': True,
    'vocab_size': 151936,
}
# Clip-L with the projection that its class has here, and the image part of Z-Image's VAE, which is FLUX.1's.
SD3_CLIP_L = {**CLIP_L, 'architectures': ['CLIPTextModelWithProjection'], 'projection_dim': 768}
SD35_MEDIUM_TRANSFORMER = {
    '_class_name': 'SD3Transformer2DModel',
    'attention_head_dim': 64,
    'caption_projection_dim': 1536,
    'dual_attention_layers': list(range(13)),
    'in_channels': 16,
    'joint_attention_dim': 4096,
    'num_attention_heads': 24,
    'num_layers': 24,
    'out_channels': 16,
    'patch_size': 2,
    'pooled_projection_dim': 2048,
    'pos_embed_max_size': 384,
    'qk_norm': 'rms_norm',
    'sample_size': 128,
}
SD35_VAE = {**Z_IMAGE_VAE, 'scaling_factor': 1.5305, 'shift_factor': 0.0609}
SD35_SCHEDULER = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, 'shift': 3.0}
FLUX1_DEV_TRANSFORMER = {
    '_class_name': 'FluxTransformer2DModel',
    'attention_head_dim': 128,
    'guidance_embeds': True,
    'in_channels': 64,
    'joint_attention_dim': 4096,
    'num_attention_heads': 24,
    'num_layers': 19,
    'num_single_layers': 38,
    'patch_size': 1,
    'pooled_projection_dim': 768,
}
FLUX1_DEV_SCHEDULER = {
    '_class_name': 'FlowMatchEulerDiscreteScheduler',
    'base_image_seq_len': 256,
    'base_shift': 0.5,
    'max_image_seq_len': 4096,
    'max_shift': 1.15,
    'num_train_timesteps': 1000,
    'shift': 3.0,
    'use_dynamic_shifting': True,
}
