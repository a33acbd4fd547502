"""Stable Diffusion from prompt to image, its upscaler behind it, against the pipelines of PyTorch's diffusers."""

import contextlib
import dataclasses
import functools
import re

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_latent_pipelines as tiny
from tests.support.generating import generate
from tests.support.torch_reference import nchw

PROMPTS = ['a red dog in the snow', 'A cat ']
NEGATIVE = 'a mug'
SIZE, LATENT_SCALE, UPSCALED, LEVEL = 32, 4, 128, 7
SEED, STEPS, GUIDANCE = 3, 10, 7.5
OPTIONS = dict(num_images=2, steps=STEPS, guidance_scale=GUIDANCE, seed=SEED, batch_size=4)
NUMBERS = np.array([0, 1, 0, 1])  # of the images: two of each prompt
THEIRS = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type='pt')
SCHEDULERS = {'ddim': diffusers.DDIMScheduler, 'dpmsolver++': diffusers.DPMSolverMultistepScheduler}
_UPSCALED_STREAM = 3  # what the second stage's keys are folded with


def keys_of(numbers):
    return text_to_image.image_keys(SEED, numbers)


def streams(keys):
    """Keys of the initial noise and of the low image's noise."""
    first, _, augment = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    return first, augment


def latents(keys, side):
    return nchw(samplers.initial_noise(streams(keys)[0], (side, side, 4)))


@functools.cache
def torch_pipeline(family, sampler='ddim', **options):
    shared = tiny.torch_pipeline(family)
    # What a class has by default is not handed on to another class by diffusers unless the configuration names it.
    config = {name: value for name, value in shared.scheduler.config.items() if name != '_use_default_values'}
    scheduler = SCHEDULERS[sampler].from_config(config)
    if family == 'sdxl':
        options |= dict(add_watermarker=False)
    made = type(shared)(**{**shared.components, 'scheduler': scheduler}, **options)
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def generated(family, sampler, negative):
    return generate(tiny.cascade(family), PROMPTS, sampler=sampler, negative_prompt=negative, **OPTIONS).base


def images_of_diffusers(family, sampler='ddim', *, size=SIZE, negative=None, **options):
    text = dict(prompt=PROMPTS, negative_prompt=negative and [negative] * len(PROMPTS), num_images_per_prompt=2)
    with torch.no_grad():
        return torch_pipeline(family, sampler)(
            **{**text, **options},
            latents=latents(keys_of(NUMBERS), size // LATENT_SCALE),
            height=size,
            width=size,
            **THEIRS,
        ).images


def assert_same_images(ours, theirs):
    theirs = np.round(theirs.numpy().transpose(0, 2, 3, 1) * 255)
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    assert theirs.std() > 20  # images, not one colour
    assert np.abs(ours - theirs).max() <= 2


def differ(one, other):
    return np.abs(one.astype(int) - other).max() > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ('family', 'sampler', 'negatives'),
    [('sd1', 'ddim', ['']), ('sd2', 'dpmsolver++', [NEGATIVE]), ('sdxl', 'ddim', ['', NEGATIVE])],
)
def test_ten_steps_generate_what_diffusers_generates_from_the_same_noise(family, sampler, negatives):
    for negative in negatives:
        theirs = images_of_diffusers(family, sampler, negative=negative or None)
        assert_same_images(generated(family, sampler, negative), theirs)


def test_latents_that_a_file_lets_be_clipped_are_told_of(caplog):
    """DDIMScheduler clips where the file says nothing; only Stable Diffusion 1.x's and 2.x's pipeline forbids it."""
    schedule = {**tiny.cascade('sdxl').base.scheduler, 'clip_sample': True}
    model = Cascade(dataclasses.replace(tiny.cascade('sdxl').base, scheduler=schedule))
    model.sampler('base', 3, 1.0, 'dpmsolver++')
    assert not caplog.records
    model.sampler('base', 3, 1.0, 'ddim')
    assert 'lets sampler ddim clip latents to +-1, as diffusers then does' in caplog.text


def programs(family, *kinds):
    """What the shared cascade has compiled of these kinds."""
    return {key: program for key, program in tiny.cascade(family).programs.items() if key[0] in kinds}


def text_of_diffusers(pipe, prompts, negative=None, **options):
    """{name: (text, negative text)} as our UNet takes it."""
    negative = negative and [negative] * len(prompts)
    with torch.no_grad():
        texts = pipe.encode_prompt(
            prompts,
            device='cpu',
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
            **options,
        )
    if len(texts) == 2:
        return {'encoder_hidden_states': texts}
    return {'encoder_hidden_states': texts[:2], 'text_embeds': texts[2:]}


def assert_same_text(ours, theirs):
    np.testing.assert_allclose(ours['encoder_hidden_states'], theirs['encoder_hidden_states'], atol=1e-5)
    if 'text_embeds' in theirs:
        np.testing.assert_allclose(ours['added_cond']['text_embeds'], theirs['text_embeds'], atol=1e-5)


@pytest.mark.parametrize('zeros', [True, False])
def test_xl_reads_the_empty_negative_prompt_as_its_folder_says(zeros):
    base = dataclasses.replace(tiny.cascade('sdxl').base, options={'force_zeros_for_empty_prompt': zeros})
    text = Cascade(base, programs=programs('sdxl', 'tokenizers')).encode(['', PROMPTS[0]])
    theirs = text_of_diffusers(torch_pipeline('sdxl', force_zeros_for_empty_prompt=zeros), PROMPTS[:1])
    assert_same_text(text, {name: torch.cat([both[1], both[0]]) for name, both in theirs.items()})
    assert np.any(text['encoder_hidden_states'][0]) != zeros


