"""report.html: one file without a network, in which text stays text; and what a browser makes of it."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from dreambooth_jax.evaluation import page
from tests.support import chromium, scored_runs

HOSTILE = '</script><script>document.title = "taken"</script><img src=x onerror="document.title=1">'


def write(run, found, missing=None):
    page.write(run / 'evaluation', {run: found}, lambda _: scored_runs.photos(), missing or {})
    return run / 'evaluation' / page.FILE


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The page of a run whose prompts and settings try to break out of it."""
    run = scored_runs.run_folder(tmp_path_factory.mktemp('page') / 'dog')
    settings = json.loads((run / 'config.json').read_text())
    (run / 'config.json').write_text(json.dumps(settings | {'model': HOSTILE}))
    prompts = scored_runs.PROMPTS | {f'a sks dog {HOSTILE}': 'context'}
    return write(run, scored_runs.scores_of(run, prompts=prompts))


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ('img', 'meta', 'br', 'wbr', 'input', 'link'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_loaded_from_elsewhere(report):
    elements = Elements(report.read_text('utf-8'))
    assert elements.open == []  # every element is closed where it should be
    for tag, attributes in elements.found:
        for name in ('src', 'href', 'data', 'poster', 'action', 'srcset'):
            assert attributes.get(name, 'data:').startswith(('data:', '#')), (tag, attributes)
        assert not any(name.startswith('on') or name == 'style' for name in attributes), (tag, attributes)
    assert not re.search(r'@import|url\(', report.read_text('utf-8'))


def test_only_its_own_script_and_style_may_run(report):
    text = report.read_text('utf-8')
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy.startswith('default-src &#x27;none&#x27;; img-src data:;')
    for name in ('script', 'style'):
        (content,) = re.findall(f'<{name}>(.*?)</{name}>', text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f'{name}-src &#x27;sha256-{digest}&#x27;' in policy
    assert [tag for tag, _ in Elements(text).found].count('script') == 1  # the hostile prompt is text


def test_images_have_words_and_headings_come_in_order(report):
    text = report.read_text('utf-8')
    images = [attributes for tag, attributes in Elements(text).found if tag == 'img']
    assert all(attributes['alt'] for attributes in images[:-1]) and len(images) > 20  # the last is the empty dialog
    levels = [int(tag[1]) for tag, _ in Elements(text).found if re.fullmatch('h[1-6]', tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    headings = re.findall('<h2>(.*?)</h2>', text)
    assert headings == [
        'Photos as the model saw them',
        'Class images',
        'Samples over the training',
        'Curves',
        'Scores',
        'By kind of prompt',
        'By prompt',
        'Settings and versions',
    ]


def test_a_page_that_would_be_too_large_shows_less(tmp_path, monkeypatch):
    run = scored_runs.run_folder(tmp_path / 'dog', side=80)
    found = scored_runs.scores_of(run, num_images=3, side=80)
    whole = write(run, found).read_text('utf-8')
    monkeypatch.setattr(page, 'LIMIT', len(whole) // 3)
    less = write(run, found).read_text('utf-8')
    assert len(less) < len(whole) / 2 and less.count('<img') < whole.count('<img')
    assert '“a sks dog in the snow”, this run, image 1' in less
    monkeypatch.setattr(page, 'LIMIT', 1)
    assert '“a sks dog in the snow”, this run, image 1' in write(run, found).read_text('utf-8')


def test_without_the_model_before_there_are_no_columns_of_it(tmp_path):
    run = scored_runs.run_folder(tmp_path / 'dog')
    found = scored_runs.scores_of(run)
    del found['models']['base'], found['images']['base']
    text = write(run, found).read_text('utf-8')
    assert 'The model before was not scored' in text and 'model before</' not in text
    assert '“a sks dog in the snow”, this run, image 1' in text


def test_several_subjects_have_a_table_with_their_mean(tmp_path):
    runs = {}
    for name in ('dog', 'cat'):
        run = scored_runs.run_folder(tmp_path / name)
        runs[run] = scored_runs.scores_of(run, subject=f'sks {name}')
        # The images of a benchmark lie together, in the folder of each run.
        for model, folder in runs[run]['images'].items():
            target = tmp_path / 'images' / name / folder
            target.parent.mkdir(parents=True, exist_ok=True)
            (run / 'evaluation' / 'images' / folder).rename(target)
            runs[run]['images'][model] = f'{name}/{folder}'
    page.write(tmp_path, runs, lambda _: scored_runs.photos(), {'teapot': 'it has no <checkpoints>'})
    text = (tmp_path / page.FILE).read_text('utf-8')
    assert Elements(text).open == [] and '<title>2 subjects</title>' in text
    assert text.count('<details class="run">') == 2 and text.count('this run, image 1') == 2 * 4 * 2
    assert '<b>teapot</b> is missing: it has no &lt;checkpoints&gt;' in text
    assert re.findall(r'<a href="#(.*?)">(.*?)</a>', text) == [
        ('subject-0', 'dog: sks dog'),
        ('subject-1', 'cat: sks cat'),
    ]
    assert 'id="subject-1"' in text and '<b>Is it this subject?</b> Yes: 2</p>' in text
    own = [found['models']['run'][f'sks {run.name}']['dino']['value'] for run, found in runs.items()]
    (mean,) = re.findall(r'mean over subjects</th>.*?<span class="number">(.*?)</span>', text)
    assert mean == f'{np.mean(own):.3f}'


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason='Chromium is not installed')
@pytest.mark.parametrize('width', [1200, 400])
def test_a_browser_shows_it_without_complaint(report, tmp_path, width):
    with chromium.Page(report, tmp_path / 'profile', width=width, dark=width == 400) as shown:
        assert shown.run('document.title') == 'sks dog: does it work?'
        assert shown.run('[...document.images].slice(0, -1).every(image => image.naturalWidth > 0)')
        assert shown.run('document.documentElement.scrollWidth') == width  # nothing makes the page scroll sideways

        is_block = shown.run(
            '(x => x.offsetWidth === x.parentElement.offsetWidth)(document.querySelector(".scores tbody th"))'
        )
        assert is_block == (width == 400)  # on a phone each row is a block below its name

        visible = '[...document.querySelectorAll(".slider .grid")].filter(x => x.offsetParent).map(x => x.dataset.step)'
        assert shown.run(visible) == ['60', '60']
        shown.run('document.querySelector(".slider input").focus()')
        shown.press('ArrowLeft')
        assert shown.run(visible) == ['40', '60']
        assert shown.run('document.querySelector(".slider output").textContent') == 'step 40'

        shown.run('document.querySelectorAll(".sortable thead button")[1].click()')
        values = (
            '[...document.querySelectorAll(".sortable tbody")].map(x => parseFloat(x.rows[0].cells[1].dataset.value))'
        )
        told = shown.run(values)
        assert told[-1] is None and sorted(told[:-1], reverse=True) == told[:-1]  # the class prompt has no such score

        shown.run('document.querySelector(".chart").focus()')
        shown.press('ArrowLeft')
        assert shown.run('document.querySelector(".hover").innerText').startswith('step 59\nloss 0.0339')

        shown.run('document.querySelector(".prompts .thumb").click()')
        first = shown.run('document.querySelector("dialog p").textContent')
        shown.press('ArrowRight')
        assert first.endswith('image 1') and shown.run('document.querySelector("dialog p").textContent') != first
        shown.run('document.querySelector("dialog button").click()')
        assert not shown.run('document.querySelector("dialog").open')
        assert shown.complaints == []


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason='Chromium is not installed')
def test_a_browser_that_complains_is_heard(tmp_path):
    broken = tmp_path / 'broken.html'
    broken.write_text('<script>console.error("a"); missing()</script><img src="http://localhost:9/x.png">')
    with chromium.Page(broken, tmp_path / 'profile') as shown:
        shown.run('1')
    assert "['a']" in shown.complaints and any('missing is not defined' in text for text in shown.complaints)
    assert 'request of http://localhost:9/x.png' in shown.complaints
