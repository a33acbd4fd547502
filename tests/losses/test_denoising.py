"""The base stage's loss against PyTorch and diffusers on the same examples, noise and times; and what its network
sees."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from dreambooth_jax.config import ConfigError, ObjectiveConfig
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow
from dreambooth_jax.diffusion.times import TimeDistribution
from dreambooth_jax.families.image_space import PixelSpace
from dreambooth_jax.losses.denoising import EMPTY_PROMPT, Objective, denoise_examples, streams
from tests.support import small_stages as small
from tests.support.torch_reference import nchw, nhwc

EXAMPLES = 12


def reference(images, noise, t, embeddings, kernel, prediction_type, gamma):
    """The loss of diffusers' training script, per example, and the noisy images."""
    scheduler = diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2', prediction_type=prediction_type)
    x0, noise, t = nchw(images), nchw(noise), torch.from_numpy(np.array(t)).long()
    x_t = scheduler.add_noise(x0, noise, t)
    target = noise if prediction_type == 'epsilon' else scheduler.get_velocity(x0, noise, t)
    moved = torch.from_numpy(np.array(embeddings)).mean(dim=(1, 2)) + 1e-4 * t
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
    answer = torch.nn.functional.conv2d(x_t, weight, padding=1) + moved[:, None, None, None]
    loss = torch.nn.functional.mse_loss(answer, target, reduction='none').mean(dim=(1, 2, 3))
    if gamma is not None:
        snr = compute_snr(scheduler, t)
        capped = torch.stack([snr, gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
        loss = loss * capped / (snr if prediction_type == 'epsilon' else snr + 1)
    return loss.numpy(), nhwc(x_t)


@pytest.mark.parametrize('gamma', [None, 5.0])
@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction'])
def test_loss_equals_that_of_diffusers_on_the_same_examples_noise_and_times(prediction_type, gamma):
    data, examples, keys, params = small.frozen(), small.batch(EXAMPLES), small.keys(EXAMPLES), small.kernel()
    loss, parts, seen = small.run(
        small.pixel_loss,
        params,
        data,
        examples,
        keys,
        schedule=small.schedule(prediction_type),
        objective=Objective(min_snr_gamma=gamma),
    )
    time_keys, noise_keys, *_ = streams(keys, 4)
    t = noise_lib.sample_timesteps(time_keys, 0, 1000)
    noise = noise_lib.sample_noise(noise_keys, (8, 8, 3))
    images = data['images'][examples['image']].astype(np.float32) / 127.5 - 1
    embeddings = data['text']['encoder_hidden_states'][data['prompt_of'][examples['image']]]
    theirs, x_t = reference(images, noise, t, embeddings, params['unet']['kernel'], prediction_type, gamma)
    assert len(set(np.asarray(t).tolist())) > EXAMPLES // 2  # a weight for the whole batch would be seen
    np.testing.assert_array_equal(seen['t'], t)
    np.testing.assert_allclose(seen['x'], x_t, atol=1e-5)
    np.testing.assert_allclose(loss, theirs, rtol=1e-5)
    assert parts.keys() == {'denoising'} and loss.shape == (EXAMPLES,)


def test_loss_of_an_example_does_not_depend_on_the_examples_beside_it():
    settings = dict(schedule=small.schedule(), objective=Objective(random_flip=True, prompt_dropout=0.5))
    whole, _, _ = small.run(small.pixel_loss, examples=small.batch(6), **settings)
    some = np.array([4, 1], np.int32)
    part, _, _ = small.run(small.pixel_loss, examples={'image': some}, example_keys=small.keys(6)[some], **settings)
    np.testing.assert_allclose(part, whole[some], rtol=1e-6)


def learned(weight):
    return dict(schedule=small.schedule(variance_type='learned_range'), objective=Objective(variance_weight=weight))


def variance_gradient(weight):
    def total(params):
        loss, _ = small.pixel_loss(denoiser=small.denoiser, **learned(weight)).loss(
            params, jax.tree.map(jnp.asarray, small.frozen()), small.batch(), small.keys()
        )
        return loss.sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(small.kernel(outputs=6))['unet']['kernel'])
    return gradient[..., :3], gradient[..., 3:]


def test_variance_is_added_at_its_weight_and_logged_apart():
    loss, parts, _ = small.run(small.pixel_loss, small.kernel(outputs=6), **learned(0.25))
    assert parts.keys() == {'denoising', 'variance'}
    assert (np.asarray(parts['variance']) > 0).all()
    np.testing.assert_allclose(loss, parts['denoising'] + 0.25 * parts['variance'], rtol=1e-6)


def test_variance_of_weight_zero_is_left_out_and_has_no_gradient():
    loss, parts, _ = small.run(small.pixel_loss, small.kernel(outputs=6), **learned(0.0))
    assert parts.keys() == {'denoising'}
    np.testing.assert_array_equal(loss, parts['denoising'])
    mean, variance = variance_gradient(0.0)
    assert (variance == 0).all() and (mean != 0).all()


def test_variance_bound_moves_the_variance_alone():
    mean, variance = variance_gradient(1.0)
    assert (variance != 0).all()
    np.testing.assert_allclose(mean, variance_gradient(0.0)[0], rtol=1e-5)


@pytest.mark.parametrize('dropout', [0.0, 1.0])
def test_prompt_dropout_shows_the_empty_prompt(dropout):
    data = small.frozen()
    _, _, seen = small.run(
        small.pixel_loss, data=data, schedule=small.schedule(), objective=Objective(prompt_dropout=dropout)
    )
    prompts = data['prompt_of'] if dropout == 0 else [EMPTY_PROMPT] * 6
    np.testing.assert_array_equal(seen['text'], data['text']['encoder_hidden_states'][np.array(prompts)])


def test_prompt_dropout_takes_its_share_and_leaves_the_other_random_numbers_alone():
    data, examples = small.frozen(), small.batch(400)
    shown = {}
    for dropout in (0.0, 0.25):
        settings = dict(schedule=small.schedule(), objective=Objective(prompt_dropout=dropout))
        _, _, shown[dropout] = small.run(small.pixel_loss, data=data, examples=examples, **settings)
    empty_prompt = data['text']['encoder_hidden_states'][EMPTY_PROMPT]
    empty = (np.asarray(shown[0.25]['text']) == empty_prompt).all(axis=(1, 2))
    assert 0.17 < empty.mean() < 0.33  # 4 standard deviations
    np.testing.assert_array_equal(shown[0.25]['text'][~empty], shown[0.0]['text'][~empty])
    for name in ('x', 't'):
        np.testing.assert_array_equal(shown[0.25][name], shown[0.0][name])


def images_of(data, examples, keys, *, flip=False):
    return PixelSpace().sample(data, examples, keys, None, flip=flip)[0]


def test_images_span_minus_one_to_one():
    data = {'images': jnp.array([0, 255, 51], jnp.uint8).reshape(3, 1, 1, 1)}
    examples = {'image': jnp.array([1, 0, 2])}
    np.testing.assert_allclose(images_of(data, examples, small.keys(3)).ravel(), [1, -1, -0.6], atol=1e-7)


def test_flips_mirror_about_half_of_the_examples_left_to_right():
    data, examples = jax.tree.map(jnp.asarray, small.frozen()), small.batch(200)
    plain = np.asarray(images_of(data, examples, small.keys(200)))
    flipped = np.asarray(images_of(data, examples, small.keys(200), flip=True))
    same = (flipped == plain).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~same], plain[~same][:, :, ::-1])
    assert 0.35 < same.mean() < 0.65


