"""Photos of people need consent, in one sentence."""

import dataclasses

import pytest

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, SubjectConfig, TextualInversionConfig
from dreambooth_jax.finetune import consent

DOG = {'instance_dir': 'photos', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
ANA = {'instance_dir': 'ana', 'instance_prompt': 'a zwx woman', 'class_prompt': 'a woman'}


def config(**data):
    return DreamBoothConfig(data=DataConfig(**data))


def refusal(settings):
    with pytest.raises(ConfigError) as error:
        consent.check(settings)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_people_need_consent():
    assert refusal(config(**ANA)) == (
        "config.data.class_prompt is 'a woman', in which 'woman' names a person, but config.data.consent says nothing: "
        'set it to whose consent the photos were given with, and how, such as "Ana Lima, by letter of 2026-11-02" (or, '
        'if they show no real person, to that)'
    )
    consent.check(config(**ANA, consent='Ana Lima, by letter of 2026-11-02'))
    consent.check(config(**DOG))


def test_every_subject_and_every_word_is_looked_at():
    both = (SubjectConfig(**DOG), SubjectConfig(**ANA))
    several = config(subjects=tuple(dataclasses.asdict(one) for one in both))
    assert refusal(several).startswith("config.data.subjects[1].class_prompt is 'a woman', in which")
    without = config(**{**ANA, 'class_prompt': ''})
    assert refusal(without).startswith("config.data.instance_prompt is 'a zwx woman', in which")
    word = dataclasses.replace(
        config(**{**DOG, 'instance_prompt': '<ana>', 'class_prompt': ''}),
        textual_inversion=TextualInversionConfig(token='<ana>', initializer='woman'),
    )
    assert refusal(word).startswith("config.textual_inversion.initializer is 'woman', in which")
