"""What a run is measured with, and the scores of one run, with a model and evaluators that only count."""

import dataclasses
import types

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, RunSamplesConfig
from dreambooth_jax.evaluation import run_scores
from dreambooth_jax.evaluation.evaluator import Column
from dreambooth_jax.evaluation.protocol import Asked, Subject
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.weights.errors import WeightsError

PROMPTS = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
BUILT_IN = DreamBoothConfig(data=DataConfig(subject='dog', **PROMPTS))
PHOTOS = DreamBoothConfig(data=DataConfig(instance_dir='photos', **PROMPTS))
OTHER = dataclasses.replace(PHOTOS, model='owner/model')
NOTHING = dict.fromkeys(('dino', 'dinov2', 'clip', 'lpips'))


def test_runs_of_storybook_are_measured_with_its_own_networks_and_others_with_the_published_ones():
    own = {'dino': 'storybook-dino', 'clip': 'storybook-clip'}
    assert run_scores.choose(BUILT_IN, None, NOTHING) == own | {'classifier': "Storybook's classifier"}
    assert run_scores.choose(PHOTOS, None, NOTHING) == own
    published = {'dino': 'facebook/dino-vits16', 'clip': 'openai/clip-vit-base-patch32'}
    assert run_scores.choose(OTHER, None, NOTHING) == published


def test_what_is_given_is_used():
    given = NOTHING | {'clip': 'clips/mine', 'lpips': 'lpips.safetensors'}
    chosen = run_scores.choose(BUILT_IN, ['clip', 'dinov2', 'lpips'], given)
    assert chosen == {'clip': 'clips/mine', 'dinov2': 'facebook/dinov2-small', 'lpips': 'lpips.safetensors'}


@pytest.mark.parametrize(
    ('config', 'what'),
    [(PHOTOS, 'was trained on photos'), (OTHER, "began with 'owner/model'")],
    ids=('photos', 'model'),
)
def test_the_classifier_is_asked_only_of_what_it_knows(config, what):
    with pytest.raises(ConfigError) as error:
        run_scores.choose(config, ['dino', 'classifier'], NOTHING)
    assert str(error.value) == (
        f"--metrics has classifier, which knows the built-in subjects of 'storybook' and 'storybook-flow' alone, "
        f'but the run {what}; leave classifier out'
    )


def test_a_wrong_encoder_is_known_before_anything_is_generated():
    with pytest.raises(WeightsError, match="encoder './nowhere' is not there"):
        run_scores.load_measures({'dino': './nowhere'}, num_images=1, class_images=1)


def test_the_classifier_that_ships_is_known_by_its_content():
    found = run_scores.load_measures({'classifier': "Storybook's classifier"}, num_images=1, class_images=1)
    assert [type(one).__name__ for one in found.evaluators] == ['Naming'] and len(found.used['classifier']) == 64


def test_a_model_is_read_once_for_runs_that_began_with_it(monkeypatch):
    read = []

    class Model:
        base_size, super_resolution, super_resolution_size = 32, object(), 128

    def of(config):
        read.append(config)
        return Model()

    monkeypatch.setattr(run_scores.Cascade, 'of', of)
    models = run_scores.BaseModels()
    other_subject = dataclasses.replace(
        BUILT_IN, seed=3, data=DataConfig(subject='cat', **PROMPTS), samples=RunSamplesConfig(steps=3)
    )
    assert models.of(BUILT_IN) is models.of(other_subject) and models.side(other_subject) == 128
    assert models.side(BUILT_IN, base_alone=True) == 32
    assert read == [BUILT_IN]
    # Whatever Cascade.of reads makes another model of it.
    for changed in (
        OTHER,
        dataclasses.replace(BUILT_IN, super_resolution_model='none'),
        dataclasses.replace(BUILT_IN, base=dataclasses.replace(BUILT_IN.base, clip_skip=1)),
        dataclasses.replace(BUILT_IN, data=dataclasses.replace(BUILT_IN.data, resolution=64)),
        dataclasses.replace(BUILT_IN, parallel=dataclasses.replace(BUILT_IN.parallel, dtype='bfloat16')),
        dataclasses.replace(BUILT_IN, objective=dataclasses.replace(BUILT_IN.objective, zero_terminal_snr=True)),
    ):
        models.of(changed)
        assert read[-1] is changed
        models.of(BUILT_IN)


