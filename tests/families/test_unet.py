"""What families with a UNet say of a pipeline: its space, its sizes, its schedules and how its prompts are read."""

import types

from dreambooth_jax.families import deepfloyd_if, sd_upscaler, stable_diffusion
from dreambooth_jax.families.image_space import LatentSpace, PixelSpace
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines, smallest_pipelines, tiny_pipelines
from tests.support import tiny_networks as tiny

SCHEDULER = {'beta_schedule': 'scaled_linear'}


def pipeline(class_name, unet, *, vae=None, **parts):
    networks = {'unet': Network(unet, None, {})}
    if vae is not None:
        networks['vae'] = Network(vae, None, {})
    return made_pipelines.pipeline(class_name, scheduler=SCHEDULER, **networks, **parts)


def latent(unet=smallest_pipelines.LATENT_UNET, **vae):
    return pipeline('StableDiffusionPipeline', unet, vae={**smallest_pipelines.VAE, **vae})


def test_pixel_models_denoise_what_is_left_of_their_inputs():
    for given, sides in ((tiny.UNET, 8), ({**tiny.UNET, 'sample_size': [8, 12]}, None)):
        space = deepfloyd_if.BASE.space(pipeline('IFPipeline', given))
        assert isinstance(space, PixelSpace)
        assert (space.channels, space.side, space.halvings, space.scale) == (3, sides, 1, 1)
    second = pipeline('IFSuperResolutionPipeline', tiny.SUPER_RESOLUTION_UNET)
    assert second.space.channels == 3 and second.space.side == 16


def test_latent_models_have_the_scale_of_their_vae():
    space = latent(scaling_factor=0.5).space
    assert isinstance(space, LatentSpace)
    assert (space.channels, space.side, space.scale, space.scaling_factor) == (4, 8, 2, 0.5)
    assert latent().space.scaling_factor == 0.18215  # diffusers' default
    upscaler = pipeline(
        'StableDiffusionUpscalePipeline', smallest_pipelines.LATENT_UPSCALER, vae=smallest_pipelines.VAE
    )
    assert upscaler.space.channels == 4


def test_without_its_vae_a_space_still_tells_channels():
    space = pipeline('StableDiffusionPipeline', smallest_pipelines.LATENT_UNET).space
    assert (space.channels, space.vae, space.scale) == (4, None, 1)


def test_what_a_configuration_leaves_out_is_diffusers_default():
    bare = pipeline('StableDiffusionPipeline', {})
    assert stable_diffusion.FAMILY.value(bare, 'block_out_channels') == (320, 640, 1280, 1280)
    assert bare.space.halvings == 3 and bare.space.side is None


def test_sides_of_buckets_are_multiples_that_the_denoiser_can_halve_or_of_64():
    assert deepfloyd_if.BASE.bucket_multiple(pipeline('IFPipeline', tiny.UNET)) == 2
    assert stable_diffusion.FAMILY.bucket_multiple(latent()) == 64


def test_a_pixel_stage_enlarges_to_its_own_size_and_the_upscaler_by_its_vae():
    second = pipeline('IFSuperResolutionPipeline', tiny.SUPER_RESOLUTION_UNET)
    assert second.family.enlarged_size(second, 8) == second.family.enlarged_size(second, 4) == 16
    upscaler = pipeline(
        'StableDiffusionUpscalePipeline', smallest_pipelines.LATENT_UPSCALER, vae=smallest_pipelines.VAE
    )
    assert upscaler.family.enlarged_size(upscaler, 24) == 48


def test_text_is_shared_among_stages_that_read_it_alike():
    base, second = tiny_pipelines.base(), tiny_pipelines.super_resolution()
    assert second.family.can_share_text(second, base)
    other = types.SimpleNamespace(family=types.SimpleNamespace(shares_text=False), text_encoders=base.text_encoders)
    assert not second.family.can_share_text(second, other)
    assert not sd_upscaler.FAMILY.can_share_text(second, base)


def test_prompts_are_read_with_tokenizers_that_are_open_already():
    base = tiny_pipelines.base()
    first = base.family.prompt_encoder(base, size=8)
    again = base.family.prompt_encoder(base, size=8, tokenizers=first.tokenizers)
    assert again.tokenizers is first.tokenizers and again.size == (8, 8)
    assert isinstance(again, deepfloyd_if.BASE.prompts)
