"""Stages on latents: their loss against PyTorch and diffusers, from prompts and images on; what their UNet sees."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.families import image_space
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective, streams
from dreambooth_jax.losses.super_resolution import SuperResolutionLoss
from tests.support import small_stages as small
from tests.support import tiny_latent_pipelines as tiny
from tests.support.torch_reference import nchw, nhwc, quick_jit

SIZE, SCALE = 32, 4
PROMPTS = ['', 'a sks dog', 'a dog', 'a cat in a red hat']
PROMPT_OF = np.array([1, 1, 2, 3], np.int32)  # of the images: two of the subject, two of classes
IMAGE = np.array([0, 1, 2, 3, 0, 3], np.int32)  # of the examples
EXAMPLES = len(IMAGE)
KEYS = small.keys(EXAMPLES)
LEVELS = (1, 9)  # level 0 is not that of diffusers
_DRAW = np.random.default_rng(0)
IMAGES = _DRAW.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
MASKS = 255 * _DRAW.integers(0, 2, (4, SIZE, SIZE, 1), np.uint8)


@functools.cache
def pipeline(family):
    return read_pipeline(tiny.folder(family))


@functools.cache
def moments(family):
    """Of the images, and behind them of the mirrored ones, by our VAE."""
    network = pipeline(family).components['vae']
    return image_space.encode_images(network.apply, network.params, image_space.with_mirrored(IMAGES), batch_size=3)


def losses(family, *, trains_text=False, masks=False, **weights):
    """The loss of a family's stage, f32[ROWS], with the networks and the prompts of its folder."""
    opened = pipeline(family)
    read = opened.family.prompt_encoder(opened, size=SIZE)
    params = {'unet': opened.denoiser.params, **{part: net.params for part, net in opened.text_encoders.items()}}
    settings = dict(
        denoiser='unet',
        predict=functools.partial(opened.family.predict, opened.denoiser.apply),
        process=schedules.from_config(opened.scheduler),
        space=opened.space,
        objective=Objective(**weights),
    )
    data = opened.space.prepare(IMAGES, MASKS if masks else None, flip=True, pairs=family == 'upscaler')
    data = {**data, 'moments': moments(family), 'prompt_of': PROMPT_OF}
    if trains_text:
        data['tokens'], settings['encode'] = read.tokens(PROMPTS), read
    else:
        data['text'] = quick_jit(read)(params, read.tokens(PROMPTS))
    if family == 'upscaler':
        noising = schedules.from_config(opened.image_noising_scheduler)
        stage = SuperResolutionLoss(noising_process=noising, noise_level=LEVELS, factor=SCALE, **settings)
    else:
        stage = DenoisingLoss(**settings)
    loss, parts = quick_jit(stage.loss)(params, data, {'image': IMAGE}, KEYS)
    np.testing.assert_array_equal(parts['denoising'], loss)
    return loss


def random_numbers(family, random_flip):
    """What the examples sample, as torch takes it: time, noise, posterior noise, mirrored, level, low image's noise."""
    is_super_resolution = family == 'upscaler'
    time_keys, noise_keys, flip_keys, _, *others = streams(KEYS, 8)
    posterior_keys = others[3 if is_super_resolution else 0]
    side = SIZE // SCALE
    found = {
        't': torch.from_numpy(np.array(noise_lib.sample_timesteps(time_keys, 0, 1000))).long(),
        'noise': nchw(noise_lib.sample_noise(noise_keys, (side, side, 4))),
        'posterior_noise': nchw(noise_lib.sample_noise(posterior_keys, (side, side, 4))),
        'mirrored': np.array(jax.vmap(jax.random.bernoulli)(flip_keys)) & random_flip,
    }
    if is_super_resolution:
        levels = noise_lib.sample_timesteps(others[0], LEVELS[0], LEVELS[1] + 1)
        found['level'] = torch.from_numpy(np.array(levels)).long()
        found['low_noise'] = nchw(noise_lib.sample_noise(others[1], (side, side, 3)))
    return found


def mirrored_where(examples, mirrored):
    return np.where(mirrored[:, None, None, None], examples[:, :, ::-1], examples)


def text_of(pipe, family):
    """What diffusers tells the UNet of the examples' prompts."""
    prompts = [PROMPTS[prompt] for prompt in PROMPT_OF[IMAGE]]
    states, _, *pooled = pipe.encode_prompt(
        prompts, device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if family != 'sdxl':
        return {'encoder_hidden_states': states}
    numbers = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * EXAMPLES)  # sizes and crop: a whole image at its own size
    added = {'text_embeds': pooled[0], 'time_ids': numbers}
    return {'encoder_hidden_states': states, 'added_cond_kwargs': added}


