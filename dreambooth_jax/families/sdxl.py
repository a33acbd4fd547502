"""Stable Diffusion XL: latents of a VAE, prompts read with two CLIPs, and a UNet that is told the size of the image.

Source: Podell et al. 2023; diffusers 0.42.1 pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py.
"""

import dataclasses
from collections.abc import Sequence

from dreambooth_jax.families.prompts import XLPrompts
from dreambooth_jax.families.sdxl_files import SDXL
from dreambooth_jax.families.stable_diffusion import CONTROLS, TASKS
from dreambooth_jax.families.unet import UNetFamily
from dreambooth_jax.weights.errors import WeightsError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _XL(UNetFamily):
    def check_parts(self, components: Sequence[str], source: str) -> None:
        # The plain class of the refiner is that of the base model; only its missing text encoder tells them apart.
        if 'text_encoder_2' in components and 'text_encoder' not in components:
            raise WeightsError(
                f'{source} names no text_encoder, as that of the SDXL refiner, which only finishes images; give the '
                f'SDXL base model.'
            )


FAMILY = _XL(
    class_name='StableDiffusionXLPipeline',
    title='Stable Diffusion XL',
    networks=('unet', 'vae', 'text_encoder', 'text_encoder_2'),
    tokenizers={'text_encoder': 'tokenizer', 'text_encoder_2': 'tokenizer_2'},
    options={'force_zeros_for_empty_prompt': True},
    absent=('image_encoder', 'feature_extractor'),
    also_saved_as=(
        *(f'StableDiffusionXL{control}{task}Pipeline' for control in CONTROLS for task in TASKS),
        *(f'StableDiffusionXLControlNetUnion{task}Pipeline' for task in TASKS),
        'StableDiffusionXLInstructPix2PixPipeline',
    ),
    reads_with='CLIP',
    prompts=XLPrompts,
    takes_sizes=True,
    originals=(SDXL,),
)
