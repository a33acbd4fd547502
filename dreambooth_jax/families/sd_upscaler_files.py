"""Single files of the Stable Diffusion x4 upscaler: what is published about them and their tensors do not say.

Source: the published configurations of stable-diffusion-x4-upscaler.
"""

from dreambooth_jax.weights.original_facts import (
    BETAS,
    EPSILON,
    SAMPLING,
    UNET_PREFIX,
    V_PREDICTION,
    Config,
    OriginalLayout,
)

_BETAS = {**BETAS, 'beta_start': 0.0001, 'beta_end': 0.02}


def _fits(configs) -> bool:
    unet = configs['unet']  # older configurations lack these keys; then they are None
    return unet.get('num_class_embeds') is not None and unet.get('addition_embed_type') != 'text_time'


def _unet(sizes, prediction_type: str) -> Config:
    labels = sizes('label_emb.weight')[0]
    return {'num_class_embeds': labels}


UPSCALER = OriginalLayout(
    title='the Stable Diffusion x4 upscaler',
    # It has the text encoder of Stable Diffusion 2.x, so it must be tried before that.
    matches=lambda shapes: f'{UNET_PREFIX}label_emb.weight' in shapes,
    fits=_fits,
    text_prefixes={'text_encoder': 'cond_stage_model.model.'},
    pad_tokens={'tokenizer': '!'},
    model_index={'_class_name': 'StableDiffusionUpscalePipeline', 'max_noise_level': 350},
    in_channels=7,
    text_width=1024,
    vae={'scaling_factor': 0.08333},
    vae_reduction=2,  # its VAE was trained on images of half the side
    heads=8,
    unet=_unet,
    only_cross_attention=True,
    resolutions={EPSILON: 512, V_PREDICTION: 512},
    scheduler=lambda prediction_type: {**_BETAS, **SAMPLING, '_class_name': 'DDIMScheduler'},
    further_schedulers={
        'low_res_scheduler': {
            **_BETAS,
            '_class_name': 'DDPMScheduler',
            'clip_sample': True,
            'prediction_type': EPSILON,
            'variance_type': 'fixed_small',
        }
    },
    default_prediction_type=V_PREDICTION,
    # The standard has no id for it; this is the name of its published repository.
    architectures={EPSILON: 'stable-diffusion-x4-upscaler'},
)