@torch.no_grad()
def losses_of_diffusers(family, *, masks=False, min_snr_gamma=None, random_flip=False):
    """As diffusers' training scripts compute it, but for each example, and with the mean over what a mask keeps."""
    pipe, numbers = tiny.torch_pipeline(family), random_numbers(family, random_flip)
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    t, noise = numbers['t'], numbers['noise']
    images = nchw(mirrored_where(IMAGES[IMAGE].astype(np.float32) / 127.5 - 1, numbers['mirrored']))
    posterior = pipe.vae.encode(images).latent_dist
    latents = (posterior.mean + posterior.std * numbers['posterior_noise']) * pipe.vae.config.scaling_factor
    inputs, options = scheduler.add_noise(latents, noise, t), text_of(pipe, family)
    if family == 'upscaler':
        low = torch.nn.functional.interpolate(images, scale_factor=1 / SCALE, mode='area')
        low = pipe.low_res_scheduler.add_noise(low, numbers['low_noise'], numbers['level'])
        inputs, options['class_labels'] = torch.cat([inputs, low], dim=1), numbers['level']
    answer = pipe.unet(inputs, t, **options).sample
    predicts_velocity = scheduler.config.prediction_type == 'v_prediction'
    target = scheduler.get_velocity(latents, noise, t) if predicts_velocity else noise
    error = torch.nn.functional.mse_loss(answer, target, reduction='none')
    weight = torch.ones_like(error)
    if masks:
        weight = nchw(mirrored_where(MASKS[IMAGE].astype(np.float32) / 255, numbers['mirrored']))
        # A latent counts as much as its pixels do on average, told in 255 steps, rounded up.
        weight = torch.nn.functional.interpolate(weight, scale_factor=1 / SCALE, mode='area')
        weight = (torch.ceil(weight * 255 - 1e-3) / 255).expand_as(error)
    loss = (weight * error).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    if min_snr_gamma is not None:
        snr = compute_snr(scheduler, t)
        loss = loss * snr.clamp(max=min_snr_gamma) / (snr + 1 if predicts_velocity else snr)
    return loss.numpy()


