"""Which prompts name people."""

import pytest

from dreambooth_jax.storybook.world import CLASSES
from dreambooth_jax.text import people
from dreambooth_jax.text.people import person_in
from dreambooth_jax.text.prompts import class_prompt, prompts_for

PEOPLE = {
    'a person': 'person',
    'a sks man': 'man',
    'a photo of a young woman': 'woman',
    'A Woman': 'Woman',
    'two women': 'women',
    'old men in the park': 'men',
    'a baby': 'baby',
    'babies': 'babies',
    'a little girl, smiling': 'girl',
    'boys': 'boys',
    'a child asleep': 'child',
    'children': 'children',
    'a face': 'face',
    "a man's face": 'face',
    'faces': 'faces',
    'middle-aged man': 'man',
    'a policewoman': 'policewoman',
    'firemen': 'firemen',
    'a schoolgirl': 'schoolgirl',
    'a salesperson': 'salesperson',
    'her stepmother': 'stepmother',
    'a human being': 'human',
    'people': 'people',
    'ladies': 'ladies',
    'actresses': 'actresses',
    'celebrities': 'celebrities',
    'my wife': 'wife',
    'their wives': 'wives',
    'a couple at the sea': 'couple',
    'a woman with a doll': 'woman',
    'a dog and a man': 'man',
    'portrait of sks_person': 'person',
    'a teenager': 'teenager',
}
NOTHING = [
    '',
    'a dog',
    'a baby doll',
    'baby bottles',
    'a kids toy',
    'an action figure',
    'a woman statue',
    "a man's hat",
    'a girl\u2019s dress',
    'a face mask',
    'a snowman',
    'two snowmen',
    'a doberman',
    'a german shepherd',
    'an ottoman',
    'a gingerbread man',
    'a lego man',
    'a couple of dogs',
    'a mannequin',
    'a manual',
    'a boycott sign',
    'a romance novel',
    'an interface',
    'a kidney bean',
    'a sonnet',
    'a cat on the surface',
]


@pytest.mark.parametrize('prompt', PEOPLE)
def test_people_are_found_by_the_word_that_names_them(prompt):
    assert person_in(prompt) == PEOPLE[prompt]


@pytest.mark.parametrize('prompt', NOTHING)
def test_things_and_animals_are_no_people(prompt):
    assert person_in(prompt) is None


@pytest.mark.parametrize('class_noun', CLASSES)
def test_no_class_of_the_paper_and_none_of_its_prompts_is_a_person(class_noun):
    assert person_in(class_prompt(class_noun)) is None
    assert [prompt for prompt in prompts_for(class_noun, 'sks') if person_in(prompt)] == []


def test_every_noun_of_the_list_is_found_in_any_number():
    for noun in people._NOUNS:
        plural = next((plural for plural, one in people._PLURALS.items() if one == noun), None)
        if plural is None:
            plural = f'{noun[:-1]}ies' if noun.endswith('y') and noun[-2] not in 'aeou' else f'{noun}s'
        assert person_in(f'a sks {noun}') == noun and person_in(f'sks {plural}') == plural, plural
