"""A trial trains with the recipe and what differs from it, and neither is done twice."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreambooth_jax.config import DreamBoothConfig, to_config_dict, to_dict
from dreambooth_jax.config.schema import resolve
from dreambooth_jax.evaluation import subject_trials
from dreambooth_jax.evaluation.subject_trials import SubjectTrials, folder_name, summary, summary_cells
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import reference_scenes
from dreambooth_jax.text.prompts import prompts_for

CONFIG = Path(__file__).parents[2] / 'configs' / 'subject.py'


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Trials whose trainings and scores are recorded, not made."""

    class Empty:
        base = naming_params = None

        def load(*args, **settings):
            return Empty()

    def train(workdir, config, settings, weights):
        trained.append((workdir.relative_to(tmp_path), config, settings, weights))
        config = to_config_dict(DreamBoothConfig())
        config.data.subject, config.data.instance_prompt, config.data.class_prompt = 'vase', 'a sks vase', 'a vase'
        config.prior.phrases = ('in the snow',)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / 'config.json').write_text(json.dumps(to_dict(resolve(DreamBoothConfig, config))))
        return workdir

    def score(cascade, classifier, subject, called, options, num_images, class_images, gallery):
        scored.append((subject, called, options.seed, options.steps))
        photo = draw.paint(reference_scenes(subject)[0], 32)
        for prompt in (f'a {called}', *prompts_for(called)):
            gallery[prompt] = np.stack([photo] * num_images)
        gallery[f'a {subject}'] = np.zeros((class_images, 32, 32, 3), np.uint8)
        return {'subject_named': 0.5}

    class Encoder:
        fingerprint = 'encoder'

        def embed_images(self, images):
            features = np.array([image.reshape(-1, 3).mean(0) + 1e-3 for image in images]).reshape(-1, 3)
            return features / np.linalg.norm(features, axis=1, keepdims=True)

    trained, scored = [], []
    for name in ('Cascade', 'Classifier'):
        monkeypatch.setattr(subject_trials, name, Empty)
    monkeypatch.setattr(subject_trials.experiment, 'fingerprint_of', lambda stage: 'weights')
    monkeypatch.setattr(subject_trials.experiment, 'fingerprint', lambda params: 'classifier')
    monkeypatch.setattr(subject_trials.experiment, 'with_base_of', lambda cascade, run: Empty())
    monkeypatch.setattr(subject_trials.experiment, 'train_once', train)
    monkeypatch.setattr(subject_trials.storybook_scores, 'subject_scores', score)
    monkeypatch.setattr(subject_trials.cpu_devices, 'use', lambda count: None)
    monkeypatch.setattr(subject_trials, 'load_encoder', lambda name: Encoder())
    made = lambda model: SubjectTrials(  # noqa: E731
        model, CONFIG, tmp_path, num_images=3, class_images=2, sampling={'seed': 5, 'batch_size': 4}
    )
    return made, trained, scored


def test_a_subject_is_trained_by_the_recipe_with_what_differs_and_scored_once(trials):
    make, trained, scored = trials
    flow = make('storybook-flow')
    first = flow.measure('vase', {'base.steps': 7})
    again = flow.measure('vase', {'base.steps': 7})
    folder, config, settings, weights = trained[0]
    assert str(folder) == 'storybook-flow/base.steps_7/vase' and config == f'{CONFIG}:vase,storybook-flow'
    assert settings['base.steps'] == 7 and settings['super_resolution_model'] == 'none' and weights == 'weights'
    assert 'prior.dir' not in settings  # this recipe generates no class images
    assert scored == [('vase', 'sks vase', 5, 25)] and first.scores == again.scores
    assert first.phrases == ('in the snow',) and [len(images) for images in first.images.values()] == [2, 2, 2]


def test_subjects_of_a_class_share_class_images_that_are_generated_alike(trials):
    make, trained, _ = trials
    cascade = make('storybook')
    cascade.measure('vase', {})
    cascade.measure('vase', {'base.steps': 7})
    cascade.measure('vase', {'prior.num_images': 9})
    cascade.measure('vase', {'prior.kind': 'distillation'})
    folders = [settings.get('prior.dir') for *_, settings, _ in trained]
    assert folders[0] == folders[1] != folders[2] and folders[3] is None and folders[0].name == 'vase'


def test_another_name_of_the_subject_is_another_measurement(trials):
    make, trained, scored = trials
    flow = make('storybook-flow')
    flow.measure('vase', {})
    flow.measure('vase', {}, 'sks can')
    assert [called for _, called, *_ in scored] == ['sks vase', 'sks can'] and str(trained[0][0]).endswith(
        'recipe/vase'
    )


def test_the_untrained_model_is_sampled_as_the_recipe_samples(trials):
    make, trained, scored = trials
    cascade = make('storybook')
    first = cascade.measure('vase', None)
    assert first.scores == cascade.measure('vase', None).scores and first.phrases == () and not trained
    assert scored == [('vase', 'sks vase', 5, 15)]  # the recipe's steps; the model's own are 25


def test_images_are_as_like_the_photos_as_these_among_each_other(trials):
    make, *_ = trials
    scores = make('storybook-flow').measure('vase', {}).scores
    photos = np.stack([draw.paint(scene, 32) for scene in reference_scenes('vase')])
    features = photos.reshape(len(photos), -1, 3).mean(1) + 1e-3
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    table = features @ features.T
    others = (table.sum() - len(table)) / (len(table) * (len(table) - 1))
    assert scores['likeness']['dino'] == pytest.approx(table[0].mean() / others, abs=1e-5)
    assert scores['likeness']['dino_masked'] != scores['likeness']['dino']


def test_folders_have_names_of_what_differs():
    assert folder_name({}) == '' and folder_name({'base.steps': 3, 'lora.rank': 2}) == 'base.steps_3_lora.rank_2'
    long = [folder_name({'data.instance_dir': '/some/where/' + 60 * letter}) for letter in 'ab']
    assert long[0] != long[1] and all(len(name) < 60 and '/' not in name for name in long)


def scores(subject, accessory):
    images = {'taken_for_subject': 0.0, 'class_named': 1.0}
    likeness = {'dino': 0.9, 'dino_masked': 0.8}
    named = {'subject_named': subject, 'context_named': 1.0, 'accessory_named': accessory}
    return {**named, 'class_images': images, 'likeness': likeness}


def test_a_summary_is_over_the_subjects_that_have_the_number():
    found = summary([scores(0.5, None), scores(0.7, 0.4)])
    assert found['subjects'] == 2 and found['subject named']['mean'] == pytest.approx(0.6)
    assert found['subject named']['standard_error'] == pytest.approx(0.1) and found['subject named']['of'] == [0.5, 0.7]
    assert found['accessory named'] == {'mean': 0.4, 'standard_error': None, 'of': [0.4, 0.4]}
    assert summary_cells(found)[:4] == [
        '2',
        '60 ± 10 % (50 % to 70 %)',
        '100 ± 0 % (100 % to 100 %)',
        '40 % (40 % to 40 %)',
    ]
    assert summary_cells(summary([scores(0.5, None)]))[3] == '-' and summary([])['subjects'] == 0
