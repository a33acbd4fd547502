"""A trial trains with the recipe and what differs from it, and neither is done twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError, DreamBoothConfig, of_run, to_config_dict, to_dict
from dreambooth_jax.config.schema import resolve
from dreambooth_jax.evaluation import subject_trials
from dreambooth_jax.evaluation.subject_trials import (
    SHARES,
    SubjectTrials,
    TrialModel,
    folder_name,
    measured,
    summary,
    summary_cells,
    told,
)
from dreambooth_jax.evaluation.trial_photos import TrialPhotos
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import reference_scenes
from dreambooth_jax.text.prompts import prompts_for
from tests.support import smallest_pipelines, tiny_encoders

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
            gallery[prompt] = np.stack([photo] * (num_images - 1) + [255 - photo])  # the last one is another
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
        TrialModel(model), CONFIG, tmp_path, num_images=3, class_images=2, sampling={'seed': 5, 'batch_size': 4}
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

    def features(images):
        found = images.reshape(len(images), -1, 3).mean(1) + 1e-3
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    table = features(photos) @ features(photos).T
    others = (table.sum() - len(table)) / (len(table) * (len(table) - 1))
    odd, black = features(255 - photos[:1]), features(0 * photos[:1])
    apart = 1 - (odd @ features(photos)[:1].T).item()
    like = (2 * table[0].mean() + (odd @ features(photos).T).mean()) / 3
    assert scores['likeness']['dino'] == pytest.approx(like / others, abs=1e-5)
    assert scores['likeness']['dino_pres'] == pytest.approx((black @ features(photos).T).mean() / others, abs=1e-5)
    assert scores['likeness']['dino_div'] == pytest.approx(2 / 3 * apart, abs=1e-5)
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
    assert summary_cells(found, SHARES)[:4] == [
        '2',
        '60 ± 10 % (50 % to 70 %)',
        '100 ± 0 % (100 % to 100 %)',
        '40 % (40 % to 40 %)',
    ]
    assert summary_cells(summary([scores(0.5, None)]), SHARES)[3] == '-' and summary([])['subjects'] == 0


def test_titles_are_of_what_was_measured():
    assert 'accessory named' not in measured([scores(0.5, None)]) and 'CLIP-T' not in measured([scores(0.5, 0.4)])
    assert measured([scores(0.5, None), scores(0.7, 0.4)])[2] == 'accessory named'
    assert told(scores(0.5, None))[:2] == ['subject named 50 %', 'context named 100 %']
    likeness = {'dino': 0.9, 'dino_pres': 0.2, 'clip_t': 0.3}
    assert told({'likeness': likeness}) == ['DINO, as a share of the photos 90 %', 'PRES, the same 20 %', 'CLIP-T 30 %']


def test_a_model_of_another_world_needs_photos(tmp_path):
    sentence = '^--model=sdxl knows nothing painted; give --photos, a folder of photos per subject$'
    with pytest.raises(ConfigError, match=sentence):
        SubjectTrials(TrialModel('sdxl'), CONFIG, tmp_path, num_images=1, class_images=2, sampling={})


@pytest.mark.slow
def test_another_model_trains_on_photos_and_is_measured_by_encoders_alone(tmp_path):
    for number in range(3):
        made = tmp_path / 'photos' / 'can' / f'{number}.png'
        made.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)).save(made)
    encoders = {name: str(tiny_encoders.write(name, tmp_path / name)) for name in ('dino', 'clip')}
    weights = str(smallest_pipelines.folder('latents'))
    given = TrialModel('stable-diffusion-v1-5', weights, TrialPhotos(tmp_path / 'photos'), encoders)
    amounts = {'num_images': 1, 'class_images': 2, 'sampling': {'seed': 5, 'batch_size': 8}}
    trials = SubjectTrials(given, CONFIG, tmp_path / 'runs', **amounts)
    few = {'base.steps': 2, 'prior.num_images': 2, 'prior.steps': 2, 'data.resolution': 32, 'samples.steps': 2}
    trial = trials.measure('can', few)
    assert trials.classifier is None and trial.photo.shape == (40, 48, 3)
    assert list(trial.images) == ['a sks can', 'a sks can in the snow', 'a can']
    titles = ['DINO, as a share of the photos', 'PRES, the same', 'CLIP-T']
    assert measured([trial.scores]) == titles and trial.images['a can'].shape[1:3] == (32, 32)
    run = of_run.settings(next((tmp_path / 'runs').glob('*/*/can')))
    assert run.data.instance_dir == str(tmp_path / 'photos' / 'can') and run.model == weights
