"""The distributions of training times are those of Esser et al. 2024, as diffusers computes them."""

import jax
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from dreambooth_jax.diffusion.times import MODE_SCALE, TimeDistribution

KEYS = jax.random.split(jax.random.key(1), 4000)


@pytest.mark.parametrize('options', [dict(mode_scale=scale) for scale in (-1.0, 0.0, 0.81, 1.29, MODE_SCALE[1])])
def test_mode_equals_diffusers_for_equal_uniform_numbers(monkeypatch, options):
    uniform = np.random.default_rng(0).uniform(size=100).astype(np.float32)
    monkeypatch.setattr(torch, 'rand', lambda **_: torch.tensor(uniform))
    theirs = compute_density_for_timestep_sampling('mode', 100, **options).numpy()
    np.testing.assert_allclose(TimeDistribution(kind='mode', **options).of_uniform(uniform), theirs, atol=2e-7)


@pytest.mark.parametrize(('mean', 'std'), [(0.0, 1.0), (-0.7, 0.5), (1.5, 2.0)])
def test_logit_normal_equals_diffusers_for_equal_normal_numbers(monkeypatch, mean, std):
    normal = np.random.default_rng(0).normal(size=100).astype(np.float32)
    monkeypatch.setattr(torch, 'normal', lambda mean, std, **_: torch.tensor(mean + std * normal))
    theirs = compute_density_for_timestep_sampling('logit_normal', 100, logit_mean=mean, logit_std=std).numpy()
    ours = TimeDistribution(kind='logit_normal', mean=mean, std=std).of_normal(normal)
    np.testing.assert_allclose(ours, theirs, atol=2e-7)


@pytest.mark.parametrize(
    ('kind', 'options', 'theirs'),
    [
        ('uniform', {}, {}),
        ('logit_normal', dict(mean=0.8, std=0.6), dict(logit_mean=0.8, logit_std=0.6)),
        ('mode', dict(mode_scale=-0.5), dict(mode_scale=-0.5)),
    ],
)
def test_samples_are_distributed_as_in_diffusers(kind, options, theirs):
    from scipy import stats

    ours = TimeDistribution(kind=kind, **options).sample(KEYS)
    reference = compute_density_for_timestep_sampling(kind, 4000, generator=torch.Generator().manual_seed(0), **theirs)
    assert stats.ks_2samp(np.asarray(ours), reference.numpy()).pvalue > 0.01
    assert 0 <= ours.min() and ours.max() <= 1


def test_an_example_has_the_same_time_whatever_its_neighbours():
    distribution = TimeDistribution(kind='mode')
    np.testing.assert_array_equal(distribution.sample(KEYS[5:7]), distribution.sample(KEYS[:8])[5:7])


def test_a_range_squeezes_what_is_drawn():
    whole, part = (TimeDistribution(kind='logit_normal', range=ends).sample(KEYS) for ends in ((0, 1), (0.25, 0.75)))
    np.testing.assert_allclose(part, 0.25 + 0.5 * whole, rtol=1e-6)


@pytest.mark.parametrize('kind', ['uniform', 'logit_normal', 'mode'])
def test_a_shift_moves_what_is_drawn_towards_noise(kind):
    plain, moved = (np.asarray(TimeDistribution(kind=kind, shift=k).sample(KEYS)) for k in (None, 3.0))
    np.testing.assert_allclose(moved, 3 * plain / (1 + 2 * plain), rtol=1e-5)
    np.testing.assert_array_equal(TimeDistribution(kind=kind, shift=1.0).sample(KEYS), plain)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(shift=0.0), 'shift is 0.0; it must be above 0.'),
        (dict(kind='beta'), "kind is 'beta'; allowed: uniform, logit_normal, mode"),
        (dict(std=0.0), 'std is 0.0; it must be above 0'),
        (dict(mode_scale=2.0), 'mode_scale is 2.0; -1.0 to 1.751938 is allowed'),
        (dict(range=(0.5, 0.5)), r'range is \(0.5, 0.5\); 0 <= low < high <= 1 is needed'),
    ],
)
def test_values_that_are_not_allowed_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TimeDistribution(**options)
