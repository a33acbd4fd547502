"""Which published names are known as those of distilled models, and that a name alone forbids nothing for good."""

from pathlib import Path

import pytest

from dreambooth_jax.families import distilled, flux2_klein, stable_diffusion, stable_diffusion_3, z_image
from dreambooth_jax.generation import checks
from dreambooth_jax.weights.pipeline import Pipeline

CACHE = 'cache/models--{}/snapshots/0123456789abcdef'
FLOW = {'_class_name': 'FlowMatchEulerDiscreteScheduler'}
# The name of a folder, the family, and whether the model is distilled.
FOLDERS = [
    (CACHE.format('stabilityai--stable-diffusion-3.5-large-turbo'), stable_diffusion_3.FAMILY, True),
    (CACHE.format('stabilityai--stable-diffusion-3.5-large'), stable_diffusion_3.FAMILY, False),
    (CACHE.format('stabilityai--stable-diffusion-3.5-medium'), stable_diffusion_3.FAMILY, False),
    ('models/stable-diffusion-3.5-large-turbo', stable_diffusion_3.FAMILY, True),
    ('models/Stable_Diffusion_3.5_Large_Turbo.safetensors', stable_diffusion_3.FAMILY, True),
    ('turbo/sd3', stable_diffusion_3.FAMILY, False),
    ('models/hyperion', stable_diffusion_3.FAMILY, False),
    (CACHE.format('stabilityai--sd-turbo'), stable_diffusion.FAMILY, True),
    (CACHE.format('stable-diffusion-v1-5--stable-diffusion-v1-5'), stable_diffusion.FAMILY, False),
    (CACHE.format('ostris--Z-Image-De-Turbo'), z_image.FAMILY, False),
]
# The name of a transformer's own file beside any folder of the family, and whether it is distilled.
FILES = [
    ('flux-2-klein-4b.safetensors', flux2_klein.FAMILY, True),
    ('flux-2-klein-4b-fp8.safetensors', flux2_klein.FAMILY, True),
    ('flux-2-klein-base-4b.safetensors', flux2_klein.FAMILY, False),
    ('my_own.safetensors', flux2_klein.FAMILY, False),
    ('z_image_turbo_bf16.safetensors', z_image.FAMILY, True),
    ('z_image_bf16.safetensors', z_image.FAMILY, False),
    ('z-image-de-turbo.safetensors', z_image.FAMILY, False),
    ('sd3.5_large_turbo.safetensors', stable_diffusion_3.FAMILY, True),
]


@pytest.mark.parametrize(('name', 'family', 'is_distilled'), FOLDERS)
def test_the_name_of_a_folder_tells(name, family, is_distilled):
    pipeline = Pipeline(family=family, scheduler={}, folder=Path(name))
    assert family.is_distilled(pipeline) is is_distilled and distilled.is_guess(pipeline)


@pytest.mark.parametrize(('name', 'family', 'is_distilled'), FILES)
def test_the_name_of_a_transformers_file_tells_whatever_the_folder_says(name, family, is_distilled):
    for other in ({'scheduler': {'shift': 3.0}, 'options': {'is_distilled': True}}, {'scheduler': {'shift': 6.0}}):
        pipeline = Pipeline(family=family, folder=Path('z-turbo'), denoiser_file=Path('files') / name, **other)
        assert family.is_distilled(pipeline) is is_distilled and distilled.is_guess(pipeline)


def test_what_was_not_read_from_files_has_no_name():
    assert not distilled.by_name(Pipeline(family=stable_diffusion_3.FAMILY, scheduler={}))


def test_a_name_alone_forbids_no_guidance(caplog):
    pipeline = Pipeline(family=stable_diffusion_3.FAMILY, scheduler=FLOW, folder=Path('large-turbo'))
    assert pipeline.family.usual_sampling(pipeline) == {'sampler': 'euler', 'steps': 4, 'guidance_scale': 1.0}
    checks.check_sampler(pipeline, 4, 'euler', 3.0)
    (line,) = caplog.messages
    assert line == 'guidance_scale is 3 but large-turbo is distilled and needs none; set it to 1 (by its name)'
