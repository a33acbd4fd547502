"""Every family generates with quantised kernels, and learns beside them, nearly what it does with its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import LoraConfig
from dreambooth_jax.diffusion import noise
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.models import lora, quantised
from tests.support import (
    smallest_pipelines,
    tiny_flux,
    tiny_klein,
    tiny_latent_pipelines,
    tiny_sd3,
    tiny_z_image,
)
from tests.support.generating import generate
from tests.support.torch_reference import quick_jit

# Name -> folder, size and stage.
MODELS = {
    'deepfloyd_if': lambda: (smallest_pipelines.folder('pixels'), None, BASE),
    'deepfloyd_if, second stage': lambda: (smallest_pipelines.folder('pixels'), None, SUPER_RESOLUTION),
    'sd1': lambda: (smallest_pipelines.folder('latents'), None, BASE),
    'sdxl': lambda: (tiny_latent_pipelines.folder('sdxl'), None, BASE),
    'upscaler': lambda: (smallest_pipelines.folder('latents'), None, SUPER_RESOLUTION),
    'sd3': lambda: (tiny_sd3.folder(), tiny_sd3.SIZE, BASE),
    'flux': lambda: (tiny_flux.folder(), tiny_flux.SIZE, BASE),
    'klein': lambda: (tiny_klein.folder(), tiny_klein.SIZE, BASE),
    'z_image': lambda: (tiny_z_image.folder(), tiny_z_image.SIZE, BASE),
}

# Layers know the kind, not families: a network of convolutions and one of transformer blocks are enough.
IN_EVERY_KIND = 'deepfloyd_if', 'flux'


def prediction(cascade, stage, apply, params):
    """What the denoiser predicts for noise under two prompts, and the gradient of its square."""
    pipeline = getattr(cascade, stage)
    side = (cascade.base_size if stage == BASE else cascade.super_resolution_size) // pipeline.space.scale
    keys = jax.random.split(jax.random.key(0), 2)
    x = noise.sample_noise(keys, (side, side, pipeline.space.channels))
    times = pipeline.family.process(pipeline).sample_times(keys)
    conditioning = dict(cascade.encode(['a dog', 'a red hat'], stage))
    if stage == SUPER_RESOLUTION:
        conditioning |= {'low_image': jnp.zeros((2, side, side, 3)), 'noise_level': jnp.array([3, 3])}
    return quick_jit(lambda params, x: pipeline.family.predict(apply, params, x, times, conditioning))(params, x)


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_denoiser_predicts_nearly_what_it_does_with_its_own_kernels(name):
    folder, size, stage = MODELS[name]()
    plain = Cascade.load(folder, size=size)
    network = getattr(plain, stage).denoiser
    expected = prediction(plain, stage, network.apply, network.params)
    errors = {}
    for kind in quantised.KINDS if name in IN_EVERY_KIND else (quantised.NF4,):
        model = Cascade.load(folder, size=size, frozen_dtype=kind)
        pipeline, network = getattr(model, stage), getattr(model, stage).denoiser
        assert quantised.kernel_names(network.params)
        assert all(quantised.kernel_names(text.params) for text in model.base.text_encoders.values())
        # The same conditioning, so that the denoiser alone differs.
        errors[kind] = relative(prediction(plain, stage, network.apply, network.params), expected)
        if kind == 'int8':
            continue
        trainable = make_trainable(
            pipeline,
            (pipeline.family.denoiser,),
            LoraConfig(rank=2),
            dtype=jnp.float32,
            remat=False,
            seed=0,
        )
        denoiser = pipeline.family.denoiser
        assert {*map(lora.is_adapter, trainable.params[denoiser])} == {True}
        assert quantised.kernel_names(trainable.frozen[denoiser]) == quantised.kernel_names(network.params)
        # Random adapters: in the training's form and in that of generation they are one network.
        adapters = {key: value + np.float32(0.1) for key, value in trainable.params[denoiser].items()}
        full = trainable.assemble({denoiser: adapters}, trainable.frozen)[denoiser]
        trained = prediction(plain, stage, trainable.apply[denoiser], full)
        given = trainable.plain({denoiser: adapters})[denoiser]
        np.testing.assert_allclose(
            prediction(plain, stage, network.apply, given), trained, rtol=1e-3, atol=1e-3 * np.abs(trained).max()
        )
        assert relative(trained, expected) > errors[kind] / 2
    assert 1e-4 < errors['nf4'] < 0.5
    if name in IN_EVERY_KIND:
        assert 1e-4 < errors['int8'] < 0.05 and errors['int8'] < errors['nf4']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sd1', 'flux'])
def test_images_are_nearly_those_of_the_plain_model(name):
    folder, size, _ = MODELS[name]()
    sampler = 'euler' if name == 'flux' else 'ddim'
    options = dict(steps=2, guidance_scale=1.0, sampler=sampler, seed=1, batch_size=1, super_resolution=False)
    plain, found = (
        generate(dataclasses.replace(Cascade.load(folder, size=size, frozen_dtype=kind)), ['a dog'], **options).final
        for kind in (None, 'int8')
    )
    assert plain.std() > 5 and 0 < np.abs(plain.astype(int) - found).max() < 30
