"""FLUX.2's autoencoder and its latents against diffusers' on random weights and statistics, and its errors."""

import functools
import inspect
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional, vae_flux2
from dreambooth_jax.models.vae_flux2 import AutoencoderKLFlux2
from dreambooth_jax.weights import aliases, mapping
from tests.support.torch_reference import (
    assert_near,
    assert_same_gradients,
    gradients,
    nchw,
    nhwc,
    quick_jit,
    randomise,
    to_ours,
)

CONFIG = {
    '_class_name': 'AutoencoderKLFlux2',
    'batch_norm_eps': 0.01,
    'block_out_channels': [8, 16],
    'down_block_types': 2 * ['DownEncoderBlock2D'],
    'force_upcast': True,
    'latent_channels': 4,
    'layers_per_block': 1,
    'norm_num_groups': 4,
    'patch_size': [2, 2],
    'up_block_types': 2 * ['UpDecoderBlock2D'],
}
Klein = diffusers.Flux2KleinPipeline


@functools.cache
def both():
    """The same network, images and latents on both sides, run forward and backward once."""
    options = {key: value for key, value in CONFIG.items() if key not in ('_class_name', 'force_upcast')}
    theirs = randomise(diffusers.AutoencoderKLFlux2(**options), seed=1, std=0.1)
    rng = np.random.default_rng(2)
    theirs.bn.running_mean.copy_(torch.from_numpy(rng.normal(size=16)))
    theirs.bn.running_var.copy_(torch.from_numpy(rng.uniform(0.1, 2, size=16)))
    pixels = rng.uniform(-1, 1, size=(2, 8, 12, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 4, 6, 4)).astype(np.float32)
    moments, image = theirs.encode(nchw(pixels)).latent_dist.parameters, theirs.decode(nchw(latents)).sample
    cotangents = [rng.normal(size=nhwc(output).shape).astype(np.float32) for output in (moments, image)]
    sum((output * nchw(one)).sum() for output, one in zip((moments, image), cotangents, strict=True)).backward()

    model = abstract()
    apply, _ = functional.split(model)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = mapping.load(model, tensors, ignored=aliases.FLUX2_VAE_IGNORED)
    statistics = {'bn.running_mean', 'bn.running_var'}
    for name, value in to_ours(theirs).items():
        np.testing.assert_array_equal(params[name], value)
    assert params.keys() == to_ours(theirs).keys() | statistics

    def product(params, pixels, latents):
        ours = apply(params, pixels, method='encode'), apply(params, latents, method='decode')
        return sum(jnp.sum(output * one) for output, one in zip(ours, cotangents, strict=True)), ours

    (_, ours), gradient = quick_jit(jax.value_and_grad(product, has_aux=True))(params, pixels, latents)
    return SimpleNamespace(
        theirs=theirs,
        model=model,
        apply=apply,
        params=params,
        tensors=tensors,
        latents=latents,
        outputs=list(zip(ours, (nhwc(moments), nhwc(image)), strict=True)),
        gradient=({name: value for name, value in gradient.items() if name not in statistics}, gradients(theirs)),
    )


def abstract():
    return nnx.eval_shape(lambda: AutoencoderKLFlux2(CONFIG, rngs=functional.Keys(0)))


def test_it_encodes_and_decodes_as_diffusers():
    for ours, theirs in both().outputs:
        assert ours.dtype == jnp.float32
        assert np.abs(theirs).max() > 0.1
        assert_near(ours, theirs, 1e-5)


def test_gradients_match_diffusers():
    assert_same_gradients(*both().gradient)


def test_latents_are_packed_and_normalised_as_the_pipeline_does():
    run = both()
    expected = Klein._patchify_latents(nchw(run.latents))
    packed = vae_flux2.pack(run.latents)
    np.testing.assert_array_equal(packed, nhwc(expected))
    np.testing.assert_array_equal(vae_flux2.unpack(packed), run.latents)
    statistics = run.theirs.bn
    mean, deviation = statistics.running_mean, torch.sqrt(statistics.running_var + run.theirs.config.batch_norm_eps)
    normal = run.apply(run.params, packed, method='normalise')
    expected = (expected - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)
    assert_near(normal, nhwc(expected), 1e-6)
    assert_near(run.apply(run.params, normal, method='denormalise'), packed, 1e-6)


def test_statistics_are_written_under_their_names():
    run = both()
    written = mapping.export(run.model, run.params)
    assert written.keys() == run.tensors.keys() - {'bn.num_batches_tracked'}
    assert all(np.array_equal(value, run.tensors[name]) for name, value in written.items())


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.AutoencoderKLFlux2.__init__)
    assert {name: p.default for name, p in signature.parameters.items() if name != 'self'} == vae_flux2.DEFAULTS
    assert vae_flux2.size_divisor({}) == 16 and vae_flux2.size_divisor(CONFIG) == 4


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'patch_size': [1, 1]}, 'vae config: patch_size is [1, 1] but must be [2, 2]'),
        ({'batch_norm_eps': 0}, 'vae config: batch_norm_eps is 0 but must be a positive number'),
        ({'block_out_channels': [8]}, None),
        (
            {'decoder_block_out_channels': [8, 8]},
            'vae config: decoder_block_out_channels is [8, 8] but must be None: no other value is implemented',
        ),
    ],
)
def test_unsupported_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        AutoencoderKLFlux2({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == (
        sentence
        or "vae config: down_block_types is ['DownEncoderBlock2D', 'DownEncoderBlock2D'] but must be a list of 1 "
        'entries, one per entry of block_out_channels'
    )


def test_a_scaling_factor_is_no_key_of_it():
    with pytest.raises(ValueError, match="^vae config: unknown key 'scaling_factor'; it must be one of .'act_fn', "):
        AutoencoderKLFlux2({**CONFIG, 'scaling_factor': 0.18215}, rngs=functional.Keys(0))
