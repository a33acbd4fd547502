"""DeepFloyd IF: two stages on pixels, whose second one shares the text of the first and is told a level of noise."""

import dataclasses

import pytest

from dreambooth_jax.families.deepfloyd_if import BASE, SUPER_RESOLUTION
from dreambooth_jax.families.prompts import T5Prompts
from tests.support import tiny_networks as tiny
from tests.support import tiny_pipelines
from tests.support.reports import sentence_of


def test_both_stages_read_prompts_with_one_t5_and_have_a_size_of_their_own():
    for family in (BASE, SUPER_RESOLUTION):
        assert family.prompts is T5Prompts and family.shares_text and family.fixed_size and 'vae' not in family.networks
    assert (BASE.noising, SUPER_RESOLUTION.noising) == (None, 'image_noising_scheduler')
    assert (BASE.noise_labels, SUPER_RESOLUTION.noise_labels) == ((None,), ('timestep',))


@pytest.mark.parametrize(
    ('family', 'unet'), [(BASE, tiny.SUPER_RESOLUTION_UNET), (SUPER_RESOLUTION, tiny.UNET)], ids=['second', 'first']
)
def test_the_network_of_one_stage_is_not_that_of_the_other(family, unet):
    said = sentence_of(family.check, {'unet': unet}, 'x')
    assert said.startswith(f'x is a variant of {family.title} that takes {unet["in_channels"]} channels')


def test_every_level_of_the_noising_schedule_may_be_told():
    second = tiny_pipelines.super_resolution()
    assert SUPER_RESOLUTION.highest_noise_level(second) == 999
    short = dataclasses.replace(second, image_noising_scheduler={**tiny.NOISING_SCHEDULER, 'num_train_timesteps': 50})
    assert SUPER_RESOLUTION.highest_noise_level(short) == 49
