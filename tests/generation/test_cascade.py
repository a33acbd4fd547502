"""The cascade against PyTorch diffusers' two pipelines, and what its images depend on."""

import dataclasses
import re

import diffusers
import jax
import numpy as np
import pytest
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.weights.errors import WeightsError
from tests.support import smallest_pipelines, tiny_pipelines
from tests.support.generating import generate
from tests.support.torch_reference import nchw

PROMPTS = ['a red dog in the snow', 'A cat ']
NEGATIVE = 'a mug'
SEED, STEPS, GUIDANCE, NOISE_LEVEL = 3, 10, 4.0, 40
OPTIONS = dict(
    num_images=2,
    steps=STEPS,
    guidance_scale=GUIDANCE,
    sampler='ddpm',
    seed=SEED,
    negative_prompt=NEGATIVE,
    noise_level=NOISE_LEVEL,
    batch_size=4,
)
QUICK = dict(steps=2, guidance_scale=1.0, sampler='ddim')


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load(tiny_pipelines.folder())


@pytest.fixture(scope='module')
def smallest():
    """Where nothing is compared with diffusers."""
    return Cascade.load(smallest_pipelines.folder('pixels'))


@pytest.fixture(scope='module')
def images(cascade):
    return generate(cascade, PROMPTS, **OPTIONS)


def noises(keys, size, steps, augments):
    """What our sampler generates from `keys`, in the order in which diffusers asks for it."""
    noise_keys, step_keys, augment_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    shape = (size, size, 3)
    yield samplers.initial_noise(noise_keys, shape)
    if augments:
        yield noise_lib.sample_noise(augment_keys, shape)
    for step in range(steps - 1):  # none in the last step
        yield noise_lib.sample_noise(jax.vmap(lambda key, at=step: jax.random.fold_in(key, at + 1))(step_keys), shape)


@pytest.fixture
def feed(monkeypatch):
    """Lets diffusers generate the given noise; the list is empty once it has generated all of it."""
    queue = []

    def given(shape, **_):
        generated = nchw(queue.pop(0))
        assert generated.shape == tuple(shape)
        return generated

    for module in (pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
        monkeypatch.setattr(module, 'randn_tensor', given)

    def fill(noise):
        queue[:] = list(noise)
        return queue

    return fill


def opened(kind, folder):
    absent = dict(safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False)
    pipe = kind.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_uint8(images):
    return text_to_image.to_uint8(np.asarray(images).transpose(0, 2, 3, 1))


def test_both_stages_generate_what_diffusers_generates_from_the_same_noise(images, feed):
    keys = text_to_image.image_keys(SEED, np.array([0, 1, 0, 1]))
    base = opened(diffusers.IFPipeline, tiny_pipelines.folder())
    left = feed(noises(keys, 8, STEPS, augments=False))
    options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type='pt')
    texts = dict(negative_prompt=[NEGATIVE] * 2, num_images_per_prompt=2, clean_caption=False)
    low = base(PROMPTS, **texts, **options).images
    assert not left
    text, negative = base.encode_prompt(PROMPTS, **texts)
    options |= dict(prompt_embeds=text, negative_prompt_embeds=negative)
    second = opened(diffusers.IFSuperResolutionPipeline, tiny_pipelines.folder() / 'super_resolution')
    left = feed(noises(jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys), 16, STEPS, augments=True))
    high = second(image=low, noise_level=NOISE_LEVEL, **options).images
    assert not left
    for ours, theirs in ((images.base, to_uint8(low)), (images.super_resolution, to_uint8(high))):
        assert theirs.std() > 20  # an image, not one colour
        assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_images_come_prompt_by_prompt_in_both_sizes(cascade, images):
    assert images.base.shape == (4, 8, 8, 3)
    assert images.super_resolution.shape == (4, 16, 16, 3)
    assert images.final is images.super_resolution
    assert images.base.dtype == images.final.dtype == np.uint8


def test_embeddings_are_those_of_diffusers(cascade):
    prompts = [f'a dog {word}' for word in 'in the snow on the beach with a red hat'.split()]
    theirs, _ = opened(diffusers.IFPipeline, tiny_pipelines.folder()).encode_prompt(
        prompts, do_classifier_free_guidance=False
    )
    ((name, ours),) = cascade.encode(prompts).items()  # more than are encoded at once
    assert name == 'encoder_hidden_states'
    assert ours.shape == (10, 77, 24) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.slow