def encode(params, tokens):
    """Any text of tokens: f32[B, L, WIDTH]."""
    return {'encoder_hidden_states': jnp.tanh(params['text_encoder']['table'][tokens['ids']])}


TABLE = np.random.default_rng(5).normal(size=(7, small.WIDTH)).astype(np.float32)


def test_looked_up_text_gives_the_loss_of_computed_text():
    settings = dict(schedule=small.schedule(), objective=Objective(prompt_dropout=0.3))
    data = small.frozen()
    params = {**small.kernel(), 'text_encoder': {'table': TABLE}}
    computed, _, _ = small.run(small.pixel_loss, params, data, encode=encode, **settings)
    data['text'] = jax.tree.map(np.asarray, encode(params, data['tokens']))
    looked_up, _, _ = small.run(small.pixel_loss, small.kernel(), data, **settings)
    np.testing.assert_allclose(computed, looked_up, rtol=1e-6)


def test_trained_text_encoder_has_a_gradient_from_the_prompts_it_reads_alone():
    data = small.frozen()
    data['tokens']['ids'] = np.minimum(data['tokens']['ids'], 5)  # token 6 is in no prompt
    stage = small.pixel_loss(denoiser=small.denoiser, schedule=small.schedule(), encode=encode)

    def total(params):
        return stage.loss(params, jax.tree.map(jnp.asarray, data), small.batch(), small.keys())[0].sum()

    gradient = jax.jit(jax.grad(total))({**small.kernel(), 'text_encoder': {'table': TABLE}})
    table = np.asarray(gradient['text_encoder']['table'])
    read = np.unique(data['tokens']['ids'][1:])  # prompt 0 is the empty one, which no example shows without dropout
    assert (table[read] != 0).all()
    assert (np.delete(table, read, axis=0) == 0).all()
    assert (np.asarray(gradient['unet']['kernel']) != 0).all()


