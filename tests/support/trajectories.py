"""A small network and schedules in both frameworks, and whole sampling trajectories here and in diffusers."""

import functools
import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
)

from dreambooth_jax.diffusion import samplers, schedules
from dreambooth_jax.diffusion.sampler_list import SAMPLERS

CLASSES = {name: getattr(diffusers, sampler.diffusers_class) for name, sampler in SAMPLERS.items()}
ROWS, SIZE, CHANNELS = 2, 4, 3
RANDOM = np.random.default_rng(11)
MIX = RANDOM.normal(size=(CHANNELS, 2 * CHANNELS)).astype(np.float32)
START = RANDOM.normal(size=(ROWS, SIZE, SIZE, CHANNELS)).astype(np.float32)
FRESH = RANDOM.normal(size=(20, ROWS, SIZE, SIZE, CHANNELS)).astype(np.float32)
# Settings of Stable Diffusion, of DeepFloyd IF, and of IF with the dynamic thresholding of Imagen.
LATENT = dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, clip_sample=False)
PIXEL = dict(beta_schedule='squaredcos_cap_v2')
IMAGEN = dict(**PIXEL, thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5)


def both(sampler, settings, **more):
    """(our Schedule, diffusers' scheduler) from the same settings."""
    settings = {**settings, **more}
    kind = CLASSES[sampler]
    ours = schedules.from_config({'_class_name': kind.__name__, **settings})
    takes = inspect.signature(kind.__init__).parameters
    known = {key: value for key, value in settings.items() if key in takes}
    if sampler == 'dpmsolver++' and 'learned' not in settings.get('variance_type', ''):
        known.pop('variance_type', None)
    return ours, kind(**known)


def network(x, t, channels=CHANNELS):
    """The tanh of mixed channels, scaled by the time."""
    return jnp.tanh(x @ MIX[:, :channels]) * (0.5 + t.astype(jnp.float32) / 1000).reshape(-1, 1, 1, 1)


def torch_network(x, t, channels=CHANNELS):
    mixed = torch.einsum('bchw,cd->bdhw', x, torch.tensor(MIX[:, :channels]))
    return torch.tanh(mixed) * (0.5 + float(t) / 1000)


def channels_first(x):
    return torch.tensor(np.array(x)).movedim(-1, 1)


def channels_last(x):
    return x.movedim(1, -1).numpy()


def trajectory_there(monkeypatch, sampler, scheduler, num_steps, eta=0.0, channels=CHANNELS):
    """The sample of diffusers' loop, with FRESH as its random numbers."""
    fresh = iter(FRESH)
    give = lambda *_, **__: channels_first(next(fresh))  # noqa: E731
    drawing = (scheduling_ddpm, scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete)
    for module in drawing:
        monkeypatch.setattr(module, 'randn_tensor', give)
    scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, 'set_begin_index'):
        # Pipelines do this too. Otherwise, if the first two times are equal, it begins at the second of them.
        scheduler.set_begin_index(0)
    x = channels_first(START) * scheduler.init_noise_sigma
    more = {'eta': eta, 'use_clipped_model_output': True} if sampler == 'ddim' else {}
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch_network(inputs, t, channels), t, x, **more).prev_sample
    return channels_last(x)


def trajectory_here(sampler, schedule, num_steps, eta=0.0, channels=CHANNELS):
    """Our sample with the same random numbers, not compiled, because compiling takes longer than a few small steps."""
    denoise = functools.partial(network, channels=channels)
    keys = jax.random.split(jax.random.key(0), ROWS)
    fresh = FRESH[: samplers.network_calls(sampler, num_steps)]
    options = dict(schedule=schedule, sampler=sampler, num_steps=num_steps, eta=eta, noise=fresh)
    with jax.disable_jit():
        return np.asarray(samplers.sample(denoise, START, keys, **options))


def assert_close(ours, theirs, tolerance=1e-4):
    """Compares relative to the largest value, because trajectories without clipping leave [-1, 1]."""
    assert np.all(np.isfinite(theirs))
    difference = np.max(np.abs(ours - theirs)) / max(1.0, np.max(np.abs(theirs)))
    assert difference < tolerance, f'largest difference {difference:.1e}'


def assert_ten_steps_equal(monkeypatch, sampler, settings, **more):
    """Compares ten steps with the same settings here and in diffusers."""
    ours, theirs = both(sampler, settings, **more)
    channels = 2 * CHANNELS if ours.learns_variance else CHANNELS
    expected = trajectory_there(monkeypatch, sampler, theirs, 10, channels=channels)
    assert_close(trajectory_here(sampler, ours, 10, channels=channels), expected)
