"""Captions: words of the scene in the order of the paper's prompts, often fewer of them, never a subject's marks."""

import numpy as np
import pytest

from dreambooth_jax.storybook import world
from dreambooth_jax.storybook.captions import caption
from dreambooth_jax.text import prompts

SCENE = world.Scene(
    class_noun='dog', colour='red', accessory='wearing a santa hat', context='in the snow', pattern='spotted', seed=3
)


def captions(scene, count=300, **options):
    rng = np.random.default_rng(0)
    return [caption(scene, rng, **options) for _ in range(count)]


def test_a_caption_says_what_the_scene_shows_and_often_less():
    found = captions(SCENE)
    assert len(set(found)) > 8 and all('dog wearing a santa hat' in text for text in found)
    for word, share in (('red', 0.6), ('spotted', 0.7), ('in the snow', 0.95)):
        assert np.mean([word in text for text in found]) == pytest.approx(share, abs=0.1)
    assert max(found, key=len).endswith('red spotted dog wearing a santa hat in the snow')


def test_captions_are_a_function_of_the_generator():
    assert captions(SCENE, 20) == captions(SCENE, 20)


def test_marks_are_never_mentioned():
    marked = world.Scene(class_noun='dog', split=True, mark='star', mark_colour='purple', fine_mark='hatch')
    words = {word for text in captions(marked) for word in text.split()}
    assert not words & {'star', 'purple', 'hatch', 'split'}


def test_some_captions_are_the_papers_prompts():
    context = world.Scene(class_noun='dog', context='in the snow')
    assert {prompts.prompts_for('dog')[1], 'a dog'} <= set(captions(context))


def test_articles_and_styles_fit():
    orange = world.Scene(class_noun='cat', colour='orange')
    assert {text for text in captions(orange) if text.endswith('orange cat')} >= {'an orange cat'}
    painted = world.Scene(class_noun='cat', style='Rembrandt')
    assert all(
        text.startswith('a painting of a') and text.endswith('in the style of rembrandt') for text in captions(painted)
    )
    assert all(
        text.split('seen from the ')[1].startswith('top')
        for text in captions(world.Scene(class_noun='can', view='top'))
    )


@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
def test_rare_tokens_stand_before_the_noun_at_their_rate(rate):
    tokens = ('sks', 'xyz')
    found = captions(world.Scene(class_noun='stuffed animal', kind='bear'), rare_tokens=tokens, rare_token_rate=rate)
    rare = [text for text in found if set(text.split()) & set(tokens)]
    assert len(rare) / len(found) == pytest.approx(rate, abs=0.08)
    assert all(text.index('stuffed') > min(text.find(t) for t in tokens if t in text) for text in rare)
