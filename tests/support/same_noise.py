"""Images that this package and PyTorch's diffusers generate from the same noise with tiny latent pipelines."""

import functools

import jax
import numpy as np

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from tests.support import tiny_latent_pipelines
from tests.support.generating import generate
from tests.support.torch_reference import nchw

PROMPTS = ['a sks dog', 'a cat']
NEGATIVE = 'a dot'
STEPS, GUIDANCE, SEED = 3, 3.0, 5
OPTIONS = dict(
    num_images=1,
    steps=STEPS,
    guidance_scale=GUIDANCE,
    sampler='ddim',
    seed=SEED,
    negative_prompt=NEGATIVE,
    batch_size=2,
    super_resolution=False,
)


@functools.cache
def cascade(family: str) -> Cascade:
    """The tiny pipeline of a family, cached so that sampling with other parameters (with_params) is compiled once."""
    return Cascade.load(tiny_latent_pipelines.folder(family))


def ours(family: str, pipeline=None) -> np.ndarray:
    """Our images uint8[N, H, W, 3] from the tiny pipeline, or from the parameters of another one like it."""
    generated = cascade(family)
    if pipeline is not None:
        parts = {'unet': pipeline.denoiser, **pipeline.text_encoders}
        generated = generated.with_params(base={component: network.params for component, network in parts.items()})
    return generate(generated, PROMPTS, **OPTIONS).final


def theirs(pipe) -> np.ndarray:
    """The images of a diffusers pipeline from the same noise; its scheduler must be DDIM."""
    size = pipe.unet.config.sample_size
    key = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[0]
    noise = nchw(samplers.initial_noise(key[None], (size, size, 4)))
    images = pipe(
        PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise.repeat(len(PROMPTS), 1, 1, 1),
        output_type='np',
    ).images
    assert np.isfinite(images).all()  # NaN would become black, and then equal NaN of ours
    return (images * 255).round().astype(np.uint8)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two images, of 255."""
    return int(np.abs(one.astype(int) - other).max())