class Model:
    def __init__(self, brightness):
        self.brightness, self.released = brightness, False

    def release(self):
        self.released = True


class Album:
    def __init__(self, model, options, folder, title, metadata, sign):
        assert (metadata, sign) == ('mark', print)
        self.model, self.folder = model, folder / 'abc'

    def __call__(self, prompts, num_images):
        return np.full((len(prompts), num_images, 2, 2, 3), self.model.brightness, np.uint8)


class Brightness:
    def __call__(self, generate, subject):
        texts = [asked.text for asked in subject.prompts]
        values = generate(texts, 2).mean(axis=(2, 3, 4)).ravel()
        return {'brightness': Column(values=values, prompts=np.repeat(texts, 2), kinds=['context'] * len(values))}

    def ceilings(self, subject):
        return {'brightness': {'others': float(np.mean(subject.photos)), 'with_self': 0.0}}


def test_scores_of_a_run_hold_both_models_the_photos_and_where_the_images_are(monkeypatch, tmp_path):
    monkeypatch.setattr(run_scores, 'Album', Album)
    subject = Subject(
        name='sks dog',
        instance_prompt='a sks dog',
        class_prompt='a dog',
        photos=(np.full((2, 2, 3), 9, np.uint8),),
        prompts=(Asked('context', 'a sks dog in the snow', 'a dog in the snow'),),
    )
    models = {'run': Model(200), 'base': Model(100)}
    options = SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim')
    told = {'origins': ['base: checkpoint 3'], 'metadata': 'mark', 'sign': print}
    opened = run_scores.Opened(models=models, subjects=[subject], options=options, **told)
    measures = run_scores.Measures(evaluators=[Brightness()], used={'eye': 'f00'}, num_images=2, class_images=5)
    found = run_scores.score(
        opened, measures, {'run': tmp_path / 'images' / 'dog', 'base': tmp_path / 'images' / 'base'}
    )
    values = {title: told['sks dog']['brightness']['value'] for title, told in found['models'].items()}
    assert values == {'run': 200, 'base': 100} and all(model.released for model in models.values())
    assert found['ceiling'] == {'brightness': {'sks dog': {'others': 9.0, 'with_self': 0.0}}}
    assert found['images'] == {'run': 'dog/abc', 'base': 'base/abc'}
    assert found['subjects'] == {'sks dog': {'live': False, 'prompts': {'a sks dog in the snow': 'context'}}}
    assert (found['weights'], found['encoders']) == (['base: checkpoint 3'], {'eye': 'f00'})
    assert (found['images_per_prompt'], found['class_images'], found['sampling']['steps']) == (2, 5, 2)


def test_images_are_sampled_as_a_runs_samples_are():
    config = dataclasses.replace(BUILT_IN, samples=RunSamplesConfig(steps=3, guidance_scale=2.5, batch_size=6))
    one, two = (types.SimpleNamespace(super_resolution=second) for second in (None, object()))
    usual = SamplingOptions.of_samples(config.samples, config.super_resolution)
    assert (usual.steps, usual.guidance_scale, usual.batch_size, usual.super_resolution) == (3, 2.5, 6, True)
    assert run_scores.sampling(config, one) == run_scores.sampling(config, two) == usual
    assert run_scores.sampling(config, one, base_alone=True) == usual
    assert run_scores.sampling(config, two, 4, True) == dataclasses.replace(usual, batch_size=4, super_resolution=False)
