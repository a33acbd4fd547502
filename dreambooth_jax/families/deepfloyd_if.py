"""DeepFloyd IF: a cascade on pixels that reads prompts with a T5. Storybook, the built-in model, is one.

The second stage has no text encoder of its own: diffusers passes the text states of the first stage on to it.

Source: Saharia et al. 2022 (Imagen); diffusers 0.42.1 pipelines/deepfloyd_if.
"""

from dreambooth_jax.families.prompts import T5Prompts
from dreambooth_jax.families.unet import UNetFamily

# Every linear layer and convolution; most of these networks is convolutions. With adapters of the attention alone,
# as in diffusers' example, Storybook's dog is named in 32 % of its images; with these in 42 to 88 % of three trainings
# (experiments/main_job, experiments/quantised_base).
LORA_TARGETS = ('.*',)
_SHARED = {
    'networks': ('unet', 'text_encoder'),
    'tokenizers': {'text_encoder': 'tokenizer'},
    'options': {'requires_safety_checker': False},
    'absent': ('safety_checker', 'feature_extractor', 'watermarker'),
    'reads_with': 'T5',
    'prompts': T5Prompts,
    'shares_text': True,
    'fixed_size': True,
    'lora_targets': LORA_TARGETS,
}
BASE = UNetFamily(
    class_name='IFPipeline',
    title='DeepFloyd IF',
    # The metadata standard has no ids for these models; ours follow its manner.
    architecture='deepfloyd-if-i',
    also_saved_as=('IFImg2ImgPipeline', 'IFInpaintingPipeline'),
    **_SHARED,
)
SUPER_RESOLUTION = UNetFamily(
    class_name='IFSuperResolutionPipeline',
    title="DeepFloyd IF's second stage",
    architecture='deepfloyd-if-ii',
    is_super_resolution=True,
    noising='image_noising_scheduler',
    noise_labels=('timestep',),
    also_saved_as=('IFImg2ImgSuperResolutionPipeline', 'IFInpaintingSuperResolutionPipeline'),
    **_SHARED,
)
