"""Sampling by any table of steps: examples by themselves, fresh noise, one traced network, bad arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers, schedules
from tests.support.trajectories import (
    CLASSES,
    FRESH,
    LATENT,
    PIXEL,
    ROWS,
    START,
    assert_close,
    both,
    network,
    trajectory_here,
    trajectory_there,
)


@pytest.mark.parametrize('sampler', [sampler for sampler in CLASSES if sampler != 'heun'])  # which ignores it there
def test_zero_terminal_snr_equals_diffusers(monkeypatch, sampler):
    more = dict(rescale_betas_zero_snr=True, timestep_spacing='trailing', prediction_type='v_prediction')
    ours, theirs = both(sampler, LATENT, **more)
    assert_close(trajectory_here(sampler, ours, 5), trajectory_there(monkeypatch, sampler, theirs, 5))


def test_an_image_is_the_same_alone_and_in_any_batch():
    schedule = schedules.make_schedule(**PIXEL, variance_type='learned_range')
    keys = jax.random.split(jax.random.key(8), 3)
    run = functools.partial(samplers.sample, functools.partial(network, channels=6), schedule=schedule, num_steps=5)
    together = run(samplers.initial_noise(keys, START.shape[1:]), keys)
    alone = run(samplers.initial_noise(keys[1:2], START.shape[1:]), keys[1:2])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_sampled_noise_is_standard_normal_and_fresh_at_every_step():
    # A network that answers 0 for x0 leaves x <- a * x + std * noise: solve for the noise of each step.
    schedule = schedules.make_schedule('linear', prediction_type='sample')
    keys = jax.random.split(jax.random.key(8), 2)
    initial = samplers.initial_noise(keys, (16, 16, 3))
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x, ordered=True)
        return jnp.zeros_like(x)

    samplers.sample(denoise, initial, keys, schedule=schedule, num_steps=4).block_until_ready()
    jax.effects_barrier()
    table = samplers.step_table(schedule, 'ddpm', 4)
    noise = [(seen[i + 1] - table.x[i] * seen[i]) / table.std[i] for i in range(3)]
    correlation = np.corrcoef([each.ravel() for each in (initial, *map(np.asarray, noise))])
    assert np.all(np.abs(correlation - np.eye(4)) < 0.1)
    for each in noise:
        assert abs(each.mean()) < 0.1 and abs(each.std() - 1) < 0.05


def test_unlearned_samplers_drop_variance_channels():
    schedule = schedules.make_schedule('linear')
    keys = jax.random.split(jax.random.key(0), ROWS)
    run = functools.partial(samplers.sample, x_T=START, keys=keys, schedule=schedule, sampler='ddim', num_steps=3)
    np.testing.assert_allclose(run(functools.partial(network, channels=6)), run(network), atol=1e-6)


def test_sampling_runs_inside_jit_and_traces_the_network_once():
    schedule = schedules.make_schedule('linear')
    calls = []

    def denoise(x, t):
        calls.append(1)
        return network(x, t)

    run = functools.partial(samplers.sample, denoise, schedule=schedule, sampler='ddim', num_steps=20)
    keys = jax.random.split(jax.random.key(0), ROWS)
    x = jax.jit(run)(START, keys)
    assert x.shape == START.shape and len(calls) == 1


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (
            dict(sampler='plms'),
            "sampler is 'plms'; allowed: ddpm, ddim, dpmsolver.., euler, euler_ancestral, heun, unipc",
        ),
        (dict(num_steps=0), 'steps is 0; 1 to 1000'),
        (dict(num_steps=1001), 'steps is 1001; 1 to 1000'),
        (dict(eta=0.5), 'eta is 0.5 with sampler ddpm'),
        (dict(eta=-1.0, sampler='ddim'), 'eta is -1.0 with sampler ddim; ddim takes 0 to 1'),
        (dict(noise=FRESH[:3]), r'noise has shape \(3, 2, 4, 4, 3\); \(10, 2, 4, 4, 3\)'),
        (dict(schedule=schedules.make_schedule(variance_type='learned_range')), 'answers with 3 channels; .* 6'),
        (dict(denoise=functools.partial(network, channels=4)), 'answers with 4 channels; .* 3 or 6'),
        (dict(num_steps=1000, schedule=schedules.make_schedule(steps_offset=1)), 'steps is 1000: .* take fewer'),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    keys = jax.random.split(jax.random.key(0), ROWS)
    good = dict(denoise=network, x_T=START, keys=keys, schedule=schedules.make_schedule(), sampler='ddpm', num_steps=10)
    with pytest.raises(ValueError, match=sentence):
        samplers.sample(**{**good, **arguments})
