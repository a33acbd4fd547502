"""The shipped flow model does what it is for: it generates what is asked, in a folder that diffusers opens."""

import types

import pytest

from dreambooth_jax.config import STORYBOOK_FLOW, STORYBOOK_FLOW_SAMPLING
from dreambooth_jax.evaluation import storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.storybook import storybook_folder, world
from tests.support.flow_model import FlowModel

FOLDER = storybook_folder(STORYBOOK_FLOW)
FILES = types.SimpleNamespace(
    folder=lambda: STORYBOOK_FLOW, torch_pipeline=lambda: FlowModel.torch_pipeline_of(FOLDER), SIZE=128
)
# There guidance counts what is added to the prediction with the prompt.
MODEL = FlowModel(FILES, (16, 16, 16), 4.0, {'guidance_scale': 3.0})
OPTIONS = SamplingOptions(**STORYBOOK_FLOW_SAMPLING)


def test_its_weights_take_little_room():
    assert sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file()) < 20e6


@pytest.mark.slow
def test_diffusers_opens_the_folder_and_generates_the_same_image():
    MODEL.check_image()


@pytest.mark.slow
def test_it_generates_the_class_the_context_and_the_accessory_that_it_is_asked_for():
    classifier = Classifier.load()
    scores = storybook_scores.base_scores(
        MODEL.cascade,
        classifier,
        OPTIONS,
        classes=['dog', 'can', 'vase', 'teapot'],
        contexts=world.CONTEXTS[::5],
        num_images=1,
    )
    worn = storybook_scores.accessory_scores(MODEL.cascade, classifier, OPTIONS, class_noun='dog', num_images=2)
    assert scores['class_right'] >= 0.9 and scores['context_right'] >= 0.9
    assert sum(cell['accessory_right'] for cell in worn['cells']) >= 0.8 * 20
