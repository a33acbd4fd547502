"""The loss of an autoencoder: its parts by hand, crops, and the independence of examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion.noise import sample_noise
from dreambooth_jax.losses.autoencoder import AutoencoderLoss
from dreambooth_jax.losses.denoising import streams
from tests.support import small_stages


def apply(params, x, method):
    """Halves the image by an average into three channels, with a log-variance; decodes by repeating."""
    if method == 'encode':
        small = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean(axis=(2, 4))
        return params['scale'] * jnp.concatenate([small, small - 1], axis=-1)
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


STAGE = AutoencoderLoss(component='vae', apply=apply, kl_weight=0.1, edge_weight=0.5)
PARAMS = {'vae': {'scale': jnp.float32(0.8)}}
FROZEN = {'images': small_stages.frozen()['images']}


def test_the_parts_are_those_of_the_definitions():
    batch, keys = small_stages.batch(), small_stages.keys()
    loss, parts = STAGE.loss(PARAMS, FROZEN, batch, keys)
    images = FROZEN['images'] / np.float32(127.5) - 1
    mean, log_variance = np.split(np.asarray(apply(PARAMS['vae'], images, 'encode')), 2, axis=-1)
    noise = sample_noise(streams(keys, 2)[1], mean.shape[1:])
    decoded = np.asarray(apply(PARAMS['vae'], mean + np.exp(log_variance / 2) * noise, 'decode'))
    error = decoded - images
    values = {
        'reconstruction': np.abs(error).mean(axis=(1, 2, 3)),
        'edges': np.abs(error[:, 1:] - error[:, :-1]).mean(axis=(1, 2, 3))
        + np.abs(error[:, :, 1:] - error[:, :, :-1]).mean(axis=(1, 2, 3)),
        # KL(N(mean, variance) || N(0, 1)), by Kingma & Welling 2014, appendix B.
        'kl': -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).mean(axis=(1, 2, 3)),
    }
    assert parts.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss, values['reconstruction'] + 0.5 * values['edges'] + 0.1 * values['kl'], rtol=1e-5)


def test_an_example_does_not_depend_on_the_others_and_crops_are_its_own():
    stage = dataclasses.replace(STAGE, crop=4)
    whole, _ = stage.loss(PARAMS, FROZEN, small_stages.batch(), small_stages.keys())
    alone, _ = stage.loss(PARAMS, FROZEN, {'image': np.int32([2])}, small_stages.keys()[2:3])
    assert float(alone[0]) == pytest.approx(float(whole[2]), rel=1e-6)
    seen = []

    def spying(params, x, method):
        seen.append(x.shape)
        return apply(params, x, method)

    dataclasses.replace(stage, apply=spying).loss(PARAMS, FROZEN, small_stages.batch(), small_stages.keys())
    assert seen == [(6, 4, 4, 3), (6, 2, 2, 3)]


@pytest.mark.slow
def test_everything_that_encodes_and_decodes_has_a_gradient():
    gradient = jax.grad(lambda params: STAGE.loss(params, FROZEN, small_stages.batch(), small_stages.keys())[0].sum())
    assert abs(float(gradient(PARAMS)['vae']['scale'])) > 1e-3
