"""The autoencoder against diffusers' on random weights, its latents, and its errors."""

import functools
import inspect
import math
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from dreambooth_jax.models import functional, vae
from dreambooth_jax.models.vae import AutoencoderKL
from tests.support.torch_reference import (
    assert_same_gradients,
    gradients,
    largest_relative_difference,
    nchw,
    nhwc,
    quick_jit,
    randomise,
    to_ours,
)

CONFIGS = {
    'stable_diffusion': {
        '_class_name': 'AutoencoderKL',
        'act_fn': 'silu',
        'block_out_channels': [8, 16, 16],
        'down_block_types': 3 * ['DownEncoderBlock2D'],
        'in_channels': 3,
        'latent_channels': 4,
        'layers_per_block': 2,
        'norm_num_groups': 4,
        'out_channels': 3,
        'sample_size': 8,
        'up_block_types': 3 * ['UpDecoderBlock2D'],
    },
    # The values that no published autoencoder here has but that the blocks allow.
    'other_values': {
        'act_fn': 'gelu',
        'block_out_channels': [8, 24],
        'down_block_types': 2 * ['DownEncoderBlock2D'],
        'in_channels': 4,
        'latent_channels': 2,
        'mid_block_add_attention': False,
        'norm_num_groups': 8,
        'out_channels': 1,
        'sample_size': [8, 8],
        'scaling_factor': 0.5,
        'up_block_types': 2 * ['UpDecoderBlock2D'],
        'use_post_quant_conv': False,
        'use_quant_conv': False,
    },
}


@functools.cache
def both(name):
    """The same network, images and latents on both sides, run forward and backward once."""
    config = CONFIGS[name]
    theirs = diffusers.AutoencoderKL(**{k: v for k, v in config.items() if not k.startswith('_')})
    randomise(theirs, seed=1, std=0.1)
    factor = vae.size_divisor(config)
    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, size=(2, 8, 12, config['in_channels'])).astype(np.float32)
    latents = rng.normal(size=(2, 8 // factor, 12 // factor, config['latent_channels'])).astype(np.float32)

    inputs = nchw(pixels).requires_grad_(), nchw(latents).requires_grad_()
    moments, image = theirs.encode(inputs[0]).latent_dist.parameters, theirs.decode(inputs[1]).sample
    cotangents = [rng.normal(size=nhwc(output).shape).astype(np.float32) for output in (moments, image)]
    sum((output * nchw(one)).sum() for output, one in zip((moments, image), cotangents, strict=True)).backward()

    apply, abstract = functional.abstract(lambda: AutoencoderKL(config, rngs=functional.Keys(0)))
    params = to_ours(theirs)
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params, pixels, latents):
        ours = apply(params, pixels, method='encode'), apply(params, latents, method='decode')
        return sum(jnp.sum(output * one) for output, one in zip(ours, cotangents, strict=True)), ours

    run = quick_jit(jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True))
    (_, ours), (of_params, *of_inputs) = run(params, pixels, latents)
    return SimpleNamespace(
        apply=apply,
        params=params,
        inputs=(pixels, latents),
        outputs=list(zip(ours, (nhwc(moments), nhwc(image)), strict=True)),
        params_gradient=(of_params, gradients(theirs)),
        input_gradients=list(zip(of_inputs, (nhwc(value.grad) for value in inputs), strict=True)),
    )


@pytest.mark.parametrize('name', ['stable_diffusion', pytest.param('other_values', marks=pytest.mark.slow)])
def test_vae_encodes_and_decodes_as_diffusers(name):
    for ours, theirs in both(name).outputs:
        assert ours.dtype == jnp.float32
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', CONFIGS)
def test_vae_gradients_match_diffusers(name):
    run = both(name)
    assert all(largest_relative_difference(*pair) < 1e-3 for pair in run.input_gradients)
    assert_same_gradients(*run.params_gradient)


def test_latents_are_sampled_as_diffusers_samples_them():
    rng = np.random.default_rng(3)
    # Log-variances far outside the range that they are clipped to, on both sides.
    moments = rng.normal(size=(2, 3, 5, 8)).astype(np.float32) * [1, 1, 1, 1, 1, 1, 30, 60]
    noise = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    theirs = DiagonalGaussianDistribution(nchw(moments.astype(np.float32)))
    expected = 0.13025 * (nhwc(theirs.mean) + nhwc(theirs.std) * noise)
    np.testing.assert_allclose(vae.sample_latents(moments, noise, 0.13025), expected, rtol=1e-5)
    np.testing.assert_allclose(vae.latent_mode(moments, 0.13025), 0.13025 * nhwc(theirs.mode()), rtol=1e-6)


