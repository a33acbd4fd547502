"""The shipped weights do what Storybook is for: they generate what is asked, and enlarge it faithfully."""

import numpy as np
import pytest

from dreambooth_jax.config import STORYBOOK_ENLARGING, STORYBOOK_SAMPLING
from dreambooth_jax.data import low_resolution
from dreambooth_jax.evaluation import storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.storybook import captions, draw, world

pytestmark = pytest.mark.slow  # compiles and runs the full-size networks: two minutes


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load('storybook')


def test_the_base_stage_generates_the_class_and_the_context_that_it_is_asked_for(cascade):
    scores = storybook_scores.base_scores(
        cascade,
        Classifier.load(),
        SamplingOptions(super_resolution=False, **STORYBOOK_SAMPLING),
        classes=['dog', 'can', 'vase', 'teapot'],
        contexts=world.CONTEXTS[::5],
        num_images=1,
    )
    assert scores['class_right'] >= 0.9 and scores['context_right'] >= 0.9


def test_the_second_stage_is_closer_to_true_images_than_bilinear_upsampling(cascade):
    rng = np.random.default_rng(7)
    scenes = [world.sample_scene(rng) for _ in range(8)]
    true = np.stack([draw.paint(scene) for scene in scenes]).astype(np.float32)
    texts = [captions.caption(scene, rng) for scene in scenes]
    low = np.asarray(low_resolution.downsample(true / 127.5 - 1, cascade.factor))
    generated = cascade.enlarge(
        low,
        texts,
        SamplingOptions(
            steps=STORYBOOK_ENLARGING['sample_steps'],
            guidance_scale=STORYBOOK_ENLARGING['sample_guidance_scale'],
            sampler=STORYBOOK_SAMPLING['sampler'],
        ),
        progress=False,
    )
    smooth = (np.asarray(low_resolution.upsample(low, true.shape[1])) + 1) * 127.5
    error = {'ours': np.abs(generated - true).mean(), 'bilinear': np.abs(smooth - true).mean()}
    print(f'mean absolute error in levels of 255: {error}')  # the model card quotes it
    assert error['ours'] < error['bilinear']
