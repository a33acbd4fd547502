"""Stable Diffusion 1.x and 2.x: latents of a VAE, prompts read with one CLIP.

Source: Rombach et al. 2022; diffusers 0.42.1 pipelines/stable_diffusion/pipeline_stable_diffusion.py, and
pipelines/auto_pipeline.py for the classes that hold the same networks.
"""

from dreambooth_jax.families.prompts import ClipPrompts
from dreambooth_jax.families.stable_diffusion_files import SD1, SD2
from dreambooth_jax.families.unet import UNetFamily

# Other ways to generate with the same networks, or with a UNet of more input channels, which is refused by its
# configuration. A ControlNet stored beside these networks is not read.
CONTROLS = ('', 'ControlNet', 'ControlNetPAG', 'PAG')
TASKS = ('', 'Img2Img', 'Inpaint')

FAMILY = UNetFamily(
    class_name='StableDiffusionPipeline',
    title='Stable Diffusion',
    networks=('unet', 'vae', 'text_encoder'),
    tokenizers={'text_encoder': 'tokenizer'},
    options={'requires_safety_checker': False},
    absent=('safety_checker', 'feature_extractor', 'image_encoder'),
    also_saved_as=(
        *(f'StableDiffusion{control}{task}Pipeline' for control in CONTROLS for task in TASKS),
        'LatentConsistencyModelPipeline',
        'LatentConsistencyModelImg2ImgPipeline',
        'StableDiffusionDepth2ImgPipeline',
        'StableDiffusionInpaintPipelineLegacy',
        'StableDiffusionInstructPix2PixPipeline',
        'StableDiffusionPipelineSafe',
    ),
    originals=(SD2, SD1),
    reads_with='CLIP',
    prompts=ClipPrompts,
    # The pipeline sets these two in every scheduler that it is created with. Older files leave them out and mean these
    # values, and latents have no range [-1, 1] to be clipped to. In diffusers a user can replace the scheduler later
    # (`pipe.scheduler = ...`), without these values; here that is not possible. Other pipelines do not set them, so
    # there the file decides.
    forced_scheduler={'steps_offset': 1, 'clip_sample': False},
)
