"""The settings of subjects: one or several in a run, their words, and what is asked of them before a run starts."""

import json

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_config_dict, to_dict

DOG = {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}


def with_data(**settings):
    return {'data': DOG | settings}


def test_several_subjects_in_one_run():
    subjects = [{'subject': name, 'instance_prompt': f'a {name}', 'class_prompt': 'a pet'} for name in ('cat', 'dog')]
    config = to_config_dict(DreamBoothConfig())
    config.data.subjects = subjects
    resolved = resolve(DreamBoothConfig, config)
    assert [subject.subject for subject in resolved.subjects()] == ['cat', 'dog']
    assert resolved.sample_prompts() == ('a cat', 'a pet', 'a dog')
    assert resolve(DreamBoothConfig, json.loads(json.dumps(to_dict(resolved)))) == resolved


def test_an_incomplete_subject_is_named():
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, {'data': {'subjects': [DOG, {'subject': 'cat'}]}})
    assert str(error.value) == "config.data.subjects[1].instance_prompt must be given, for example 'a sks dog'"


def test_a_run_without_subjects_has_the_one_of_data():
    resolved = resolve(DreamBoothConfig, with_data())
    assert [subject.subject for subject in resolved.subjects()] == ['dog']
    assert resolved.sample_prompts() == ('a sks dog', 'a dog')


def test_consent_is_a_text_that_says_something():
    assert resolve(DreamBoothConfig, with_data(consent='given by Ann')).data.consent == 'given by Ann'
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, with_data(consent=' '))
    assert str(error.value) == (
        'config.data.consent is empty; say whose consent it is and how it was given, or leave it None'
    )


def test_what_a_built_in_subject_has_is_not_asked_for_where_subjects_are_listed():
    listed = {'subjects': [DOG], 'subject_captions': True}
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, {'data': listed})
    assert str(error.value) == (
        'config.data.subject_captions is True but config.data.subjects names the subjects of this run; leave one of '
        'the two empty'
    )
    assert resolve(DreamBoothConfig, {'data': {'subjects': [DOG | {'subject_captions': True}]}}).subjects()[0]
