"""A rectified flow takes the steps of diffusers' FlowMatch schedulers and has the losses of its training scripts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_loss_weighting_for_sd3

from dreambooth_jax.diffusion import objective, rectified_flow, samplers
from dreambooth_jax.diffusion.rectified_flow import LinearMu, RectifiedFlow
from dreambooth_jax.diffusion.times import TimeDistribution, shifted

X = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
MIX = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)


def file(**more):
    return {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, **more}


def theirs(steps, process, config, spacing):
    """diffusers' scheduler with its times set as the pipelines of this spacing set them."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = {'mu': process.mu(process.tokens, steps)} if config.get('use_dynamic_shifting') else {}
    if spacing == 'steps':
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    return scheduler


def assert_same_path(scheduler, process, sampler, steps):
    """Both take the same way from X with a network that is a function of x and s."""
    x = torch.from_numpy(X)
    for t in scheduler.timesteps:
        velocity = torch.tanh(x @ torch.from_numpy(MIX)) * (0.5 + t / 1000)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    keys = jax.random.split(jax.random.key(0), len(X))
    denoise = lambda x, s: jnp.tanh(x @ MIX) * (0.5 + s.reshape(-1, 1, 1, 1))  # noqa: E731
    here = samplers.sample(denoise, X, keys, schedule=process, sampler=sampler, num_steps=steps)
    np.testing.assert_allclose(here, x.numpy(), atol=2e-5)


@pytest.mark.parametrize('spacing', rectified_flow.SPACINGS)
@pytest.mark.parametrize(
    'more',
    [
        {},
        {'shift': 3.0},
        {'shift': 3.0, 'use_dynamic_shifting': True},  # whose shift is then not used
        {'use_dynamic_shifting': True, 'time_shift_type': 'linear', 'base_shift': 1.5, 'max_shift': 3.0},
        {'shift': 3.0, 'shift_terminal': 0.02},
    ],
)
def test_every_step_of_euler_equals_diffusers(more, spacing):
    process = rectified_flow.from_config(file(**more), spacing=spacing).of_shape((6, 4))
    assert process.tokens == 24
    for steps in (2, 4, 10, 50):
        scheduler = theirs(steps, process, file(**more), spacing)
        np.testing.assert_allclose(process.sigmas(steps), scheduler.sigmas.numpy(), atol=1e-6, rtol=0)
        np.testing.assert_allclose(samplers.timesteps(process, 'euler', steps), scheduler.timesteps / 1000, atol=1e-6)
        if steps == 10:
            assert_same_path(scheduler, process, 'euler', steps)


def test_one_step_goes_from_noise_to_the_image():
    np.testing.assert_array_equal(RectifiedFlow(shift=3.0).sigmas(1), [1.0, 0.0])


def test_published_files_have_the_published_times():
    """SD3.5 in four steps, and FLUX.1-dev at 1024 px, as diffusers' pipelines print them."""
    sd = rectified_flow.from_config(file(shift=3.0), spacing='scheduler')
    np.testing.assert_allclose(sd.sigmas(4), [1, 0.857692, 0.602151, 0.008929, 0], atol=1e-6)
    flux = rectified_flow.from_config(file(shift=3.0, use_dynamic_shifting=True)).of_shape((64, 64))
    np.testing.assert_allclose(flux.sigmas(4), [1, 0.904531, 0.759511, 0.512844, 0], atol=1e-6)


@pytest.mark.parametrize('steps', [1, 2, 10])
def test_every_step_of_heun_equals_diffusers(steps):
    config = file(shift=3.0) | {'_class_name': 'FlowMatchHeunDiscreteScheduler'}
    scheduler = FlowMatchHeunDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    process = rectified_flow.from_config(config, spacing='scheduler')
    np.testing.assert_allclose(samplers.timesteps(process, 'heun', steps), scheduler.timesteps / 1000, atol=1e-6)
    assert_same_path(scheduler, process, 'heun', steps)
    assert len(scheduler.timesteps) == samplers.network_calls('heun', steps)


