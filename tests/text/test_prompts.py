"""The paper's prompts, and taking an instance prompt apart."""

import collections

import pytest

from dreambooth_jax.storybook import world
from dreambooth_jax.text import prompts


def test_there_are_25_prompts_of_each_kind_of_subject():
    kinds = lambda ps: collections.Counter(prompt.kind for prompt in ps)  # noqa: E731
    assert kinds(prompts.OBJECT_PROMPTS) == {'context': 20, 'property': 5}
    assert kinds(prompts.LIVE_PROMPTS) == {'context': 10, 'accessory': 10, 'property': 5}
    assert prompts.evaluation_prompts('dog') is prompts.evaluation_prompts('cat') is prompts.LIVE_PROMPTS
    assert prompts.evaluation_prompts('stuffed animal') is prompts.OBJECT_PROMPTS


def test_prompts_read_as_in_the_papers_file():
    live, objects = prompts.prompts_for('dog', 'sks'), prompts.prompts_for('stuffed animal', 'sks')
    assert live[0] == 'a sks dog in the jungle' and live[13] == 'a sks dog wearing a black top hat and a monocle'
    assert live[-1] == 'a cube shaped sks dog' and live[20] == 'a red sks dog'
    assert objects[12] == 'a sks stuffed animal with the Eiffel Tower in the background'
    assert len(set(live)) == len(set(objects)) == 25
    assert prompts.prompts_for('dog')[0] == 'a dog in the jungle'


def test_prompts_are_those_that_storybook_can_paint():
    assert tuple(p.template.split('{class_noun} ')[1] for p in prompts.OBJECT_PROMPTS[:20]) == world.CONTEXTS
    assert tuple(p.template.split('{class_noun} ')[1] for p in prompts.LIVE_PROMPTS[10:20]) == world.ACCESSORIES
    assert prompts.LIVE_CLASSES == world.LIVE_CLASSES


def test_class_and_instance_prompts():
    assert prompts.class_prompt('dog') == 'a dog'
    assert prompts.instance_prompt('stuffed animal', 'sks') == 'a sks stuffed animal'
    assert prompts.without_identifier('a red sks dog in the snow', 'sks') == 'a red dog in the snow'
    assert prompts.without_identifier('a sks xyz dog', 'sks xyz') == 'a dog'
    assert prompts.without_identifier('a dog', '') == 'a dog'


def test_phrases_follow_the_class_prompt_in_turn():
    snow, hat = 'a dog in the snow', 'a dog wearing a hat'
    assert prompts.in_turn('a dog', ('in the snow', ' wearing a hat'), plain=False) == (snow, hat)
    assert prompts.in_turn('a dog', ('in the snow', ' wearing a hat'), plain=True) == ('a dog', snow, 'a dog', hat)
    assert prompts.in_turn('a dog', (), plain=True) == prompts.in_turn('a dog', (), plain=False) == ('a dog',)


@pytest.mark.parametrize(
    ('instance', 'general', 'expected'),
    [
        ('a sks dog', 'a dog', ('sks', 'dog')),
        ('a photo of a sks stuffed animal', 'a photo of a stuffed animal', ('sks', 'stuffed animal')),
        ('a sks xyz dog', 'a dog', ('sks xyz', 'dog')),
        ('a a dog', 'a dog', ('a', 'dog')),
    ],
)
def test_identifier_and_class_are_found(instance, general, expected):
    assert prompts.identifier_and_class(instance, general) == expected


@pytest.mark.parametrize(('instance', 'general'), [('a dog', 'a dog'), ('a sks cat', 'a dog'), ('a dog sks', 'a dog')])
def test_prompts_that_do_not_belong_together_are_named(instance, general):
    with pytest.raises(ValueError, match=f"'{instance}' must be class prompt '{general}' with an identifier"):
        prompts.identifier_and_class(instance, general)
