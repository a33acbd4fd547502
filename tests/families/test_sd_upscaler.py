"""The x4 upscaler: levels that its table has, crops of the side that it was trained on, prompts of its own."""

import pytest

from dreambooth_jax.families.sd_upscaler import FAMILY
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines

SCHEDULER = {'beta_schedule': 'scaled_linear'}


def upscaler(unet, **parts):
    network = Network(unet, None, {})
    parts |= {'scheduler': SCHEDULER, 'image_noising_scheduler': SCHEDULER}
    return made_pipelines.pipeline('StableDiffusionUpscalePipeline', unet=network, **parts)


@pytest.mark.parametrize(
    ('unet', 'options', 'highest'),
    [
        ({}, {}, 350),
        ({'num_class_embeds': 10}, {}, 9),
        ({}, {'max_noise_level': 5}, 5),
        ({}, {'max_noise_level': 5000}, 999),
    ],
)
def test_no_level_is_taken_that_cannot_be_looked_up(unet, options, highest):
    assert FAMILY.highest_noise_level(upscaler(unet, options=options)) == highest


def test_it_trains_on_crops_and_reads_its_own_prompts():
    assert FAMILY.crop == 512 and FAMILY.is_super_resolution and not FAMILY.fixed_size
    assert not FAMILY.shares_text and 'text_encoder' in FAMILY.networks
    assert FAMILY.noise_labels == ('table', 'timestep')  # older files embed the level as a time