@pytest.mark.parametrize('tokens', [64, 256, 1024, 4096, 9000])
def test_the_linear_rule_is_that_of_flux(tokens):
    assert LinearMu()(tokens, 10) == pytest.approx(calculate_shift(tokens, 256, 4096, 0.5, 1.15), rel=1e-9)
    config = {'base_shift': 0.25, 'max_shift': 0.9, 'base_image_seq_len': 100, 'max_image_seq_len': 2000}
    assert LinearMu.of_file(config)(tokens, 3) == pytest.approx(calculate_shift(tokens, 100, 2000, 0.25, 0.9))


def test_tokens_are_counted_from_the_shape():
    assert RectifiedFlow().of_shape((8, 4)).tokens == 32
    assert RectifiedFlow(patch=2).of_shape((8, 6)).tokens == 12
    assert RectifiedFlow().of_shape((8, 4)) == RectifiedFlow(tokens=32)
    assert hash(RectifiedFlow().of_shape((8, 4))) == hash(RectifiedFlow(tokens=32))


def test_noise_target_and_both_ends_agree_with_the_scripts():
    """x_s and the target as diffusers' train_dreambooth_lora_flux2.py has them, and their inverses."""
    process, rng = RectifiedFlow(), np.random.default_rng(2)
    x0, noise = rng.standard_normal((2, 2, 4, 4, 3)).astype(np.float32)
    s = np.float32([0.25, 0.875])
    x = process.add_noise(x0, noise, s)
    wide = s[:, None, None, None]
    np.testing.assert_allclose(x, (1 - wide) * x0 + wide * noise, atol=1e-6)
    v = process.target(x0, noise, s)
    np.testing.assert_array_equal(v, noise - x0)
    np.testing.assert_allclose(process.to_x0(v, x, *process.alpha_sigma(s)), x0, atol=1e-6)
    np.testing.assert_allclose(process.to_noise(v, x, *process.alpha_sigma(s)), noise, atol=1e-6)
    np.testing.assert_allclose(process.snr(s), [9.0, 1 / 49], rtol=1e-6)


@pytest.mark.parametrize(('side', 'k'), [(16, math.exp(0.5)), (32, math.exp(0.63)), (64, math.exp(1.15))])
def test_a_dynamic_shift_of_training_follows_the_tokens_by_the_rule_of_flux(side, k):
    """calculate_shift of diffusers' pipeline_flux.py, not the mu with which the pipeline of FLUX.2 generates."""
    keys = jax.random.split(jax.random.key(1), 1000)
    normal = dict(kind='logit_normal', mean=0.5)
    process = RectifiedFlow(mu=lambda tokens, steps: 9.0).of_shape((side, side))
    assert process.training_shift() == pytest.approx(k, rel=1e-6)
    assert process.training_shift() == pytest.approx(math.exp(calculate_shift(side * side)), rel=1e-6)
    drawn = process.sample_times(keys, TimeDistribution(dynamic_shift=True, **normal))
    np.testing.assert_array_equal(drawn, process.sample_times(keys, TimeDistribution(shift=k, **normal)))
    unshifted = process.sample_times(keys, TimeDistribution(**normal))
    np.testing.assert_allclose(drawn, k * unshifted / (1 + (k - 1) * unshifted), atol=2e-3)  # the lowest time


def test_a_dynamic_shift_of_training_is_that_of_the_scheduler_file():
    written = {'base_shift': 1.0, 'max_shift': 2.0, 'base_image_seq_len': 100, 'max_image_seq_len': 200}
    for dynamic in (False, True):
        process = rectified_flow.from_config(
            file(**written, use_dynamic_shifting=dynamic), mu=lambda tokens, steps: 9.0
        )
        assert process.of_shape((15, 10)).training_shift() == pytest.approx(math.exp(1.5))


