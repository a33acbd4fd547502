"""Times, single steps and whole trajectories equal diffusers' schedulers, with one small network in both frameworks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.schedulers import scheduling_ddpm

from dreambooth_jax.diffusion import samplers, scheduler_files, schedules
from tests.support.trajectories import (
    CHANNELS,
    CLASSES,
    FRESH,
    MIX,
    ROWS,
    START,
    assert_close,
    channels_first,
    channels_last,
    network,
    trajectory_here,
    trajectory_there,
)

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


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('spacing', scheduler_files.TIMESTEP_SPACINGS)
@pytest.mark.parametrize(
    ('sampler', 'limit'),
    [*((sampler, {}) for sampler in CLASSES), ('dpmsolver++', {'lambda_min_clipped': -5.1})],
)
def test_times_equal_diffusers(sampler, limit, spacing, offset):
    ours, theirs = both(sampler, PIXEL, timestep_spacing=spacing, steps_offset=offset, **limit)
    for num_steps in (1, 2, 3, 7, 10, 20, 25, 30, 50, 61, 100, 999):
        theirs.set_timesteps(num_steps)
        expected = theirs.timesteps.numpy()
        expected = expected[expected >= 0]  # diffusers returns -1 for 61 trailing steps: a rounding error.
        repeat = 2 if sampler == 'heun' else 1
        if len(set(expected)) < len(expected) // repeat or expected[0] >= 1000:
            with pytest.raises(ValueError, match=f'steps is {num_steps}: .* take fewer'):
                samplers.timesteps(ours, sampler, num_steps)
        else:
            np.testing.assert_array_equal(samplers.timesteps(ours, sampler, num_steps), expected)
            assert len(expected) == samplers.network_calls(sampler, num_steps) or limit


CASES = [
    ('ddpm', LATENT, {}),
    ('ddpm', PIXEL, {}),
    ('ddpm', PIXEL, {'variance_type': 'fixed_large', 'clip_sample_range': 0.7}),
    ('ddpm', PIXEL, {'variance_type': 'fixed_small_log'}),
    ('ddpm', IMAGEN, {'variance_type': 'learned_range'}),
    ('ddim', LATENT, {'steps_offset': 1, 'set_alpha_to_one': False}),
    ('ddim', PIXEL, {}),
    ('ddim', IMAGEN, {'timestep_spacing': 'trailing'}),
    ('dpmsolver++', LATENT, {}),
    ('dpmsolver++', IMAGEN, {'lambda_min_clipped': -5.1}),
    ('euler', LATENT, {}),
    ('euler', LATENT, {'timestep_spacing': 'leading', 'steps_offset': 1}),
    ('euler_ancestral', LATENT, {}),
    ('heun', LATENT, {'timestep_spacing': 'trailing'}),
    ('heun', LATENT, {'clip_sample': True, 'clip_sample_range': 0.7}),
    ('unipc', LATENT, {}),
    ('unipc', IMAGEN, {'solver_order': 3}),
]


@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize(('sampler', 'settings', 'more'), CASES)
def test_ten_steps_equal_diffusers(monkeypatch, sampler, settings, more, prediction_type):
    if sampler == 'euler_ancestral' and prediction_type == 'sample':
        return  # which diffusers has not implemented
    ours, theirs = both(sampler, settings, prediction_type=prediction_type, **more)
    channels = 2 * CHANNELS if ours.learns_variance else CHANNELS
    expected = trajectory_there(monkeypatch, sampler, theirs, 10, channels=channels)
    assert_close(trajectory_here(sampler, ours, 10, channels=channels), expected)


@pytest.mark.slow
@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
@pytest.mark.parametrize('spacing', scheduler_files.TIMESTEP_SPACINGS)
@pytest.mark.parametrize('sigmas', [None, 'karras', 'exponential', 'beta'])
@pytest.mark.parametrize('sampler', ['euler', 'euler_ancestral', 'heun', 'unipc'])
def test_every_spacing_equals_diffusers(monkeypatch, sampler, sigmas, spacing, prediction_type):
    if sampler == 'euler_ancestral' and (sigmas or prediction_type == 'sample'):
        return  # which diffusers has not
    more = {f'use_{sigmas}_sigmas': True} if sigmas else {}
    ours, theirs = both(sampler, LATENT, timestep_spacing=spacing, prediction_type=prediction_type, **more)
    for num_steps in (1, 2, 7, 10):
        theirs.set_timesteps(num_steps)
        np.testing.assert_allclose(samplers.timesteps(ours, sampler, num_steps), theirs.timesteps, rtol=1e-6, atol=1e-4)
        expected = trajectory_there(monkeypatch, sampler, theirs, num_steps)
        assert_close(trajectory_here(sampler, ours, num_steps), expected)


UNIPC = {
    **{f'order {order}': dict(solver_order=order) for order in (1, 2, 3)},
    **{
        f'order {order} bh1': dict(solver_order=order, solver_type='bh1', final_sigmas_type='sigma_min')
        for order in (1, 2, 3)
    },
    'high order to the end': dict(solver_order=3, lower_order_final=False, final_sigmas_type='sigma_min'),
    'another class solver': dict(solver_type='midpoint'),
    'corrector off at first': dict(disable_corrector=[0, 1]),
    'thresholded': dict(thresholding=True, sample_max_value=1.5),
    'karras within ends': dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0),
}


@pytest.mark.parametrize('option', UNIPC)
def test_unipc_of_every_order_equals_diffusers(monkeypatch, option):
    ours, theirs = both('unipc', LATENT, **UNIPC[option])
    assert_close(trajectory_here('unipc', ours, 7), trajectory_there(monkeypatch, 'unipc', theirs, 7))


def test_unipc_refuses_a_high_order_to_a_sigma_of_zero_where_diffusers_has_infinity(monkeypatch):
    ours, theirs = both('unipc', LATENT, lower_order_final=False)
    assert not np.isfinite(trajectory_there(monkeypatch, 'unipc', theirs, 5)).any()
    with pytest.raises(ValueError, match='cannot end at a sigma of zero'):
        samplers.step_table(ours, 'unipc', 5)


@pytest.mark.parametrize('solver_order', [1, 2, 3])
def test_unipc_with_bh1_ends_at_the_clean_image_where_diffusers_has_nan(monkeypatch, solver_order):
    ours, theirs = both('unipc', LATENT, solver_order=solver_order, solver_type='bh1')
    assert np.isnan(trajectory_there(monkeypatch, 'unipc', theirs, 5)).all()
    assert np.isfinite(trajectory_here('unipc', ours, 5)).all()


def test_heun_with_a_cosine_schedule_and_clipping_equals_float64():
    """diffusers steps on x0 + s * noise with s up to 20000, whose float32 leaves x0 no digits."""
    ours, theirs = both('heun', PIXEL, clip_sample=True)
    theirs.set_timesteps(10)
    levels = theirs.sigmas.numpy().astype(np.float64)[[0, *range(1, 19, 2), 19]]
    times = theirs.timesteps.numpy()[[0, *range(1, 19, 2)]]

    def slope(y, at):
        level = levels[at]
        predicted = np.tanh((y / np.sqrt(level**2 + 1)) @ MIX[:, :CHANNELS].astype(np.float64)) * (
            0.5 + times[at] / 1000
        )
        return (y - np.clip(y - level * predicted, -1, 1)) / level

    y = START.astype(np.float64) * levels[0]
    for at, length in enumerate(np.diff(levels)):
        first = slope(y, at)
        end = y + length * first
        y = end if at == 9 else y + length * (first + slope(end, at + 1)) / 2
    assert_close(trajectory_here('heun', ours, 10), y, 2e-3)


@pytest.mark.parametrize('sampler', ['euler', 'heun'])
@pytest.mark.parametrize(
    'more', [dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0), dict(final_sigmas_type='sigma_min')]
)
def test_ends_of_sigma_equal_diffusers(monkeypatch, sampler, more):
    if sampler == 'heun' and 'final_sigmas_type' in more:
        return  # which always ends at zero
    config = {'_class_name': 'UniPCMultistepScheduler', **LATENT, **more}
    ours, theirs = schedules.from_config(config), CLASSES[sampler].from_config(config)
    assert_close(trajectory_here(sampler, ours, 7), trajectory_there(monkeypatch, sampler, theirs, 7))


@pytest.mark.parametrize(('settings', 'eta'), [(LATENT, 1.0), (PIXEL, 0.4)])
def test_ddim_with_fresh_noise_equals_diffusers(monkeypatch, settings, eta):
    ours, theirs = both('ddim', settings)
    expected = trajectory_there(monkeypatch, 'ddim', theirs, 10, eta=eta)
    assert_close(trajectory_here('ddim', ours, 10, eta=eta), expected)


@pytest.mark.parametrize('sampler', [sampler for sampler in CLASSES if sampler != 'heun'])  # which ignores it there
def test_zero_terminal_snr_equals_diffusers(monkeypatch, sampler):
    more = dict(rescale_betas_zero_snr=True, timestep_spacing='trailing', prediction_type='v_prediction')
    ours, theirs = both(sampler, LATENT, **more)
    assert_close(trajectory_here(sampler, ours, 5), trajectory_there(monkeypatch, sampler, theirs, 5))


@pytest.mark.parametrize('num_steps', [1, 2, 20])
def test_dpm_solver_equals_diffusers_for_few_and_many_steps(monkeypatch, num_steps):
    ours, theirs = both('dpmsolver++', LATENT)
    expected = trajectory_there(monkeypatch, 'dpmsolver++', theirs, num_steps)
    keys = jax.random.split(jax.random.key(0), ROWS)
    x = samplers.sample(network, START, keys, schedule=ours, sampler='dpmsolver++', num_steps=num_steps)
    assert_close(np.asarray(x), expected)


@pytest.mark.parametrize('sampler', ['ddpm', 'ddim'])
@pytest.mark.parametrize('prediction_type', schedules.PREDICTION_TYPES)
def test_single_steps_equal_diffusers_at_every_kind_of_time(monkeypatch, sampler, prediction_type):
    variance_type = {'variance_type': 'learned_range'} if sampler == 'ddpm' else {}
    ours, theirs = both(sampler, PIXEL, prediction_type=prediction_type, **variance_type)
    channels = 2 * CHANNELS if sampler == 'ddpm' else CHANNELS
    table = samplers.step_table(ours, sampler, 50)
    theirs.set_timesteps(50)
    monkeypatch.setattr(scheduling_ddpm, 'randn_tensor', lambda *_, **__: channels_first(FRESH[0]))
    step = jax.jit(functools.partial(samplers.denoise_step, process=ours, sampling=ours.sampling(sampler)))
    for index in (0, 1, 10, 25, 40, 48, 49):
        row = jax.tree.map(lambda column, index=index: column[index], table)
        answer = network(jnp.asarray(START), jnp.full(ROWS, row.t), channels)
        fresh = jnp.asarray(FRESH[0]) if sampler == 'ddpm' else None
        new, x0, _ = step(answer, START, samplers.Memory.empty(table, START), row, fresh)
        more = {'use_clipped_model_output': True} if sampler == 'ddim' else {}
        expected = theirs.step(channels_first(answer), int(row.t), channels_first(START), **more)
        np.testing.assert_allclose(new, channels_last(expected.prev_sample), atol=1e-5)
        np.testing.assert_allclose(x0, channels_last(expected.pred_original_sample), atol=1e-4)


def test_a_step_of_dpm_solver_equals_diffusers_at_every_kind_of_time():
    ours, theirs = both('dpmsolver++', LATENT)
    table = samplers.step_table(ours, 'dpmsolver++', 20)
    step = jax.jit(functools.partial(samplers.denoise_step, process=ours, sampling=ours.sampling('dpmsolver++')))
    for index in (1, 5, 12, 18, 19):
        theirs.set_timesteps(20)
        theirs.set_begin_index(index)
        theirs.lower_order_nums = 2
        theirs.model_outputs = [None, channels_first(FRESH[1])]
        row = jax.tree.map(lambda column, index=index: column[index], table)
        new, *_ = step(jnp.asarray(FRESH[0]), START, samplers.Memory((FRESH[1],)), row, None)
        expected = theirs.step(channels_first(FRESH[0]), int(row.t), channels_first(START)).prev_sample
        assert_close(np.asarray(new), channels_last(expected), 1e-5)


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