def test_an_image_depends_neither_on_batch_size_nor_on_its_neighbours(smallest):
    whole = generate(smallest, PROMPTS, num_images=3, batch_size=6, **QUICK)
    padded = generate(smallest, PROMPTS, num_images=3, batch_size=4, **QUICK)
    alone = generate(smallest, PROMPTS[1:], num_images=3, batch_size=4, **QUICK)
    for stage in range(2):
        np.testing.assert_allclose(whole[stage], padded[stage], atol=1)
        np.testing.assert_allclose(whole[stage][3:], alone[stage], atol=1)
    assert np.abs(whole.base[0].astype(int) - whole.base[1]).max() > 20  # two seeds
    assert len({bytes(image) for image in whole.base}) == 6


def test_any_images_can_be_asked_for(smallest):
    whole = generate(smallest, PROMPTS, num_images=3, batch_size=4, **QUICK)
    requests = [(1, 2), (0, 0), (1, 0), (0, 2), (0, 1)]
    options = SamplingOptions(super_resolution=False, batch_size=4, **QUICK)
    generated = list(smallest.stream(PROMPTS, requests, options))
    assert [list(rows) for rows, _ in generated] == [[0, 1, 2, 3], [4]]
    assert all(images.super_resolution is None for _, images in generated)
    pixels = np.concatenate([images.base for _, images in generated])
    np.testing.assert_allclose(pixels, whole.base[[5, 0, 3, 2, 1]], atol=1)


def test_another_guidance_scale_compiles_nothing(smallest):
    guided = dict(QUICK, batch_size=2, num_images=2, guidance_scale=2.0, super_resolution=False)
    low, again = (generate(smallest, PROMPTS[:1], **guided) for _ in range(2))
    count = len(smallest.programs)
    compiled = [program._cache_size() for program in smallest.programs.values() if hasattr(program, '_cache_size')]
    high = generate(smallest, PROMPTS[:1], **{**guided, 'guidance_scale': 6.0})
    assert len(smallest.programs) == count
    assert compiled == [p._cache_size() for p in smallest.programs.values() if hasattr(p, '_cache_size')]
    assert np.array_equal(low.base, again.base) and np.any(low.base != high.base)


def test_other_parameters_change_the_images_and_compile_nothing(smallest):
    before = generate(smallest, PROMPTS[:1], batch_size=4, num_images=4, **QUICK)
    count = len(smallest.programs)
    compiled = [program._cache_size() for program in smallest.programs.values() if hasattr(program, '_cache_size')]
    random = tiny_pipelines.random_network
    second = random('unet', smallest_pipelines.PIXEL_UPSCALER, 31).params
    other = smallest.with_params(
        base={name: random(name, network.config, 30).params for name, network in smallest.base.components.items()},
        super_resolution={'unet': second},
    )
    after = generate(other, PROMPTS[:1], batch_size=4, num_images=4, **QUICK)
    assert len(other.programs) == count
    assert compiled == [p._cache_size() for p in smallest.programs.values() if hasattr(p, '_cache_size')]
    assert np.any(before.base != after.base)
    again = generate(smallest, PROMPTS[:1], batch_size=4, num_images=4, **QUICK)
    assert np.array_equal(before.final, again.final)
    changed = generate(
        smallest.with_params(super_resolution={'unet': second}), PROMPTS[:1], batch_size=4, num_images=4, **QUICK
    )
    assert np.array_equal(before.base, changed.base) and np.any(before.final != changed.final)


def test_guidance_one_ignores_the_negative_prompt(smallest):
    plain = generate(smallest, PROMPTS[:1], num_images=4, batch_size=4, **QUICK)
    told = generate(smallest, PROMPTS[:1], num_images=4, batch_size=4, negative_prompt=NEGATIVE, **QUICK)
    assert np.array_equal(plain.base, told.base)


@pytest.mark.slow
def test_the_second_stage_has_steps_and_guidance_of_its_own(smallest):
    options = {**QUICK, 'num_images': 4, 'batch_size': 4, 'negative_prompt': NEGATIVE}
    plain = generate(smallest, PROMPTS[:1], **options)
    guided = generate(smallest, PROMPTS[:1], super_resolution_guidance_scale=3.0, **options)
    longer = generate(smallest, PROMPTS[:1], super_resolution_steps=3, **options)
    for other in (guided, longer):
        assert np.array_equal(plain.base, other.base) and np.any(plain.final != other.final)