def test_latents_are_shifted_before_they_are_scaled():
    moments, noise = np.random.default_rng(3).normal(size=(2, 1, 2, 2, 8)).astype(np.float32)
    noise = noise[..., :4]
    shift, scale = 0.1159, 0.3611
    expected = (vae.sample_latents(moments, noise, 1.0) - shift) * scale
    np.testing.assert_allclose(vae.sample_latents(moments, noise, scale, shift), expected, rtol=1e-5)
    np.testing.assert_allclose(vae.latent_mode(moments, scale, shift), (moments[..., :4] - shift) * scale, rtol=1e-5)


def test_latents_are_float32_whatever_the_moments_are():
    moments, noise = jnp.zeros((1, 2, 2, 8), jnp.bfloat16), jnp.ones((1, 2, 2, 4), jnp.bfloat16)
    assert vae.sample_latents(moments, noise, 0.18215).dtype == vae.latent_mode(moments, 0.18215).dtype == jnp.float32


def test_scale_and_size_of_latents_are_those_of_the_published_models():
    sides = {'down_block_types': 4 * ['DownEncoderBlock2D'], 'up_block_types': 4 * ['UpDecoderBlock2D']}
    stable_diffusion = {**CONFIGS['stable_diffusion'], **sides, 'block_out_channels': [8, 16, 16, 16]}
    assert vae.scaling_factor(stable_diffusion) == 0.18215
    assert vae.scaling_factor({**stable_diffusion, 'scaling_factor': 0.13025}) == 0.13025
    assert vae.shift_factor(stable_diffusion) == vae.shift_factor({**stable_diffusion, 'shift_factor': None}) == 0
    assert vae.shift_factor({**stable_diffusion, 'shift_factor': 0.1159}) == 0.1159
    assert vae.size_divisor(stable_diffusion) == 8
    assert vae.size_divisor(CONFIGS['stable_diffusion']) == 4  # the upscaler's three blocks


@pytest.mark.slow
def test_vae_in_bfloat16_stays_near_float32_with_float32_output():
    run = both('stable_diffusion')
    apply, abstract = functional.abstract(
        lambda: AutoencoderKL(CONFIGS['stable_diffusion'], dtype=jnp.bfloat16, rngs=functional.Keys(0))
    )
    assert {value.dtype for value in abstract.values()} == {jnp.dtype('float32')}
    output = quick_jit(functools.partial(apply, method='decode'))(run.params, run.inputs[1])
    assert output.dtype == jnp.float32
    assert 1e-5 < largest_relative_difference(output, run.outputs[1][1]) < 0.1


@pytest.mark.parametrize(
    'asked, change, taken',
    [
        ('float16', {}, 'float32'),  # diffusers' default
        ('float16', {'force_upcast': True}, 'float32'),
        ('float16', {'force_upcast': False}, 'float16'),
        ('bfloat16', {'force_upcast': True}, 'bfloat16'),
    ],
)
def test_force_upcast_takes_float32_instead_of_float16(asked, change, taken):
    config = {**CONFIGS['other_values'], **change}
    apply, params = functional.abstract(lambda: AutoencoderKL(config, dtype=jnp.dtype(asked), rngs=functional.Keys(0)))
    program = str(jax.make_jaxpr(functools.partial(apply, method='decode'))(params, jnp.zeros((1, 2, 2, 2))))
    convolutions = [line for line in program.splitlines() if '= conv_general_dilated' in line]
    short = {'float32': 'f32', 'float16': 'f16', 'bfloat16': 'bf16'}[taken]
    assert convolutions and all(f':{short}[' in line for line in convolutions)


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.AutoencoderKL.__init__)
    theirs = {name: p.default for name, p in signature.parameters.items() if name != 'self'}
    assert {**theirs, 'sample_size': None} == vae.DEFAULTS  # which only tiling reads


