"""Ten-step images of Stable Diffusion with the scheduler file that is published with it, which leaves keys out."""

import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import folders, single_file
from tests.support import tiny_latent_pipelines as tiny
from tests.support.published_schedulers import SD_1_5
from tests.support.same_noise import difference
from tests.support.torch_reference import nchw

PROMPTS, STEPS, GUIDANCE, SEED = ['a red dog', 'a cat'], 10, 3.0, 5


def theirs():
    """With the sampler that a user of diffusers makes of the pipeline's own scheduler."""
    published = diffusers.PNDMScheduler.from_config(SD_1_5)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(published.config)
    shared = tiny.torch_pipeline('sd1')
    pipe = type(shared)(**{**shared.components, 'scheduler': scheduler}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    keys = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[:1]
    noise = nchw(samplers.initial_noise(keys, (size, size, 4))).repeat(len(PROMPTS), 1, 1, 1)
    with torch.no_grad():
        generated = pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, output_type='np')
    assert generated.images.std() > 0.05  # images, not one colour
    return (generated.images * 255).round().astype(np.uint8)


@pytest.mark.parametrize('source', ['folder', pytest.param('single file', marks=pytest.mark.slow)])
def test_ten_steps_of_dpmsolver_generate_what_diffusers_generates(source, tmp_path):
    model = tmp_path / 'model'
    shutil.copytree(tiny.folder('sd1'), model)
    (model / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(SD_1_5))
    options = {}
    if source == 'single file':
        file = single_file.write_pipeline(folders.read_pipeline(model), tmp_path / 'model.safetensors')
        options, model = {'tokenizer_dir': model}, file or tmp_path / 'model.safetensors'
    ours = Cascade.load(model, **options).generate(
        PROMPTS, steps=STEPS, guidance_scale=GUIDANCE, sampler='dpmsolver++', seed=SEED, batch_size=2, progress=False
    )
    assert difference(ours.final, theirs()) <= 2