def test_times_are_those_of_the_distribution_and_the_shift():
    keys = jax.random.split(jax.random.key(0), 20_000)
    at = lambda process, distribution: np.asarray(process.sample_times(keys, distribution))  # noqa: E731
    uniform = at(RectifiedFlow(), TimeDistribution())
    assert uniform.dtype == np.float32 and uniform.min() >= 0.001 and uniform.max() <= 1
    np.testing.assert_allclose(np.quantile(uniform, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.01)
    # The median of a shifted time is the shifted median.
    for distribution in (TimeDistribution(), TimeDistribution(kind='logit_normal'), TimeDistribution(kind='mode')):
        median = np.median(at(RectifiedFlow(), distribution))
        assert np.median(at(RectifiedFlow(shift=3.0), distribution)) == pytest.approx(shifted(median, 3.0), abs=1e-5)
    # The distribution's own shift takes the place of the process's.
    own = at(RectifiedFlow(shift=6.0), TimeDistribution(shift=3.0))
    np.testing.assert_allclose(own, at(RectifiedFlow(shift=3.0), TimeDistribution()), atol=2e-3)  # the lowest time
    # A dynamic shift moves no training time.
    dynamic = rectified_flow.from_config(file(shift=3.0, use_dynamic_shifting=True))
    np.testing.assert_array_equal(at(dynamic, TimeDistribution()), uniform)


def test_min_snr_is_the_weight_of_the_same_error_of_x0():
    """An error e of v is an error s * e of x0, whose min-SNR weight is min(snr, gamma)."""
    process, s, gamma = RectifiedFlow(), np.float32([0.02, 0.3, 0.9, 1.0]), 5.0
    error = np.ones((4, 2, 2, 1), np.float32)
    options = {'prediction_type': process.prediction_type, 'min_snr_gamma': gamma}
    found = objective.denoising_loss(error, 0 * error, process.snr(s), **options)
    np.testing.assert_allclose(found, s**2 * np.minimum((1 - s) ** 2 / s**2, gamma), rtol=1e-5, atol=1e-9)


def test_weights_of_times_are_those_of_the_scripts():
    process, s = RectifiedFlow(), torch.tensor([0.001, 0.3, 0.5, 1.0])
    for kind in process.weightings:
        theirs = compute_loss_weighting_for_sd3(kind, sigmas=s)
        np.testing.assert_allclose(process.weight(s.numpy(), kind), theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ('more', 'sentence'),
    [
        ({'_class_name': 'DDIMScheduler'}, "_class_name is 'DDIMScheduler'; allowed: FlowMatchEulerDiscreteScheduler"),
        ({'use_karras_sigmas': True}, 'use_karras_sigmas is True; allowed: false.'),
        ({'stochastic_sampling': True}, 'stochastic_sampling is True; allowed: false.'),
        ({'invert_sigmas': True}, 'invert_sigmas is True; allowed: false.'),
        ({'shift': 0}, 'shift is 0; allowed: numbers above 0.'),
        ({'shift': True}, 'shift is True; allowed: numbers above 0.'),
        ({'base_shift': 'x'}, "base_shift is 'x'; allowed: numbers."),
        ({'shift_terminal': 1.5}, 'shift_terminal is 1.5; allowed: null, and numbers above 0 and below 1.'),
        ({'time_shift_type': 'cubic'}, "time_shift_type is 'cubic'; allowed: exponential, linear."),
        ({'use_dynamic_shifting': 1}, 'use_dynamic_shifting is 1; allowed: true, false.'),
        ({'prediction_type': 'epsilon'}, "prediction_type is 'epsilon', but a rectified flow predicts the velocity; "),
        ({'num_train_timesteps': 1}, 'num_train_timesteps is 1; allowed: whole numbers from 2 to 100000.'),
    ],
)
def test_what_a_file_may_not_ask_for(more, sentence):
    with pytest.raises(ValueError) as error:
        rectified_flow.from_config(file(**more))
    assert str(error.value).startswith(sentence)


def test_other_samplers_are_refused():
    with pytest.raises(ValueError) as error:
        RectifiedFlow().step_table('ddim', 10)
    assert str(error.value) == (
        'sampler ddim cannot sample a rectified flow, which this model is; take one of euler, heun.'
    )
    for sampler, steps, sentence in (
        ('plms', 10, 'sampler is'),
        ('euler', 0, 'steps is 0; 1 to 1000'),
        ('euler', 1001, 'steps is 1001'),
    ):
        with pytest.raises(ValueError, match=sentence):
            RectifiedFlow().step_table(sampler, steps)
    with pytest.raises(ValueError, match='eta is 0.5'):
        RectifiedFlow().step_table('euler', 10, 0.5)
    assert math.isclose(RectifiedFlow(mu=lambda tokens, steps: tokens / 4096).sampling_shift(4), math.e)
