"""The super-resolution stage is trained the way it is used: what its network sees, spied on, and its loss."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.data import low_resolution
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.losses.denoising import streams
from dreambooth_jax.losses.super_resolution import crop_examples, noisy_low_image
from tests.support import small_stages as small
from tests.support.torch_reference import nchw, nhwc

SIDE, FACTOR, EXAMPLES = 16, 4, 6
NOISING = schedules.make_schedule('linear')  # another one than the target's, so that a mix-up shows


def run(noise_level=(0, 0), data=None, examples=EXAMPLES, prediction_type='epsilon', **settings):
    return small.run(
        small.enlarging_loss,
        small.kernel(inputs=6),
        data or small.frozen(SIDE),
        small.batch(examples),
        small.keys(examples),
        schedule=small.schedule(prediction_type),
        noising_schedule=NOISING,
        factor=FACTOR,
        noise_level=noise_level,
        **settings,
    )


def high_images(data, examples=EXAMPLES):
    return data['images'][small.batch(examples)['image']].astype(np.float32) / 127.5 - 1


def brought_back(high):
    """By PyTorch: antialiased down, and up as IFSuperResolutionPipeline does."""
    low = torch.nn.functional.interpolate(nchw(high), size=SIDE // FACTOR, mode='area')
    return nhwc(torch.nn.functional.interpolate(low, size=SIDE, mode='bilinear', align_corners=True))


def test_conditioning_at_level_0_is_the_upsampled_low_image():
    data = small.frozen(SIDE)
    _, _, seen = run((0, 0), data)
    np.testing.assert_allclose(seen['x'][..., 3:], brought_back(high_images(data)), atol=1e-6)
    np.testing.assert_array_equal(seen['class_labels'], 0)


def test_conditioning_knows_nothing_that_the_low_image_does_not():
    """Two images that differ, but not in the mean of any 4 x 4 box, look the same to the conditioning alone."""
    data = small.frozen(SIDE)
    data['images'] = np.clip(data['images'], 40, 215)
    other = dict(data)
    checkers = 40 * (1 - 2 * (np.indices((SIDE, SIDE)).sum(axis=0) % 2))[..., None]
    other['images'] = (data['images'] + checkers).astype(np.uint8)
    ours, theirs = run((7, 7), data)[2], run((7, 7), other)[2]
    np.testing.assert_allclose(ours['x'][..., 3:], theirs['x'][..., 3:], atol=1e-5)
    assert np.abs(np.asarray(ours['x'] - theirs['x'])[..., :3]).max() > 0.1


def test_network_does_not_see_the_target_twice():
    data = small.frozen(SIDE)
    x = np.asarray(run((0, 0), data)[2]['x'])
    assert x.shape == (EXAMPLES, SIDE, SIDE, 6)
    target, condition = x[..., :3], x[..., 3:]
    for image in (target, high_images(data)):
        assert (np.abs(condition - image).max(axis=(1, 2, 3)) > 0.1).all()


def test_noise_of_the_conditioning_is_of_its_level_its_schedule_and_its_own():
    data, level = small.frozen(SIDE), 300
    x = np.asarray(run((level, level), data)[2]['x'])
    alphas_cumprod = float(diffusers.DDPMScheduler(beta_schedule='linear').alphas_cumprod[level])
    clean = brought_back(high_images(data))
    noise = (x[..., 3:] - alphas_cumprod**0.5 * clean) / (1 - alphas_cumprod) ** 0.5
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05  # 4608 random numbers
    _, noise_keys, *_ = streams(small.keys(EXAMPLES), 7)
    of_target = np.asarray(noise_lib.sample_noise(noise_keys, (SIDE, SIDE, 3)))
    assert abs(np.corrcoef(noise.ravel(), of_target.ravel())[0, 1]) < 0.06


def test_level_goes_in_as_the_class_label_over_its_whole_range_and_independent_of_the_time():
    seen = run((2, 5), examples=600)[2]
    levels, times = np.asarray(seen['class_labels']), np.asarray(seen['t'])
    assert levels.dtype == np.int32
    assert set(levels.tolist()) == {2, 3, 4, 5}
    assert np.unique(levels, return_counts=True)[1].min() > 100
    assert abs(np.corrcoef(levels, times)[0, 1]) < 0.16  # 4 standard deviations
    assert times.min() < 20 and times.max() > 980
    # The range of levels does not touch the time or the target's noise.
    other = run((0, 0), examples=600)[2]
    np.testing.assert_array_equal(other['t'], times)
    np.testing.assert_allclose(other['x'][..., :3], seen['x'][..., :3], atol=1e-6)  # of two compiled programs


def test_level_0_adds_nothing_at_all_beside_examples_of_other_levels():
    low = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 3)), jnp.float32)
    made = jax.jit(lambda low, level, keys: noisy_low_image(low, SIDE, NOISING, level, keys))(
        low, jnp.array([0, 1, 0]), small.keys(3)
    )
    clean = jax.jit(low_resolution.upsample, static_argnums=1)(low, SIDE)
    # Of two compiled programs, so up to rounding; the noise that the schedule begins with is thousands of times that.
    np.testing.assert_allclose(made[jnp.array([0, 2])], clean[jnp.array([0, 2])], atol=1e-6)
    assert (made[1] != clean[1]).all()


def offsets(side):
    """An image whose pixels say where they are: f32[1, side, side, 2]."""
    return jnp.asarray(np.stack(np.indices((side, side)), axis=-1)[None], jnp.float32)


def test_crops_lie_on_the_low_images_grid_anywhere_inside():
    examples, side = 300, 8
    crops = np.asarray(crop_examples(jnp.tile(offsets(SIDE), (examples, 1, 1, 1)), side, FACTOR, small.keys(examples)))
    assert crops.shape == (examples, side, side, 2)
    corners = crops[:, 0, 0]
    np.testing.assert_array_equal(crops - corners[:, None, None], np.tile(offsets(side), (examples, 1, 1, 1)))
    assert set(map(tuple, corners.tolist())) == {(y, x) for y in (0, 4, 8) for x in (0, 4, 8)}


def test_crop_of_the_whole_side_is_the_image():
    np.testing.assert_array_equal(crop_examples(offsets(SIDE), SIDE, FACTOR, small.keys(1)), offsets(SIDE))


def test_cropped_examples_are_conditioned_on_the_low_image_of_their_crop():
    data = small.frozen(SIDE)
    seen = run((0, 0), data, crop=8)[2]
    assert seen['x'].shape == (EXAMPLES, 8, 8, 6)
    *_, crop_keys = streams(small.keys(EXAMPLES), 7)
    crops = crop_examples(jnp.asarray(high_images(data)), 8, FACTOR, crop_keys)
    low = low_resolution.downsample(crops, FACTOR)
    np.testing.assert_allclose(seen['x'][..., 3:], low_resolution.upsample(low, 8), atol=1e-6)


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction'])
def test_loss_equals_that_of_torch_on_the_same_examples_noise_times_and_levels(prediction_type):
    data = small.frozen(SIDE)
    loss, _, seen = run((0, 50), data, prediction_type=prediction_type)
    time_keys, noise_keys, _, _, level_keys, augment_keys, _ = streams(small.keys(EXAMPLES), 7)
    t = torch.from_numpy(np.array(noise_lib.sample_timesteps(time_keys, 0, 1000))).long()
    level = torch.from_numpy(np.array(noise_lib.sample_timesteps(level_keys, 0, 51))).long()
    assert (level > 0).all()  # level 0 is not that of diffusers
    noise, augment = (nchw(noise_lib.sample_noise(keys, (SIDE, SIDE, 3))) for keys in (noise_keys, augment_keys))
    high = nchw(high_images(data))

    target_scheduler = diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2')
    condition = diffusers.DDPMScheduler(beta_schedule='linear').add_noise(
        nchw(brought_back(high_images(data))), augment, level
    )
    x = torch.cat([target_scheduler.add_noise(high, noise, t), condition], dim=1)
    np.testing.assert_allclose(seen['x'], nhwc(x), atol=1e-5)
    target = noise if prediction_type == 'epsilon' else target_scheduler.get_velocity(high, noise, t)
    prompts = torch.from_numpy(data['text']['encoder_hidden_states'][data['prompt_of']])
    moved = prompts.mean(dim=(1, 2)) + 1e-4 * t + 1e-3 * level
    weight = torch.from_numpy(small.kernel(inputs=6)['unet']['kernel'].transpose(3, 2, 0, 1))
    answer = torch.nn.functional.conv2d(x, weight, padding=1) + moved[:, None, None, None]
    np.testing.assert_allclose(loss, (answer - target).square().mean(dim=(1, 2, 3)), rtol=1e-5)
