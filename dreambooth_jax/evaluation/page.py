"""report.html: what an evaluation found and what it found it in, in one file that needs neither a network nor a server.

    head            the subject, the verdict in one sentence, and the three numbers that it comes from
    training        photos as the model saw them, class images, sample grids over the steps, curves
    scores          with intervals; by kind of prompt; by prompt, beside the images
    settings        config.json, versions, encoders, sampling

Of several subjects it has a table of all, and the same for each of them, folded. All text is escaped (markup.py), the
images are inside (embedded_images.py), and a Content-Security-Policy forbids everything else, scripts of others
included. If the images would take more than LIMIT, fewer and smaller ones are shown.
"""

import base64
import collections
import dataclasses
import datetime
import hashlib
import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax.evaluation import page_run, page_scores, scores, verdict
from dreambooth_jax.evaluation.embedded_images import Detail, EmbeddedImages, TooLarge
from dreambooth_jax.evaluation.markup import Markup, element, joined
from dreambooth_jax.evaluation.page_scores import SubjectScores
from dreambooth_jax.evaluation.report import MAIN
from dreambooth_jax.system import disk

FILE = 'report.html'
LIMIT = 9_000_000  # bytes of all images of a page
# From the richest on; the first that fits is taken.
_DETAILS = (
    Detail(side=256, grid_side=1200, grids=24, class_images=12, per_prompt=4, with_base=True),
    Detail(side=256, grid_side=1000, grids=8, class_images=12, per_prompt=4, with_base=True),
    Detail(side=160, grid_side=800, grids=6, class_images=8, per_prompt=4, with_base=True),
    Detail(side=128, grid_side=640, grids=3, class_images=6, per_prompt=4, with_base=False),
    Detail(side=128, grid_side=640, grids=2, class_images=4, per_prompt=1, with_base=False),
    Detail(side=96, grid_side=480, grids=1, class_images=4, per_prompt=1, with_base=False),
    Detail(side=64, grid_side=320, grids=1, class_images=2, per_prompt=1, with_base=False),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A run and its scores.

    Attributes:
      found: the content of its scores.json.
      run: its folder.
      images: the folder that `found` means by the folders of its images.
      photos: the subjects' photos as the model saw them, uint8[H, W, 3] each.
    """

    found: Mapping[str, Any]
    run: Path
    images: Path
    photos: Sequence[np.ndarray]

    @property
    def subjects(self) -> list[SubjectScores]:
        """The scores of each of its subjects."""
        folders = {model: self.images / folder for model, folder in self.found['images'].items()}
        models = self.found['models']['run']
        return [SubjectScores(found=self.found, subject=subject, folders=folders) for subject in models]


def write(
    workdir: Path,
    found: Mapping[Path, Mapping[str, Any]],
    seen: Callable[[Path], Sequence[np.ndarray]],
    missing: Mapping[str, str],
) -> None:
    """Writes the page of one run or of several into the folder of an evaluation.

    Args:
      workdir: the folder; its images/ hold what the runs have generated.
      found: folder of a run -> its scores, in the form of run_scores.score; in this order, at least one.
      seen: run's folder -> the photos as its model saw them, uint8[H, W, 3] each.
      missing: name of a run without scores -> why it has none.

    Raises:
      OSError: if the disk does not take the file, or a run's folder cannot be read.
    """
    runs = [Scored(found=one, run=run, images=workdir / 'images', photos=seen(run)) for run, one in found.items()]
    text = _fitting(runs, missing)
    with disk.writing(workdir / FILE) as new:
        new.write_text(text, 'utf-8')


def _fitting(runs: Sequence[Scored], missing: Mapping[str, str]) -> str:
    *richer, last = _DETAILS
    for detail in richer:
        if _at_least(runs, detail) <= LIMIT:  # else trying would only cost time
            try:
                return _document(runs, missing, EmbeddedImages(detail=detail, limit=LIMIT))
            except TooLarge:
                pass
    return _document(runs, missing, EmbeddedImages(detail=last, limit=math.inf))


def _at_least(runs: Sequence[Scored], detail: Detail) -> float:
    """Returns about how many bytes the prompts' images would take if they were plain and not large."""
    of_one = detail.per_prompt * (2 if detail.with_base else 1) * min(detail.side, 128) ** 2 * 0.1
    return of_one * sum(len(prompts['prompts']) for one in runs for prompts in one.found['subjects'].values())


def _document(runs: Sequence[Scored], missing: Mapping[str, str], embedded: EmbeddedImages) -> str:
    several = sum(len(one.subjects) for one in runs) > 1 or missing
    title, body = _of_several(runs, missing, embedded) if several else _of_one(runs[0], embedded)
    large = element('dialog', element('img', alt=''), element('p'), element('button', 'Close', type='button'))
    return document(title, joined(body, large), own_file('page.css'), own_file('page.js'))


def document(title: str, body: Markup, style: Markup, script: Markup | None = None) -> str:
    """Returns a page that needs nothing else, and may load nothing else.

    Args:
      title: its title.
      body: what it shows.
      style: its style sheet.
      script: its script; None: it has none.
    """
    policy = ["default-src 'none'", 'img-src data:', f"style-src '{_digest(style)}'"]
    policy += [] if script is None else [f"script-src '{_digest(script)}'"]
    policy += ["base-uri 'none'", "form-action 'none'"]
    head = element(
        'head',
        element('meta', charset='utf-8'),
        element('meta', http_equiv='Content-Security-Policy', content='; '.join(policy)),
        element('meta', name='viewport', content='width=device-width, initial-scale=1'),
        element('meta', name='color-scheme', content='light dark'),
        element('link', rel='icon', href='data:,'),
        element('title', title),
        element('style', style),
    )
    end = None if script is None else element('script', script)
    return '<!doctype html>\n' + element('html', head, element('body', body, end), lang='en')


def _of_one(one: Scored, embedded: EmbeddedImages) -> tuple[str, Markup]:
    (subject,) = one.subjects
    title = f'{subject.subject}: does it work?'
    top = [element('h1', subject.subject), _about(one), page_scores.verdict_of(subject)]
    body = [element('header', *top), _training(one, embedded), *_measured(subject, embedded)]
    return title, element('main', *body, page_run.settings(one.run, one.found))


def _of_several(runs: Sequence[Scored], missing: Mapping[str, str], embedded: EmbeddedImages) -> tuple[str, Markup]:
    count = sum(len(one.subjects) for one in runs)
    title = f'{count} subject{"" if count == 1 else "s"}'
    sections, names = [], []
    for one in runs:
        inside = [_about(one)]
        for subject in one.subjects:
            names.append((subject, f'{one.run.absolute().name}: {subject.subject}', f'subject-{len(names)}'))
            anchor = element('h2', subject.subject, id=names[-1][2])
            inside += [anchor, page_scores.verdict_of(subject), *_measured(subject, embedded)]
        inside += [_training(one, embedded), page_run.settings(one.run, one.found)]
        heading = f'{one.run.absolute().name}: {", ".join(subject.subject for subject in one.subjects)}'
        sections.append(element('details', element('summary', heading), *inside, class_='run'))
    verdicts = [verdict.answers(subject.found, subject.subject) for subject, _, _ in names]
    left_out = [element('p', element('b', name), f' is missing: {why}') for name, why in missing.items()]
    top = element('header', element('h1', title), element('p', _written(), class_='muted'))
    parts = [top, *_counted(verdicts), page_scores.key(names[0][0]), _table_of_all(names), *left_out, *sections]
    return title, element('main', *parts)


def _counted(verdicts: Sequence[Sequence[verdict.Answer]]) -> list[Markup]:
    """Returns how many subjects have each answer to each question."""
    counts: dict[str, collections.Counter] = {}
    for one in (answer for answers in verdicts for answer in answers):
        counts.setdefault(one.question, collections.Counter())[one.answer] += 1
    return [
        element('p', element('b', question), ' ', ', '.join(f'{words}: {n}' for words, n in count.most_common()))
        for question, count in counts.items()
    ]


def _table_of_all(names: Sequence[tuple[SubjectScores, str, str]]) -> Markup:
    """Returns the main scores of every subject, and their means over the subjects."""
    there = [name for name in MAIN if any(name in subject.models['run'] for subject, _, _ in names)]
    head = [element('th', element('button', title, type='button')) for title in ('subject', *there)]
    rows = []
    for number, (subject, title, anchor) in enumerate(names):
        link = element('a', title, href=f'#{anchor}')
        cells = [element('th', link, scope='row', data_value=f'{number:04d}')]
        for name in there:
            told = {model: all_of.get(name) for model, all_of in subject.models.items()}
            cells.append(page_scores.compared(name, told, subject.ceiling(name)))
        rows.append(element('tbody', element('tr', *cells)))
    cells = [element('th', 'mean over subjects', scope='row')]
    for name in there:
        told: dict[str, list[float]] = {}
        for subject, _, _ in names:
            for model, all_of in subject.models.items():
                told.setdefault(model, []).extend([all_of[name]['value']] if name in all_of else [])
        means = {model: _mean(values) for model, values in told.items() if values}
        ceilings = [value for subject, _, _ in names if (value := subject.ceiling(name)) is not None]
        cells.append(page_scores.compared(name, means, float(np.mean(ceilings)) if ceilings else None))
    foot = element('tfoot', element('tr', *cells))
    return page_scores.table(head, [*rows, foot], 'all sortable')


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return dataclasses.asdict(scores.score(values, [str(i) for i in range(len(values))]))


def _about(one: Scored) -> Markup:
    model = page_run.read_settings(one.run)['model']
    told = [f'Run {one.run.absolute().name}', f'model {model}', '; '.join(one.found['weights']), _written()]
    return element('p', ' · '.join(told), class_='muted')


def _written() -> str:
    return f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC'


def _training(one: Scored, embedded: EmbeddedImages) -> Markup:
    trained = page_run.trained_on(one.run, one.photos, embedded)
    return joined(trained, page_run.samples(one.run, embedded), page_run.curves(one.run))


def _measured(subject: SubjectScores, embedded: EmbeddedImages) -> list[Markup]:
    return [
        element('h2', 'Scores'),
        page_scores.key(subject),
        page_scores.score_table(subject),
        element('h2', 'By kind of prompt'),
        page_scores.kind_table(subject),
        element('h2', 'By prompt'),
        element('p', 'A click on a heading sorts, a click on an image enlarges it.', class_='muted'),
        page_scores.prompt_table(subject, embedded),
    ]


def own_file(name: str) -> Markup:
    """Returns a style sheet or script of the package, from page_files/."""
    folder = importlib.resources.files('dreambooth_jax.evaluation')
    return joined(Markup(folder.joinpath('page_files', name).read_text('utf-8')))


def _digest(text: str) -> str:
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
