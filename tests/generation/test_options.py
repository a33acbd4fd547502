"""Sampling options: the same names in settings, flags and calls."""

import dataclasses

import pytest

from dreambooth_jax.config import DreamBoothConfig, PriorConfig, RunSamplesConfig, SamplesConfig, SuperResolutionConfig
from dreambooth_jax.generation.options import SamplingOptions

SECOND = SuperResolutionConfig(sample_noise_level=20, sample_steps=5, sample_guidance_scale=1.5)
OF_SECOND = {'noise_level': 20, 'super_resolution_steps': 5, 'super_resolution_guidance_scale': 1.5}


def test_options_of_samples_are_their_settings():
    samples = SamplesConfig(steps=9, guidance_scale=2.0, sampler='ddim', seed=4, batch_size=3)
    given = {'steps': 9, 'guidance_scale': 2.0, 'sampler': 'ddim', 'seed': 4, 'batch_size': 3}
    assert SamplingOptions.of_samples(samples) == SamplingOptions(**given)
    assert SamplingOptions.of_samples(samples, SECOND) == SamplingOptions(**given, **OF_SECOND)


@pytest.mark.parametrize('super_resolution', [False, True])
def test_options_of_class_images_have_the_seed_of_the_run(super_resolution):
    prior = PriorConfig(steps=7, guidance_scale=3.0, sampler='ddpm', batch_size=5)
    config = DreamBoothConfig(seed=11, prior=prior, samples=RunSamplesConfig(seed=4), super_resolution=SECOND)
    assert SamplingOptions.of_class_images(config, super_resolution=super_resolution) == SamplingOptions(
        steps=7,
        guidance_scale=3.0,
        sampler='ddpm',
        seed=11,
        batch_size=5,
        super_resolution=super_resolution,
        **OF_SECOND,
    )


def test_the_second_stage_takes_the_values_of_both_unless_it_has_its_own():
    options = SamplingOptions(steps=9, guidance_scale=2.0, sampler='ddim')
    assert (options.second_steps, options.second_guidance_scale) == (9, 2.0)
    options = dataclasses.replace(options, super_resolution_steps=5, super_resolution_guidance_scale=1.0)
    assert (options.second_steps, options.second_guidance_scale) == (5, 1.0)
    assert (options.steps, options.guidance_scale) == (9, 2.0)
