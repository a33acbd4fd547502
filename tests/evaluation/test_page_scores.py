"""The part of the page that tells the scores of a subject."""

import re

import pytest

from dreambooth_jax.evaluation import page_scores
from dreambooth_jax.evaluation.embedded_images import Detail, EmbeddedImages
from dreambooth_jax.evaluation.page_scores import SubjectScores
from tests.support import scored_runs

DETAIL = Detail(side=64, grid_side=64, grids=9, class_images=9, per_prompt=9, with_base=True)


@pytest.fixture(scope='module')
def scores(tmp_path_factory):
    run = tmp_path_factory.mktemp('page_scores')
    found = scored_runs.scores_of(run)
    folders = {model: run / 'evaluation' / 'images' / folder for model, folder in found['images'].items()}
    return SubjectScores(found=found, subject='sks dog', folders=folders)


def value(scores, model, name):
    return f'{scores.found["models"][model]["sks dog"][name]["value"]:.3f}'


def embedded(**changed):
    return EmbeddedImages(detail=DETAIL._replace(**changed), limit=10**9)


def test_the_verdict_has_the_number_the_floor_and_the_ceiling(scores):
    markup = page_scores.verdict_of(scores)
    assert '<p class="verdict">The images show this subject' in markup
    told = f'this run {value(scores, "run", "dino")}, model before {value(scores, "base", "dino")}, photos 0.800'
    assert told in markup and markup.count('class="card good"') == 3
    assert 'yes from 80 % on' in markup  # the rule is told


def test_every_score_has_a_row_with_its_meaning(scores):
    markup = page_scores.score_table(scores)
    rows = re.findall(r'<tr title="\d+ images">(.*?)</tr>', markup)
    assert [re.search(r'<b>(.*?)</b>', row)[1] for row in rows] == list(scored_runs.SCORES)
    assert value(scores, 'run', 'dino') in rows[0] and value(scores, 'base', 'dino') in rows[0] and '0.800' in rows[0]
    assert 'like the subject&#x27;s photos, by DINO' in rows[0] and 'less is better' in rows[3]
    assert '–' in rows[3]  # photos have no PRES


def test_a_score_that_the_model_before_lacks_is_a_dash(scores):
    models = {**scores.found['models'], 'base': {'sks dog': {}}}
    markup = page_scores.score_table(
        SubjectScores(found={**scores.found, 'models': models}, subject='sks dog', folders={})
    )
    assert markup.count('<td data-label="model before">–</td>') == len(scored_runs.SCORES)


def test_a_score_of_others_is_shown_without_a_meaning(scores):
    told = {'value': 0.5, 'low': None, 'high': None, 'images': 4, 'kinds': {}, 'prompts': {}}
    more = {model: {'sks dog': {'house_style': told}} for model in ('run', 'base')}
    others = SubjectScores(found={**scores.found, 'models': more}, subject='sks dog', folders={})
    assert '<b>house_style</b>' in page_scores.score_table(others)
    assert 'house_<wbr>style' in page_scores.prompt_table(others, embedded())


def test_kinds_of_prompts_have_their_own_numbers(scores):
    markup = page_scores.kind_table(scores)
    kinds = re.findall(r'<th scope="col">(\w+)<br><span class="muted">(.*?)</span>', markup)
    assert kinds == [(kind, '1 prompt') for kind in ('context', 'accessory', 'property', 'class')]
    rows = dict(re.findall(r'<th scope="row"><b>(\w+)</b></th>(.*?)</tr>', markup))
    for model, where in (('run', '"number">{:.3f}<'), ('base', '>before {:.3f}<')):
        told = scores.models[model]['dino']['kinds']
        positions = [rows['dino'].index(where.format(told[kind]['value'])) for kind, _ in kinds[:3]]
        assert positions == sorted(positions)
    assert rows['dino'].count('class="empty"') == 1 and rows['dino_pres'].count('class="empty"') == 3


def test_every_prompt_has_its_images_beside_its_numbers(scores):
    bodies = re.findall(r'<tbody>(.*?)</tbody>', page_scores.prompt_table(scores, embedded()))
    prompts = [*scored_runs.PROMPTS, scored_runs.CLASS_PROMPT]
    assert [re.search(r'<b>(.*?)</b>', body)[1] for body in bodies] == prompts
    for body, prompt in zip(bodies, prompts, strict=True):
        assert re.findall(r'alt="(.*?)"', body) == [
            f'“{prompt}”, {model}, image {number}' for model in ('this run', 'model before') for number in (1, 2)
        ]
    own = scores.models['run']['clip_t']['prompts'][prompts[0]]
    assert f'title="clip_t" data-label="clip_t" data-value="{own:.9f}"' in bodies[0]
    assert 'class="empty"' in bodies[0] and 'data-label="dino_pres" data-value' in bodies[3]


def test_less_detail_leaves_images_out(scores):
    markup = page_scores.prompt_table(scores, embedded(per_prompt=1, with_base=False))
    assert markup.count('<img') == 4 and 'model before, image' not in markup


def test_images_that_are_gone_are_left_out(scores, tmp_path):
    lost = SubjectScores(found=scores.found, subject='sks dog', folders={'run': tmp_path, 'base': tmp_path})
    assert '<img' not in page_scores.prompt_table(lost, embedded())
