"""Helpers of the losses' tests: images and prompts, a network of one convolution, and a record of its inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.families import deepfloyd_if
from dreambooth_jax.families.image_space import LatentSpace, PixelSpace
from dreambooth_jax.losses.denoising import DenoisingLoss
from dreambooth_jax.losses.super_resolution import SuperResolutionLoss
from dreambooth_jax.losses.teacher import Distillation
from dreambooth_jax.training.step import example_keys

IMAGES, PROMPTS, LENGTH, WIDTH = 6, 4, 5, 8


def frozen(side=8, seed=0):
    """DenoisingLoss's data: images, indices of their prompts, and the prompts both as text states and as tokens."""
    rng = np.random.default_rng(seed)
    return {
        'images': rng.integers(0, 256, (IMAGES, side, side, 3), np.uint8),
        'prompt_of': np.array([1, 2, 3, 1, 2, 3], np.int32),
        'text': {'encoder_hidden_states': rng.normal(size=(PROMPTS, LENGTH, WIDTH)).astype(np.float32)},
        'tokens': {'ids': rng.integers(0, 7, (PROMPTS, LENGTH)).astype(np.int32)},
    }


def batch(examples=6):
    return {'image': np.arange(examples, dtype=np.int32) % IMAGES}


def keys(examples=6, at=0, seed=0):
    return example_keys(jax.random.key(seed), jnp.int32(at), jnp.arange(examples, dtype=jnp.int32))


def schedule(prediction_type='epsilon', variance_type='fixed_small'):
    return schedules.make_schedule('squaredcos_cap_v2', prediction_type=prediction_type, variance_type=variance_type)


def kernel(inputs=3, outputs=3, seed=0):
    return {'unet': {'kernel': 0.1 * np.random.default_rng(seed).normal(size=(3, 3, inputs, outputs)).astype('f4')}}


def denoiser(params, x, t, encoder_hidden_states, class_labels=None):
    """One convolution, plus a shift that depends on the example's text states, its time and its label."""
    labels = 0 if class_labels is None else class_labels
    moved = jnp.mean(encoder_hidden_states, axis=(1, 2)) + 1e-4 * t + 1e-3 * labels
    answer = jax.lax.conv_general_dilated(
        x, params['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return answer + moved[:, None, None, None]


def told(denoiser):
    """A network as the losses call it."""
    return functools.partial(deepfloyd_if.BASE.predict, denoiser)


def pixel_loss(*, denoiser, schedule, space=None, **settings):
    space = space or PixelSpace()
    return DenoisingLoss(denoiser='unet', predict=told(denoiser), process=schedule, space=space, **settings)


def enlarging_loss(*, denoiser, schedule, noising_schedule, space=None, factor=2, **settings):
    settings |= {'process': schedule, 'noising_process': noising_schedule, 'factor': factor}
    return SuperResolutionLoss(denoiser='unet', predict=told(denoiser), space=space or PixelSpace(), **settings)


def latent_loss(*, scaling_factor=0.5, **settings):
    return pixel_loss(space=LatentSpace(scaling_factor=scaling_factor), **settings)


def latent_enlarging_loss(*, scaling_factor=0.5, **settings):
    return enlarging_loss(space=LatentSpace(scaling_factor=scaling_factor), **settings)


def teacher(denoiser, class_examples=None):
    return Distillation(told(denoiser), class_examples)


def run(kind, params=None, data=None, examples=None, example_keys=None, **settings):
    """Returns the loss of a stage, its parts, and the inputs that its network saw: x, t, text, class_labels."""
    seen = {}

    def spy(params, x, t, encoder_hidden_states, class_labels=None):
        seen.update(x=x, t=t, text=encoder_hidden_states)
        if class_labels is not None:
            seen['class_labels'] = class_labels
        return denoiser(params, x, t, encoder_hidden_states, class_labels)

    stage = kind(denoiser=spy, **settings)
    examples = batch() if examples is None else examples
    example_keys = keys(len(examples['image'])) if example_keys is None else example_keys

    @jax.jit
    def look(params, data, examples, example_keys):
        loss, parts = stage.loss(params, data, examples, example_keys)
        return loss, parts, dict(seen)

    return look(params or kernel(), data or frozen(), examples, example_keys)