def test_offset_noise_moves_whole_channels():
    seen = {}
    for offset in (0.0, 0.1):
        settings = dict(schedule=small.schedule(), objective=Objective(offset_noise=offset))
        _, _, seen[offset] = small.run(small.pixel_loss, **settings)
    moved = np.asarray(seen[0.1]['x']) - np.asarray(seen[0.0]['x'])
    np.testing.assert_array_equal(seen[0.1]['t'], seen[0.0]['t'])
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=1e-5)


def test_variance_that_is_not_trained_has_no_weight():
    assert Objective.from_settings(ObjectiveConfig(train_variance=False, variance_weight=0.5)).variance_weight == 0
    kept = Objective.from_settings(ObjectiveConfig(variance_weight=0.5, min_snr_gamma=5.0), random_flip=True)
    assert (kept.variance_weight, kept.min_snr_gamma, kept.random_flip) == (0.5, 5.0, True)


def test_times_are_drawn_as_the_settings_say():
    settings = ObjectiveConfig(time_distribution='logit_normal', time_mean=1.0, time_std=0.5, time_range=(0.1, 0.6))
    objective, schedule = Objective.from_settings(settings), small.schedule()
    _, _, seen = small.run(small.pixel_loss, schedule=schedule, objective=objective)
    times = TimeDistribution(kind='logit_normal', mean=1.0, std=0.5, range=(0.1, 0.6))
    time_keys, *_ = streams(small.keys(), 4)
    np.testing.assert_array_equal(seen['t'], schedule.sample_times(time_keys, times))
    assert np.asarray(seen['t']).min() >= 100 and np.asarray(seen['t']).max() < 600
    other = Objective.from_settings(ObjectiveConfig(time_distribution='mode', time_mode_scale=-0.5)).times
    assert other == TimeDistribution(kind='mode', mode_scale=-0.5)
    assert Objective.from_settings(ObjectiveConfig(time_shift=3.0)).times == TimeDistribution(shift=3.0)


def test_a_weighting_of_times_is_for_rectified_flows():
    objective = Objective.from_settings(ObjectiveConfig(time_weighting='cosmap'))
    objective.check(RectifiedFlow(), 'a flow')
    with pytest.raises(ConfigError) as error:
        objective.check(small.schedule(), 'this')
    assert str(error.value) == ("time_weighting is 'cosmap' but this is no rectified flow and has none; set it to None")


def test_a_dynamic_shift_is_that_of_the_size_of_the_images():
    objective = Objective.from_settings(ObjectiveConfig(time_distribution='logit_normal', dynamic_time_shift=True))
    process, keys, seen = RectifiedFlow(), jax.random.split(jax.random.key(0), 4), []

    def zero(x, t):
        seen.append(t)
        return jnp.zeros_like(x)

    for side in (4, 8):
        denoise_examples(zero, jnp.zeros((4, side, side, 2)), process, objective, keys, keys)
        k = process.of_shape((side, side)).training_shift()
        times = TimeDistribution(kind='logit_normal', shift=k)
        np.testing.assert_array_equal(seen[-1], process.sample_times(keys, times))
    assert (seen[1] > seen[0]).all()


def test_a_dynamic_shift_is_for_rectified_flows():
    objective = Objective.from_settings(ObjectiveConfig(dynamic_time_shift=True))
    objective.check(RectifiedFlow(), 'a flow')
    with pytest.raises(ConfigError) as error:
        objective.check(small.schedule(), 'this')
    assert str(error.value) == (
        'dynamic_time_shift is True but this is no rectified flow, whose shift depends on the size of images; set it '
        'to False, or give time_shift a number'
    )


def test_a_rectified_flow_is_weighted_and_masked_like_every_process():
    """A network that answers 0 has the error of the velocity itself; half of each image is masked."""
    process, keys = RectifiedFlow(shift=3.0), jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(jax.random.key(1), (4, 4, 4, 2))
    masks = jnp.zeros((4, 4, 4, 1)).at[:, :2].set(1.0)
    zero = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    t = process.sample_times(keys)
    velocity = noise_lib.sample_noise(keys, (4, 4, 2)) - images
    plain = jnp.mean(velocity[:, :2] ** 2, axis=(1, 2, 3))
    for options, weight in (
        ({}, 1.0),
        ({'time_weighting': 'sigma_sqrt'}, t**-2),
        ({'min_snr_gamma': 5.0}, t**2 * jnp.minimum(process.snr(t), 5.0)),
    ):
        loss, _ = denoise_examples(zero, images, process, Objective(**options), keys, keys, masks)
        np.testing.assert_allclose(loss, weight * plain, rtol=1e-5)