def test_a_second_stage_with_a_text_encoder_uses_it(cascade):
    own = tiny_pipelines.super_resolution().with_components(**tiny_pipelines.base(1).text_encoders)
    both, other = Cascade(tiny_pipelines.base(), own), Cascade(tiny_pipelines.base(1))

    def states(cascade, *stage):
        return cascade.encode(PROMPTS, *stage)['encoder_hidden_states']

    assert np.array_equal(states(both), states(cascade))
    np.testing.assert_allclose(states(both, SUPER_RESOLUTION), states(other), atol=1e-5)
    assert np.array_equal(states(cascade, SUPER_RESOLUTION), states(cascade))


def test_the_second_stage_can_be_left_out_or_given():
    folder = tiny_pipelines.folder()
    assert Cascade.load(folder, super_resolution_model='none').super_resolution is None
    given = Cascade.load(folder, super_resolution_model=folder / 'super_resolution')
    assert given.super_resolution.folder == folder / 'super_resolution'
    assert (given.factor, given.super_resolution_size) == (2, 16)


def test_stages_in_the_wrong_place_are_named():
    folder = tiny_pipelines.folder()
    second = folder / 'super_resolution'
    with pytest.raises(WeightsError) as error:
        Cascade.load(second)
    assert str(error.value) == (
        f'{second}, an IFSuperResolutionPipeline, is a second stage, but model must be a base stage; this one can be '
        f'given as super_resolution_model.'
    )
    with pytest.raises(WeightsError) as error:
        Cascade.load(folder, super_resolution_model=folder)
    assert str(error.value) == (
        f'{folder}, an IFPipeline, is a base stage, but super_resolution_model must be a second stage; this one can be '
        f'given as model.'
    )


def test_a_missing_or_unfitting_part_is_named():
    base, second = tiny_pipelines.base(), tiny_pipelines.super_resolution()
    with pytest.raises(WeightsError, match=r'^this IFPipeline has no text_encoder; give a complete pipeline\.$'):
        Cascade(base.with_components(text_encoder=None))
    with pytest.raises(WeightsError, match=r'^this IFPipeline has no tokenizer; give a complete pipeline\.$'):
        Cascade(dataclasses.replace(base, tokenizers={}))
    denoiser = dataclasses.replace(second.denoiser, config={**second.denoiser.config, 'encoder_hid_dim': 512})
    with pytest.raises(WeightsError) as error:
        Cascade(base, second.with_components(unet=denoiser))
    assert str(error.value) == (
        'this IFSuperResolutionPipeline reads text embeddings of width 512 but the text encoder of this IFPipeline '
        'writes 24; give the second stage that belongs to this model.'
    )
    denoiser = dataclasses.replace(second.denoiser, config={**second.denoiser.config, 'sample_size': 20})
    with pytest.raises(
        WeightsError, match=r'generates 20 px, no multiple of the 8 px of this IFPipeline; give the second'
    ):
        _ = Cascade(base, second.with_components(unet=denoiser)).factor


@pytest.mark.parametrize(
    'options, sentence',
    [
        ({'steps': 2000}, 'steps is 2000; 1 to 1000 denoise steps are possible.'),
        (
            {'sampler': 'plms'},
            "sampler is 'plms'; allowed: ddpm, ddim, dpmsolver++, euler, euler_ancestral, heun, unipc.",
        ),
        ({'noise_level': 1000}, 'noise_level is 1000; it must be 0 to 999'),
        ({'num_images': 0}, '2 prompts with 0 images each; both must be at least 1'),
    ],
)
def test_impossible_options_are_one_sentence(cascade, options, sentence):
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}$'):
        generate(cascade, PROMPTS, **{**QUICK, **options})


def test_images_that_are_no_numbers_are_an_error(cascade):
    params = {name: np.full_like(value, np.nan) for name, value in cascade.base.denoiser.params.items()}
    sentence = 'an image came out as NaN; the weights that generate it hold NaN or make numbers beyond bounds: take an '
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}earlier checkpoint, or another file of the model$'):
        generate(cascade.with_params(base={'unet': params}), PROMPTS, **OPTIONS)


def test_an_unsupported_scheduler_is_named():
    odd = dataclasses.replace(tiny_pipelines.base(), scheduler={'_class_name': 'EulerScheduler'})
    with pytest.raises(WeightsError, match=r"^the scheduler of this IFPipeline is not supported: .*'EulerScheduler'"):
        generate(Cascade(odd), PROMPTS, **QUICK)
