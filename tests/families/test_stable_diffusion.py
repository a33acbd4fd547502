"""Stable Diffusion: its pipeline puts old scheduler files right, and its networks are saved under many names."""

import diffusers
import pytest

from dreambooth_jax.families.stable_diffusion import FAMILY
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines


@pytest.mark.parametrize(
    ('class_name', 'offset', 'clips'), [('StableDiffusionPipeline', 1, False), ('IFPipeline', 0, True)]
)
def test_it_alone_puts_its_scheduler_right(class_name, offset, clips):
    channels = 4 if class_name == FAMILY.class_name else 3
    unet = Network({'in_channels': channels, 'out_channels': channels}, None, {})
    found = made_pipelines.pipeline(class_name, scheduler={'beta_schedule': 'linear'}, unet=unet)
    sampling = found.family.process(found).sampling('ddim')
    assert (sampling.steps_offset, sampling.clip_sample) == (offset, clips)


def test_no_part_is_a_variant_that_it_must_refuse():
    assert FAMILY.check_parts(['unet', 'text_encoder_2'], 'x') is None


def test_inpainting_and_others_of_its_networks_are_read_as_itself():
    assert {'StableDiffusionInpaintPipeline', 'StableDiffusionControlNetPipeline'} <= set(FAMILY.also_saved_as)
    known = [name for name in FAMILY.also_saved_as if hasattr(diffusers, name)]
    assert len(known) > 0.7 * len(FAMILY.also_saved_as) and len(set(FAMILY.also_saved_as)) == len(FAMILY.also_saved_as)