@pytest.mark.parametrize(
    ('family', 'made', 'weighed'),
    [
        ('sd1', {}, dict(masks=True, min_snr_gamma=5.0, random_flip=True)),
        pytest.param('sd2', {}, {}, marks=pytest.mark.slow),
        pytest.param('sdxl', dict(trains_text=True), {}, marks=pytest.mark.slow),
        pytest.param(
            'upscaler',
            dict(trains_text=True),
            dict(masks=True, min_snr_gamma=5.0, random_flip=True),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_loss_equals_that_of_diffusers_on_the_same_examples_noise_and_times(family, made, weighed):
    """Instance and class examples; mirrored examples by the latents of the mirrored image."""
    numbers = random_numbers(family, True)
    assert set(numbers['mirrored'].tolist()) == {True, False} and len(set(numbers['t'].tolist())) == EXAMPLES
    ours, theirs = losses(family, **made, **weighed), losses_of_diffusers(family, **weighed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# What the network sees, on moments of no VAE.


def data_of(side=8, mirrored=False):
    rng = np.random.default_rng(0)
    count = small.IMAGES * (2 if mirrored else 1)
    return {
        **small.frozen(),
        'moments': rng.normal(size=(count, side, side, 8)).astype(np.float32),
        'low': rng.uniform(-1, 1, (count, side, side, 3)).astype(np.float32),
    }


STAGES = {
    'base': (small.latent_loss, {}),
    'super_resolution': (
        small.latent_enlarging_loss,
        dict(noising_schedule=schedules.make_schedule('linear'), noise_level=(3, 3)),
    ),
}


def latents_of(kind, data, keys, *, image=None, **weights):
    """The clean latents that the examples' errors are measured against, f32[B, 8, 8, 4]: by the loss's gradient."""
    stage_of, options = STAGES[kind]
    examples = small.batch(len(keys)) if image is None else {'image': np.array(image, np.int32)}
    stage = stage_of(
        denoiser=lambda params, *inputs, **labels: params['answer'],
        schedule=small.schedule('sample'),
        scaling_factor=0.5,
        objective=Objective(**weights),
        **options,
    )

    def total(answer):
        return stage.loss({'unet': {'answer': answer}}, jax.tree.map(jnp.asarray, data), examples, keys)[0].sum()

    answer = jnp.zeros((len(keys), 8, 8, 4))
    return -np.asarray(quick_jit(jax.grad(total))(answer)) * answer[0].size / 2


@pytest.mark.parametrize('kind', STAGES)
def test_every_step_and_slot_samples_its_latents_anew_and_the_same_ones_again(kind):
    data, same = data_of(), [2] * 6
    first = latents_of(kind, data, small.keys(at=0), image=same)
    np.testing.assert_array_equal(latents_of(kind, data, small.keys(at=0), image=same), first)
    later = latents_of(kind, data, small.keys(at=1), image=same)
    others = latents_of(kind, data, small.keys(seed=1), image=same)
    assert len({example.tobytes() for example in np.concatenate([first, later, others])}) == 18
    mean, log_variance = np.split(data['moments'][2], 2, axis=-1)
    noise = (np.concatenate([first, later, others]) / 0.5 - mean) / np.exp(log_variance / 2)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05  # 4608 random numbers


@pytest.mark.parametrize('kind', STAGES)
def test_mirrored_examples_have_latents_and_masks_of_their_own(kind):
    """The mirrored images stand behind the others: their latents are far away here."""
    data, keys = data_of(mirrored=True), small.keys(40)
    data['moments'][..., :4] = np.arange(12)[:, None, None, None]
    data['moments'][..., 4:] = -30.0
    image = np.arange(40) % small.IMAGES
    found = latents_of(kind, data, keys, image=image, random_flip=True)[:, 0, 0, 0] / 0.5
    mirrored = np.round(found) >= small.IMAGES
    np.testing.assert_allclose(found, image + small.IMAGES * mirrored, atol=1e-4)
    assert 8 < mirrored.sum() < 32
    masks = np.zeros((12, 8, 8, 1), np.uint8)
    masks[np.arange(12), np.arange(12) % 8, np.arange(12) // 8] = 255  # each keeps one latent, of its own
    kept = latents_of(kind, {**data, 'masks': masks}, keys, image=image, random_flip=True).any(axis=-1)
    index = np.round(found).astype(int)
    index, kept = index[index > 0], kept[index > 0]  # latents of image 0 are 0
    np.testing.assert_array_equal(kept, masks[index, ..., 0] > 0)


@functools.cache
def run(noise_level, examples=600):
    stage_of, options = STAGES['super_resolution']
    options = {**options, 'noise_level': noise_level, 'schedule': small.schedule('v_prediction')}
    return small.run(
        stage_of,
        small.kernel(inputs=7, outputs=4),
        data_of(),
        small.batch(examples),
        small.keys(examples),
        scaling_factor=0.5,
        **options,
    )[2]


def test_at_level_0_the_upscaler_is_given_the_low_image_itself():
    seen = run((0, 0))
    np.testing.assert_array_equal(seen['x'][:6, ..., 4:], data_of()['low'])
    np.testing.assert_array_equal(seen['class_labels'], 0)


def test_levels_are_the_class_labels_over_the_whole_range_and_independent_of_the_time():
    seen = run((2, 5))
    levels, times = np.asarray(seen['class_labels']), np.asarray(seen['t'])
    assert np.unique(levels, return_counts=True)[1].min() > 100 and set(levels.tolist()) == {2, 3, 4, 5}
    assert abs(np.corrcoef(levels, times)[0, 1]) < 0.16  # 4 standard deviations
    other = run((0, 0))
    np.testing.assert_array_equal(other['t'], times)
    np.testing.assert_array_equal(other['x'][..., :4], seen['x'][..., :4])


def test_the_noise_of_the_low_image_is_of_its_level_and_its_schedule():
    level = 300
    x = np.asarray(run((level, level))['x'])[:6]
    alphas_cumprod = float(diffusers.DDPMScheduler(beta_schedule='linear').alphas_cumprod[level])
    noise = (x[..., 4:] - alphas_cumprod**0.5 * data_of()['low']) / (1 - alphas_cumprod) ** 0.5
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1  # 1152 random numbers


def test_moments_are_those_of_diffusers_whatever_the_batch():
    with torch.no_grad():
        theirs = tiny.torch_pipeline('sd1').vae.encode(nchw(IMAGES.astype(np.float32) / 127.5 - 1)).latent_dist
    np.testing.assert_allclose(moments('sd1')[:4], nhwc(theirs.parameters), atol=1e-5)
