"""The second stage alone, on given images."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines, smallest_pipelines

QUICK = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim', batch_size=2)


class SecondStage(Cascade):
    """A second stage whose network answers with the clean image that a function makes, and that has no first stage."""

    super_resolution_size = 128

    def __post_init__(self):
        pass

    @classmethod
    def answering(cls, answer):
        def apply(params, x, t, encoder_hidden_states, class_labels):
            words = encoder_hidden_states
            return answer(x[..., 3:], class_labels[:, None, None, None], words.mean(axis=(1, 2))[:, None, None, None])

        denoiser = Network({'sample_size': 128, 'in_channels': 6, 'out_channels': 3}, apply, {})
        schedule = {'_class_name': 'DDPMScheduler', 'prediction_type': 'sample', 'clip_sample': False}
        parts = {'scheduler': schedule, 'unet': denoiser, 'image_noising_scheduler': schedule}
        return cls(None, made_pipelines.pipeline('IFSuperResolutionPipeline', **parts))

    def encode(self, prompts, stage):
        assert stage == SUPER_RESOLUTION
        states = np.stack([np.full((2, 3), len(prompt) / 100, np.float32) for prompt in prompts])
        return {'encoder_hidden_states': states}


def test_it_is_given_low_image_prompt_and_noise_level():
    low = np.stack([np.full((32, 32, 3), value, np.float32) for value in (-0.5, 0.0, 0.25)])
    prompts = ['x' * 10, 'x' * 20, 'x' * 30]
    plain = SecondStage.answering(lambda low, level, text: low).enlarge(low, prompts, QUICK, progress=False)
    assert plain.shape == (3, 128, 128, 3) and plain.dtype == np.uint8
    np.testing.assert_array_equal(plain[:, 5, 7, 0], [64, 128, 159])
    told = SecondStage.answering(lambda low, level, text: 0 * low + jnp.float32(level) / 1000 + text)
    told = told.enlarge(low, prompts, dataclasses.replace(QUICK, noise_level=300), progress=False)
    np.testing.assert_allclose(told[:, 0, 0, 0], (np.array([0.4, 0.5, 0.6]) + 1) / 2 * 255, atol=1)


@pytest.mark.parametrize('kind', ['pixels', 'latents'])
def test_the_noise_is_that_of_generated_images(kind):
    cascade = Cascade.load(smallest_pipelines.folder(kind))
    options = dataclasses.replace(QUICK, noise_level=5, seed=5)
    images = cascade.generate(['a dog'], options, num_images=3, progress=False)
    low = images.base.astype(np.float32) / 127.5 - 1  # generate has not rounded them
    again = cascade.enlarge(low, ['a dog'] * 3, options, progress=False)
    assert np.abs(again.astype(int) - images.super_resolution).max() <= 2
    other = cascade.enlarge(low, ['a dog'] * 3, dataclasses.replace(options, seed=6), progress=False)
    assert np.abs(other.astype(int) - images.super_resolution).max() > 20


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [({'noise_level': 1000}, 'noise_level is 1000'), ({'steps': 0}, '0'), ({'sampler': 'plms'}, 'plms')],
)
def test_what_the_model_does_not_allow_is_refused(arguments, words):
    cascade, low = SecondStage.answering(lambda low, level, text: low), np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ConfigError, match=words):
        cascade.enlarge(low, ['a'], dataclasses.replace(QUICK, **arguments))
