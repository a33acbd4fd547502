"""Single files of SDXL: what is published about them and their tensors do not say.

Source: the published configurations of stable-diffusion-xl-base-1.0; kohya's library/sdxl_model_util.py; the ids of
github.com/Stability-AI/ModelSpec.
"""

from dreambooth_jax.weights.original_facts import (
    BETAS,
    EPSILON,
    SAMPLING,
    V_PREDICTION,
    Config,
    OriginalLayout,
    holds_prefix,
)

_TEXT_TIME_WIDTH = 256  # number of sinusoidal features for each size and crop value
_SECOND_TEXT = 'conditioner.embedders.1.model.'


def _unet(sizes, prediction_type: str) -> Config:
    return {
        'addition_embed_type': 'text_time',
        'addition_time_embed_dim': _TEXT_TIME_WIDTH,
        'projection_class_embeddings_input_dim': sizes('label_emb.0.0.weight')[1],
    }


def _scheduler(prediction_type: str) -> Config:
    return {**BETAS, **SAMPLING, '_class_name': 'EulerDiscreteScheduler', 'timestep_spacing': 'leading'}


SDXL = OriginalLayout(
    title='Stable Diffusion XL',
    matches=holds_prefix(_SECOND_TEXT),
    # Older configurations lack this key; then it is None.
    fits=lambda configs: configs['unet'].get('addition_embed_type') == 'text_time',
    text_prefixes={'text_encoder': 'conditioner.embedders.0.transformer.', 'text_encoder_2': _SECOND_TEXT},
    projected=('text_encoder_2',),
    pad_tokens={'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'},
    model_index={'_class_name': 'StableDiffusionXLPipeline', 'force_zeros_for_empty_prompt': True},
    text_width=2048,
    vae={'scaling_factor': 0.13025, 'force_upcast': True},
    unet=_unet,
    resolutions={EPSILON: 1024, V_PREDICTION: 1024},
    scheduler=_scheduler,
    # ComfyUI and Forge recognise an SDXL that predicts v only by these tensors.
    writes_markers=True,
    architectures={EPSILON: 'stable-diffusion-xl-v1-base'},
    kohya_versions={EPSILON: 'sdxl_base_v1-0'},
    kohya_original_names=True,
)
