"""The model card: its head as the hub reads it, and what it says of the run."""

import dataclasses
import json

import pytest
import yaml

from dreambooth_jax.config import (
    ConfigError,
    DataConfig,
    DreamBoothConfig,
    LoraConfig,
    PretrainConfig,
    PriorConfig,
    SubjectConfig,
    TextualInversionConfig,
)
from dreambooth_jax.data.fingerprints import Fingerprint
from dreambooth_jax.finetune import model_card
from dreambooth_jax.finetune.model_card import Export
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.storybook.subjects import reference_scenes
from dreambooth_jax.training import inputs
from tests.support import scored_runs, smallest_pipelines

DATA = {'instance_dir': '/home/ana/photos', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
HUB = 'black-forest-labs/FLUX.1-dev'


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load(smallest_pipelines.folder('pixels'))


@pytest.fixture
def export(cascade, tmp_path):
    """Makes an export of a run with these settings; its folder has nothing in it but what a test puts there."""

    def make(data=DATA, model=HUB, **options):
        of_export = {key: options.pop(key) for key in ('form', 'file', 'weights') if key in options}
        (tmp_path / 'run').mkdir(exist_ok=True)
        config = DreamBoothConfig(model=model, data=DataConfig(**data), **options)
        return Export(config=config, cascade=cascade, workdir=tmp_path / 'run', **of_export)

    return make


def head(card):
    _, found, _ = card.split('---\n', 2)
    return yaml.safe_load(found)


def test_the_head_says_what_the_hub_asks_for(export):
    assert head(model_card.text(export())) == {
        'base_model': HUB,
        'base_model_relation': 'finetune',
        'library_name': 'diffusers',
        'pipeline_tag': 'text-to-image',
        'license': 'other',
        'license_name': 'flux.1-dev-non-commercial-license',
        'license_link': f'https://huggingface.co/{HUB}',
        'instance_prompt': 'a sks dog',
        'tags': ['text-to-image', 'diffusers', 'dreambooth', 'jax'],
    }
    adapter = head(model_card.text(export(form='lora_peft', file='x.safetensors', lora=LoraConfig(rank=4))))
    assert adapter['base_model_relation'] == 'adapter' and 'lora' in adapter['tags']
    word = TextualInversionConfig(token='<rex>')
    learned = model_card.text(export({**DATA, 'instance_prompt': 'a <rex> dog'}, textual_inversion=word))
    assert 'textual_inversion' in head(learned)['tags'] and 'the new word `<rex>`' in learned


@pytest.mark.parametrize(
    ('model', 'licence'),
    [('storybook', 'apache-2.0'), ('/home/ana/models/photoreal.safetensors', 'unknown'), ('someone/x', 'unknown')],
)
def test_a_model_that_is_not_of_the_hub_is_named_without_its_place(export, model, licence):
    data = DATA if model != 'storybook' else {**DATA, 'instance_dir': None, 'subject': 'dog'}
    card = model_card.text(export(data, model=model))
    assert head(card)['license'] == licence
    assert head(card).get('base_model') == ('someone/x' if model == 'someone/x' else None)
    assert '/home' not in card and ('unknown; look at' in card) == (licence == 'unknown')
    if model == 'someone/x':
        assert 'https://huggingface.co/someone/x, before this model is passed on' in card
    if model == 'storybook':
        told = f'{len(reference_scenes("dog"))} painted images'
        assert f'- **Photos**: {told}\n' in card and f'subject of {told} by' in card


def test_any_text_stays_what_it_is(export):
    prompt = 'a "sks" dog: #1\n---\nlicense: mit'
    card = model_card.text(export({**DATA, 'instance_prompt': prompt}))
    assert head(card)['instance_prompt'] == prompt and head(card)['license'] == 'other'
    assert '\n# a "sks" dog: \\#1 --- license: mit\n' in card


def test_photos_are_counted(export):
    one = export()
    assert '- **Photos**: an unknown number of photos' in model_card.text(one)
    for count, told in ((1, '1 photo'), (4, '4 photos')):
        photos = {
            'data.instance_dir': [Fingerprint(f'{i}.jpg', 'ab') for i in range(count)],
            inputs.CLASS_PHOTOS: [Fingerprint('c.jpg', 'cd')],
        }
        (one.workdir / inputs.FILE).write_text(inputs.to_json(inputs.Inputs({}, photos)))
        assert f'- **Photos**: {told}\n' in model_card.text(one) and f'of {told} by' in model_card.description(one)
    (one.workdir / inputs.FILE).write_text('{')
    assert 'an unknown number of photos' in model_card.text(one)


def test_several_subjects_are_all_named(export):
    both = [SubjectConfig(**DATA), SubjectConfig(**{**DATA, 'instance_prompt': 'a zwx cat', 'class_prompt': 'a cat'})]
    card = model_card.text(export({'subjects': tuple(dataclasses.asdict(one) for one in both)}))
    assert '- **Subject**: `a sks dog`, `a zwx cat`\n' in card and '`a dog`, `a cat`, held by 200 class images' in card


@pytest.mark.parametrize(
    ('prior', 'told'),
    [
        ({}, 'held by 200 class images that the base model generated'),
        ({'dir': '/home/ana/dogs'}, 'held by class images from a folder that was given'),
        ({'kind': 'distillation'}, 'held to what the base model predicts of the photos\n'),
        ({'kind': 'distillation', 'phrases': ('in the snow',)}, 'of the photos, with other words after that too\n'),
        ({'phrases': ('in the snow',)}, 'base model generated; with other words after that, held to what the base'),
        ({'weight': 0.0}, 'trained without class images'),
    ],
)
def test_it_says_what_held_the_class(export, prior, told):
    card = model_card.text(export(prior=PriorConfig(**prior)))
    assert told in card and '/home' not in card


def test_training_and_weights_are_told_without_paths_of_the_machine(export):
    origins = ['base: checkpoint 3, the best by evaluation', 'super_resolution: as in /home/ana/model']
    card = model_card.text(export(weights=origins, init_from='/home/ana/other', lora=LoraConfig(rank=4)))
    assert '- **Weights**: base: checkpoint 3, the best by evaluation\n' in card
    assert '- **Training of base**: 1000 steps, photos one at a time, learning rate 5e-06\n' in card
    assert 'the weights of `other`' in card and 'LoRA of rank 4, merged' in card and '/home' not in card
    one = export()
    for step in (20, 40):
        (one.workdir / 'base' / 'checkpoints' / str(step)).mkdir(parents=True)
    assert '- **Weights**: base: checkpoint 40\n' in model_card.text(one)
    (one.workdir / 'best.json').write_text(json.dumps({'stage': 'base', 'step': 20, 'candidates': []}))
    assert '- **Weights**: base: checkpoint 20, the best by evaluation\n' in model_card.text(one)


def test_scores_and_copies_are_told_if_there_are_some(export):
    one = export()
    assert '## Scores' not in model_card.text(one)
    candidate = {'step': 20, 'subject_fidelity': 0.8, 'prompt_fidelity': 0.7, 'drift': 0.1, 'trade_off': 0.78}
    best = {'stage': 'base', 'step': 20, 'candidates': [{**candidate, 'step': 10}, candidate]}
    (one.workdir / 'best.json').write_text(json.dumps(best))
    card = model_card.text(one)
    assert 'Of 2 checkpoints, step 20 was the best: subject_fidelity 0.80, prompt_fidelity 0.70, drift 0.10.' in card
    scores = scored_runs.scores_of(one.workdir)
    (one.workdir / 'evaluation' / 'scores.json').write_text(json.dumps(scores))
    card = model_card.text(one)
    value = scores['models']['run']['sks dog']['dino_copy']['value']
    assert f'| dino_copy | {value:.3f} | ' in card and 'Measured by `evaluate` (base: checkpoint 60):' in card
    assert 'near 1, images give the photos back' in card
    for model in scores['models'].values():
        del model['sks dog']['dino_copy']
    (one.workdir / 'evaluation' / 'scores.json').write_text(json.dumps(scores))
    assert 'which shows copies, was not measured' in model_card.text(one)
    for damaged in ('{', '[]', '{"models": {"run": {"x": 3}}}'):
        (one.workdir / 'evaluation' / 'scores.json').write_text(damaged)
        (one.workdir / 'best.json').write_text(damaged)
        assert '## Scores' not in model_card.text(one)


def test_consent_is_told_in_its_own_words(export):
    assert 'No consent is recorded: the settings name no person.' in model_card.text(export())
    one = export({**DATA, 'consent': 'Ana Lima,\nby letter of 2026-11-02'})
    assert '\n> Ana Lima,\n> by letter of 2026-11-02\n' in model_card.text(one)
    assert 'Consent: Ana Lima, by letter of 2026-11-02.' in model_card.description(one)
    assert '\n' not in model_card.description(one)


@pytest.mark.parametrize('init', [None, '/home/ana/base'])
def test_a_pretrained_model_has_a_card_too(init):
    card = model_card.of_pretraining(PretrainConfig(stage='base', init=init, steps=9, batch_size=4))
    assert head(card) == {'library_name': 'diffusers', 'license': 'unknown', 'tags': ['jax', 'storybook']}
    start = 'from scratch' if init is None else 'starting from `base`'
    assert f'9 steps of 4 images, {start}' in card and 'no photo' in card and '/home' not in card


def test_a_card_beside_a_file_replaces_another_card_alone(export, tmp_path):
    path, one = tmp_path / 'x.safetensors', export(form='lora_peft', file='x.safetensors')
    model_card.check_beside(path)
    assert model_card.write_beside(one, path) == tmp_path / 'x.md'
    assert (tmp_path / 'x.md').read_text('utf-8') == model_card.text(one) == model_card.text(one)
    model_card.check_beside(path)
    (tmp_path / 'x.md').write_text('notes of mine')
    with pytest.raises(ConfigError, match='x.md is where the model card of --output=.* goes, but holds something else'):
        model_card.check_beside(path)
