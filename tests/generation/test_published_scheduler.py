"""Ten-step images with the scheduler files that are published with Stable Diffusion, which leave keys out."""

import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import single_file
from tests.support import tiny_latent_pipelines as tiny
from tests.support.generating import generate
from tests.support.published_schedulers import SD_1_5, SD_2_1, SDXL
from tests.support.same_noise import difference
from tests.support.torch_reference import nchw

PROMPTS, STEPS, GUIDANCE, SEED = ['a red dog', 'a cat'], 10, 3.0, 5


# Those that add no noise, so that both need only the same initial noise.
CLASSES = {
    'ddim': diffusers.DDIMScheduler,
    'dpmsolver++': diffusers.DPMSolverMultistepScheduler,
    'euler': diffusers.EulerDiscreteScheduler,
    'heun': diffusers.HeunDiscreteScheduler,
    'unipc': diffusers.UniPCMultistepScheduler,
}
PUBLISHED = {'sd1': SD_1_5, 'sd2': SD_2_1, 'sdxl': SDXL}


def theirs(published, sampler):
    """With the sampler that a user of diffusers makes of the pipeline's own scheduler."""
    own = getattr(diffusers, published['_class_name']).from_config(published)
    shared = tiny.torch_pipeline('sd1')
    scheduler = CLASSES[sampler].from_config(own.config)
    pipe = type(shared)(**{**shared.components, 'scheduler': scheduler}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    keys = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[:1]
    noise = nchw(samplers.initial_noise(keys, (size, size, 4))).repeat(len(PROMPTS), 1, 1, 1)
    with torch.no_grad():
        generated = pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, output_type='np')
    assert generated.images.std() > 0.05  # images, not one colour
    return (generated.images * 255).round().astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('published', 'sampler', 'source'),
    [
        ('sd1', 'dpmsolver++', 'single file'),
        *(('sd1', sampler, 'folder') for sampler in CLASSES),
        # The others with one of them; step for step with all: tests/diffusion/test_scheduler_files.py.
        ('sd2', 'dpmsolver++', 'folder'),
        ('sdxl', 'heun', 'folder'),
    ],
)
def test_ten_steps_generate_what_diffusers_generates(published, sampler, source, tmp_path):
    model = tmp_path / 'model'
    shutil.copytree(tiny.folder('sd1'), model)
    (model / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(PUBLISHED[published]))
    options = {}
    if source == 'single file':
        file = single_file.write_pipeline(read_pipeline(model), tmp_path / 'model.safetensors')
        options, model = {'tokenizer_dir': model}, file or tmp_path / 'model.safetensors'
    ours = generate(
        Cascade.load(model, **options),
        PROMPTS,
        steps=STEPS,
        guidance_scale=GUIDANCE,
        sampler=sampler,
        seed=SEED,
        batch_size=2,
    )
    assert difference(ours.final, theirs(PUBLISHED[published], sampler)) <= 2