@pytest.mark.parametrize(
    'change, sentence',
    [
        (
            {'down_block_types': 2 * ['DownEncoderBlock2D'] + ['AttnDownEncoderBlock2D']},
            "vae config: down_block_types[2] is 'AttnDownEncoderBlock2D' but must be 'DownEncoderBlock2D': "
            'no other block is implemented',
        ),
        (
            {'up_block_types': ['UpDecoderBlock2D']},
            "vae config: up_block_types is ['UpDecoderBlock2D'] but must be a list of 3 entries, "
            'one per entry of block_out_channels',
        ),
        (
            {'block_out_channels': [8, 18, 16]},
            'vae config: block_out_channels[1] is 18 but must be a positive multiple of norm_num_groups, which is 4',
        ),
        ({'block_out_channels': 8}, 'vae config: block_out_channels is 8 but must be a list with one entry per block'),
        ({'layers_per_block': [1, 2]}, 'vae config: layers_per_block is [1, 2] but must be a positive integer'),
        ({'latent_channels': True}, 'vae config: latent_channels is True but must be a positive integer'),
        ({'norm_num_groups': 0}, 'vae config: norm_num_groups is 0 but must be a positive integer'),
        ({'scaling_factor': None}, 'vae config: scaling_factor is None but must be a positive number'),
        ({'shift_factor': '0.1'}, "vae config: shift_factor is '0.1' but must be a number or None"),
        ({'shift_factor': math.nan}, 'vae config: shift_factor is nan but must be a number or None'),
        ({'latents_mean': [0.1]}, 'vae config: latents_mean is [0.1] but must be None: no other value is implemented'),
        ({'use_quant_conv': 'no'}, "vae config: use_quant_conv is 'no' but must be one of (False, True)"),
        (
            {'act_fn': 'elu'},
            "vae config: act_fn is 'elu' but must be one of ('gelu', 'mish', 'relu', 'silu', 'swish')",
        ),
    ],
)
def test_unsupported_vae_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        AutoencoderKL({**CONFIGS['stable_diffusion'], **change}, rngs=functional.Keys(0))
    assert str(error.value) == sentence


def test_unknown_vae_key_is_named_in_one_sentence():
    with pytest.raises(ValueError, match="^vae config: unknown key 'dropout'; it must be one of .'act_fn', "):
        AutoencoderKL({**CONFIGS['stable_diffusion'], 'dropout': 0.1}, rngs=functional.Keys(0))


def test_inputs_that_do_not_fit_are_named_in_one_sentence():
    run = both('stable_diffusion')
    pixels, latents = run.inputs
    wanted = r'\[B, H, W, 3\] with H and W multiples of 4'
    with pytest.raises(ValueError, match=rf'^vae: pixels have shape \(2, 8, 10, 3\) but must be {wanted}$'):
        run.apply(run.params, pixels[:, :, :10], method='encode')
    with pytest.raises(ValueError, match=r'^vae: latents have shape \(2, 2, 3, 3\) but must be \[B, H, W, 4\]$'):
        run.apply(run.params, latents[..., :3], method='decode')


def upsampled(latents):
    """In a decoder's place: what every latent becomes depends on it alone."""
    return jnp.repeat(jnp.repeat(latents[..., :3], 2, axis=1), 2, axis=2)


@pytest.mark.parametrize('side', [8, 9, 13, 14, 15, 20, 31])
def test_tiles_join_without_a_seam(side):
    latents = np.random.default_rng(0).normal(size=(2, side, 11, 4)).astype(np.float32)
    image = vae.decode_in_tiles(upsampled, latents, scale=2, tile=8)
    np.testing.assert_allclose(image, upsampled(latents), atol=1e-6)


def test_tiles_overlap_by_a_quarter_and_fade_into_each_other():
    starts, weights = vae._tiles(side=14, tile=8, scale=2)
    assert starts.tolist() == [0, 6] and weights.shape == (2, 16)
    np.testing.assert_allclose(weights[0], [*12 * [1], 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(weights[1], [0, 0.25, 0.5, 0.75, *12 * [1]])


def test_an_image_of_one_tile_is_decoded_as_it_is():
    latents = np.ones((1, 8, 8, 4), np.float32)
    seen = []
    vae.decode_in_tiles(lambda x: seen.append(x) or x, latents, scale=2, tile=8)
    assert len(seen) == 1 and seen[0] is latents