def test_skipped_layers_are_those_that_diffusers_skips(monkeypatch):
    """Of prompts: diffusers reads the negative prompt with all layers even then."""
    # diffusers 0.42 asks for a name that transformers 5 gave up.
    monkeypatch.setattr(transformers.CLIPTextModel, 'text_model', property(lambda model: model), raising=False)
    ours = Cascade(tiny.cascade('sd1').base, clip_skip=1, programs=programs('sd1', 'tokenizers')).encode(PROMPTS)
    theirs = text_of_diffusers(torch_pipeline('sd1'), PROMPTS, clip_skip=1)
    assert_same_text(ours, {name: both[0] for name, both in theirs.items()})
    whole = tiny.cascade('sd1').encode(PROMPTS)
    assert np.abs(ours['encoder_hidden_states'] - whole['encoder_hidden_states']).max() > 1e-3


@pytest.mark.slow
def test_xl_skips_layers_and_is_told_another_size():
    """A size that is not the model's own: other latents, and other numbers for the network.

    Not a smaller one: norms of single pixels amplify whatever differs.
    """
    cascade = Cascade(tiny.cascade('sdxl').base, size=48, clip_skip=1, programs=programs('sdxl', 'tokenizers'))
    ours = generate(cascade, PROMPTS, sampler='ddim', **OPTIONS).base
    assert_same_images(ours, images_of_diffusers('sdxl', size=48, clip_skip=1))
    moved = images_of_diffusers('sdxl', size=48, clip_skip=1, original_size=(32, 32), target_size=(32, 32))
    assert differ(ours, np.round(moved.numpy().transpose(0, 2, 3, 1) * 255))


@pytest.mark.slow
def test_an_image_depends_neither_on_batch_size_nor_on_its_neighbours():
    """The other way round, among others, in batches of eight."""
    options = {**OPTIONS, 'num_images': 4, 'batch_size': 8}
    whole = generate(tiny.cascade('sd1'), PROMPTS[::-1], sampler='ddim', **options).base
    np.testing.assert_allclose(whole[[4, 5, 0, 1]], generated('sd1', 'ddim', ''), atol=1)
    assert len({bytes(image) for image in whole}) == 8


def test_a_size_that_the_network_cannot_halve_is_refused():
    base = tiny.cascade('sd1').base
    sentence = f'config.data.resolution is 28 but the base stage of {base.name} generates multiples of 8'
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}$'):
        Cascade(base, size=28)


# The upscaler behind a base stage whose contrasts are so strong that it decodes beyond black and white.
LOUDER = 3.0


@functools.cache
def two_stages():
    base = tiny.cascade('sd1').base
    params = {
        name: value * LOUDER if name.startswith('decoder.conv_out.') else value
        for name, value in base.components['vae'].params.items()
    }
    base = base.with_components(vae=dataclasses.replace(base.components['vae'], params=params))
    second = read_pipeline(tiny.folder('upscaler'))
    return Cascade(base, second, programs=programs('sd1', 'decode', 'sampler', 'tokenizers'))


@functools.cache
def images():
    return generate(two_stages(), PROMPTS, sampler='ddim', negative_prompt=NEGATIVE, noise_level=LEVEL, **OPTIONS)


@contextlib.contextmanager
def made_louder(layer):
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    try:
        layer.load_state_dict({name: value * LOUDER for name, value in before.items()})
        yield
    finally:
        layer.load_state_dict(before)


@pytest.mark.slow
def test_the_upscaler_generates_what_diffusers_generates_behind_the_same_base_stage(monkeypatch):
    with made_louder(tiny.torch_pipeline('sd1').vae.decoder.conv_out):
        low = images_of_diffusers('sd1', negative=NEGATIVE)
    assert (low == 0).any() and (low == 1).any()
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _UPSCALED_STREAM))(keys_of(NUMBERS))
    noise = nchw(noise_lib.sample_noise(streams(keys)[1], (SIZE, SIZE, 3)))
    monkeypatch.setattr(pipeline_stable_diffusion_upscale, 'randn_tensor', lambda shape, **_: noise.reshape(shape))
    with torch.no_grad():
        high = torch_pipeline('upscaler')(
            [prompt for prompt in PROMPTS for _ in range(2)],
            image=low,
            noise_level=LEVEL,
            negative_prompt=[NEGATIVE] * 4,
            latents=latents(keys, SIZE),
            **THEIRS,
        ).images
    assert_same_images(images().base, low)
    assert_same_images(images().final, high)


@pytest.mark.slow
def test_the_upscaler_makes_four_pixels_of_one():
    assert two_stages().factor == 4
    assert images().base.shape == (4, SIZE, SIZE, 3) and images().final.shape == (4, UPSCALED, UPSCALED, 3)


@pytest.mark.parametrize(('options', 'highest'), [({'max_noise_level': 6}, 6), ({}, 9)])
def test_a_noise_level_that_the_upscaler_does_not_know_is_refused(options, highest):
    """Beyond max_noise_level, or beyond its table of levels."""
    second = dataclasses.replace(two_stages().super_resolution, options=options)
    cascade = Cascade(tiny.cascade('sd1').base, second)
    sentence = f'noise_level is {highest + 1}; it must be 0 to {highest}'
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}$'):
        generate(cascade, PROMPTS, sampler='ddim', **OPTIONS, noise_level=highest + 1)


@pytest.mark.parametrize('part', ['vae', 'text_encoder', 'tokenizer'])
def test_an_upscaler_without_a_part_is_named(part):
    second = two_stages().super_resolution
    if part == 'tokenizer':
        second = dataclasses.replace(second, tokenizers={})
    else:
        second = second.with_components(**{part: None})
    with pytest.raises(WeightsError, match=rf'upscaler has no {part}; give a complete pipeline\.$'):
        Cascade(tiny.cascade('sd1').base, second)
