"""The verdict: three questions, each placed between the model before and the photos."""

import pytest

from dreambooth_jax.evaluation import verdict


def score(value, low=None, high=None):
    return {'value': value, 'low': low, 'high': high}


def found(run, base=None, ceiling=None):
    models = {'run': {'dog': {name: score(*numbers) for name, numbers in run.items()}}}
    if base is not None:
        models['base'] = {'dog': {name: score(*numbers) for name, numbers in base.items()}}
    return {'models': models, 'ceiling': {} if ceiling is None else {'dino': {'dog': {'others': ceiling}}}}


def grades(*arguments):
    return {one.about: one.grade for one in verdict.answers(found(*arguments), 'dog')}


@pytest.mark.parametrize(('value', 'grade'), [(0.65, 'good'), (0.63, 'fair'), (0.51, 'fair'), (0.49, 'bad')])
def test_the_subject_is_judged_on_the_way_from_the_model_before_to_the_photos(value, grade):
    assert grades({'dino': [value]}, {'dino': [0.4]}, 0.7) == {'subject': grade}


def test_a_single_photo_is_compared_with_a_cosine_of_one():
    (one,) = verdict.answers(found({'dino': [0.7]}, {'dino': [0.4]}), 'dog')
    assert (one.share, one.ceiling, one.grade) == (pytest.approx(0.5), None, 'fair')


@pytest.mark.parametrize(
    ('run', 'base', 'grade'),
    [
        ([0.29], [0.30], 'good'),
        ([0.26], [0.30], 'fair'),
        ([0.23], [0.30], 'fair'),
        ([0.22], [0.30], 'bad'),
        ([0.25, 0.22, 0.28], [0.30, 0.27, 0.33], 'good'),  # the intervals meet
        ([0.26, 0.25, 0.265], [0.30, 0.29, 0.31], 'fair'),
    ],
)
def test_prompts_are_judged_by_what_is_left_of_the_model_before(run, base, grade):
    assert grades({'clip_t': run}, {'clip_t': base}) == {'prompt': grade}


@pytest.mark.parametrize(('pres', 'grade'), [(0.42, 'good'), (0.55, 'fair'), (0.65, 'bad')])
def test_the_class_is_judged_on_the_way_to_the_images_of_the_subject(pres, grade):
    told = grades({'dino': [0.7], 'dino_pres': [pres]}, {'dino': [0.4], 'dino_pres': [0.4]}, 0.8)
    assert told['class'] == grade


def test_dino_is_preferred_and_clip_is_taken_without_it():
    both = found({'clip_i': [0.8], 'dino': [0.7]}, {'clip_i': [0.5], 'dino': [0.4]})
    assert [one.score for one in verdict.answers(both, 'dog')] == ['dino']
    alone = verdict.answers(found({'clip_i': [0.8], 'clip_i_pres': [0.5]}, {'clip_i': [0.5]}), 'dog')
    assert [(one.score, one.grade) for one in alone] == [('clip_i', 'fair'), ('clip_i_pres', 'open')]


def test_the_sentence_has_every_answer():
    run, base = (
        {'dino': [0.7], 'clip_t': [0.26], 'dino_pres': [0.69]},
        {'dino': [0.4], 'clip_t': [0.3], 'dino_pres': [0.4]},
    )
    given = verdict.answers(found(run, base, 0.72), 'dog')
    assert verdict.sentence(given) == (
        'The images show this subject, follow their prompts less well than before and have turned the whole class into '
        'the subject.'
    )
    assert [one.answer for one in given] == ['Yes', 'Less than before', 'No']
    assert verdict.sentence(given[:1]) == 'The images show this subject.'


def test_without_the_model_before_nothing_is_claimed():
    given = verdict.answers(found({'dino': [0.7], 'clip_t': [0.3], 'dino_pres': [0.5]}, None, 0.8), 'dog')
    assert {one.grade for one in given} == {'open'} and {one.answer for one in given} == {'Not known'}
    assert verdict.sentence(given).startswith('The model before was not scored')


def test_where_there_is_no_way_to_go_nothing_is_claimed():
    given = verdict.answers(found({'dino': [0.8]}, {'dino': [0.8]}, 0.8), 'dog')
    assert verdict.sentence(given) == 'The scores do not tell this model from the one before.'
    assert verdict.sentence([]) == 'Nothing was measured that says whether the run worked.'
