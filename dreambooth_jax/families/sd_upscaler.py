"""The Stable Diffusion x4 upscaler: a second stage on latents, with a text encoder of its own.

Its low-resolution image has the size of its latents and needs no enlarging, and the level of the noise on it is usually
an index into a table. It trains on crops of this side, as it was trained; since they are encoded once, they are made
before training.

Source: diffusers 0.42.1 pipelines/stable_diffusion/pipeline_stable_diffusion_upscale.py.
"""

import dataclasses

from dreambooth_jax.families.prompts import ClipPrompts
from dreambooth_jax.families.sd_upscaler_files import UPSCALER
from dreambooth_jax.families.unet import UNetFamily
from dreambooth_jax.weights.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Upscaler(UNetFamily):
    def highest_noise_level(self, pipeline: Pipeline) -> int:
        # The level is at most max_noise_level and must be in the table of levels: one outside of it would be looked up
        # as NaN, and all images would be black.
        last = super().highest_noise_level(pipeline)
        known = pipeline.denoiser.config.get('num_class_embeds') or last + 1
        return min(last, pipeline.option('max_noise_level'), known - 1)


FAMILY = _Upscaler(
    class_name='StableDiffusionUpscalePipeline',
    title='the Stable Diffusion x4 upscaler',
    is_super_resolution=True,
    networks=('unet', 'vae', 'text_encoder'),
    tokenizers={'text_encoder': 'tokenizer'},
    noising='low_res_scheduler',
    options={'max_noise_level': 350},
    absent=('safety_checker', 'feature_extractor', 'watermarker'),
    reads_with='CLIP',
    prompts=ClipPrompts,
    noise_labels=('table', 'timestep'),
    crop=512,
    originals=(UPSCALER,),
)
