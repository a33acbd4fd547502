"""Single files of Stable Diffusion 1.x and 2.x: what is published about them and their tensors do not say.

Source: the published configurations of stable-diffusion-v1-5, stable-diffusion-2-base, 2, 2-1-base and 2-1; kohya's
library/model_util.py; the ids of github.com/Stability-AI/ModelSpec.
"""

from dreambooth_jax.weights.original_facts import (
    EPSILON,
    V_PREDICTION,
    Config,
    OriginalLayout,
    activation_of_clip,
    holds_prefix,
)

_TEXT_1, _TEXT_2 = 'cond_stage_model.transformer.', 'cond_stage_model.model.'


def _sd2_unet(sizes, prediction_type: str) -> Config:
    # The published configurations of the models that predict v differ from the others in this.
    return {'upcast_attention': True} if prediction_type == V_PREDICTION else {}


SD1 = OriginalLayout(
    title='Stable Diffusion 1.x',
    matches=holds_prefix(_TEXT_1),
    fits=lambda configs: activation_of_clip(configs) == 'quick_gelu',
    text_prefixes={'text_encoder': _TEXT_1},
    pad_tokens={'tokenizer': '<|endoftext|>'},
    model_index={'_class_name': 'StableDiffusionPipeline'},
    text_width=768,
    vae={'scaling_factor': 0.18215},
    heads=8,
    resolutions={EPSILON: 512, V_PREDICTION: 512},
    architectures={EPSILON: 'stable-diffusion-v1'},
    kohya_versions={EPSILON: 'sd_v1', V_PREDICTION: 'sd_v1_v'},
)
SD2 = OriginalLayout(
    title='Stable Diffusion 2.x',
    matches=holds_prefix(_TEXT_2),
    fits=lambda configs: activation_of_clip(configs) == 'gelu',
    text_prefixes={'text_encoder': _TEXT_2},
    pad_tokens={'tokenizer': '!'},
    model_index={'_class_name': 'StableDiffusionPipeline'},
    text_width=1024,
    vae={'scaling_factor': 0.18215},
    unet=_sd2_unet,
    resolutions={EPSILON: 512, V_PREDICTION: 768},
    ask_prediction_type=(
        "'epsilon' for those made from 2.0-base or 2.1-base (512 pixels), 'v_prediction' for 2.0 or 2.1 (768)."
    ),
    # Files of the two kinds differ only in the values of their tensors, so neither names nor shapes of tensors tell
    # which prediction a file was trained for.
    published_prediction_types={
        **dict.fromkeys(('512-base-ema', 'v2-1_512-ema-pruned', 'v2-1_512-nonema-pruned'), EPSILON),
        **dict.fromkeys(('768-v-ema', 'v2-1_768-ema-pruned', 'v2-1_768-nonema-pruned'), V_PREDICTION),
    },
    architectures={EPSILON: 'stable-diffusion-v2-512', V_PREDICTION: 'stable-diffusion-v2-768-v'},
    kohya_versions={EPSILON: 'sd_v2', V_PREDICTION: 'sd_v2_v'},
    kohya_is_v2=True,
)
