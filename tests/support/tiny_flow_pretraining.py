"""Settings that describe the smallest model that pretraining can make on latents, in Z-Image's layout."""

from dreambooth_jax.storybook import vocabulary
from tests.support import smallest_pipelines

SIZE = 16
SETTINGS = {
    'schedule': 'constant',
    'warmup_steps': 0,
    'vae': {**smallest_pipelines.VAE, 'sample_size': SIZE, 'shift_factor': 0.0, 'scaling_factor': 1.0},
    'text_encoder': {
        'model_type': 'qwen3',
        'architectures': ['Qwen3Model'],
        'vocab_size': len(vocabulary.qwen_vocabulary()[0]),
        'hidden_size': 16,
        'intermediate_size': 8,
        'num_hidden_layers': 1,
        'num_attention_heads': 1,
        'num_key_value_heads': 1,
        'head_dim': 4,
        'max_position_embeddings': 64,
        'initializer_range': 1.0,
    },
    'transformer': {
        '_class_name': 'ZImageTransformer2DModel',
        'in_channels': 4,
        'dim': 16,
        'n_layers': 1,
        'n_refiner_layers': 1,
        'n_heads': 2,
        'n_kv_heads': 2,
        'cap_feat_dim': 16,
        'axes_dims': [4, 2, 2],
        'axes_lens': [1024, 16, 16],
    },
    'scheduler': {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, 'shift': 2.0},
}
