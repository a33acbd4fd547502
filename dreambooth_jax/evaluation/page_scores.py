"""The part of a page that tells the scores of one subject: the verdict, tables, and every prompt with its images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.evaluation import charts, verdict
from dreambooth_jax.evaluation.embedded_images import EmbeddedImages, Shown
from dreambooth_jax.evaluation.markup import Markup, element, joined
from dreambooth_jax.evaluation.protocol import image_name
from dreambooth_jax.evaluation.report import meaning

MODELS = {'run': 'this run', 'base': 'model before'}  # what a page calls the models of scores.json
_SHORT = {'base': 'before'}  # in narrow cells
_WANTED = {'more': 'more is better', 'less': 'less is better', 'between': 'neither end is good'}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SubjectScores:
    """The scores of one subject of a run.

    Attributes:
      found: the content of scores.json.
      subject: one of its subjects.
      folders: model -> the folder that holds its images.
    """

    found: Mapping[str, Any]
    subject: str
    folders: Mapping[str, Path]

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """Model -> score -> value, low, high, 'kinds' and 'prompts'."""
        return {model: subjects[self.subject] for model, subjects in self.found['models'].items()}

    def ceiling(self, name: str) -> float | None:
        """Returns what the photos have among each other; None if there is nothing like it."""
        return self.found['ceiling'].get(name, {}).get(self.subject, {}).get('others')

    def kind_of(self, prompt: str) -> str:
        """Returns the kind of a prompt, or 'class' for the class prompt."""
        kinds = self.found['subjects'][self.subject]['prompts']
        return kinds.get(prompt, 'class')


def verdict_of(scores: SubjectScores) -> Markup:
    """Returns the verdict in one sentence, and the numbers that it comes from."""
    given = verdict.answers(scores.found, scores.subject)
    cards = []
    for one in given:
        rows = [(model, told[one.score]) for model, told in scores.models.items()]
        numbers = [('this run', one.value), ('model before', one.floor), ('photos', one.ceiling)]
        told = [f'{name} {value:.3f}' for name, value in numbers if value is not None]
        parts = [
            element('h3', one.question),
            element('p', one.answer, class_='answer'),
            charts.intervals(rows, one.ceiling),
            element('p', element('b', one.score), ', ', meaning(one.score)[0], ': ', ', '.join(told), class_='small'),
        ]
        cards.append(element('div', *parts, class_=f'card {one.grade}'))
    return joined(
        element('p', verdict.sentence(given), class_='verdict'),
        element('div', *cards, class_='cards'),
        key(scores),
        element(
            'details',
            element('summary', 'How these words are chosen'),
            *(element('p', paragraph) for paragraph in verdict.RULE),
            class_='small',
        ),
    )


def key(scores: SubjectScores) -> Markup:
    """Returns what the colours of dots and lines mean."""
    marks = [element('span', element('i', class_=f'key of-{model}'), _called(model)) for model in scores.models]
    marks.append(element('span', element('i', class_='key of-photos'), 'photos among each other'))
    return element('p', *marks, class_='legend')


def score_table(scores: SubjectScores) -> Markup:
    """Returns every score of the run beside the model before and the photos."""
    head = ['score', *map(_called, scores.models), 'photos', '95 % intervals']
    rows = []
    for name, own in scores.models['run'].items():
        told, wanted = meaning(name)
        ceiling = scores.ceiling(name)
        of_models = [(model, all_of[name]) for model, all_of in scores.models.items() if name in all_of]
        described = [element('b', name), element('br'), element('span', told, class_='muted')]
        if wanted in _WANTED:
            described += [element('br'), element('span', _WANTED[wanted], class_='wanted')]
        cells = [element('th', *described, scope='row')]
        numbers = {model: interval(all_of[name]) if name in all_of else '–' for model, all_of in scores.models.items()}
        cells += [element('td', *shown, data_label=_called(model)) for model, shown in numbers.items()]
        cells.append(element('td', '–' if ceiling is None else f'{ceiling:.3f}', data_label='photos'))
        cells.append(element('td', charts.intervals(of_models, ceiling), class_='plotted'))
        rows.append(element('tr', *cells, title=f'{own["images"]} images'))
    return table([element('th', title, scope='col') for title in head], [element('tbody', *rows)], 'scores')


def kind_table(scores: SubjectScores) -> Markup:
    """Returns the scores for each kind of prompt."""
    names = list(scores.models['run'])
    kinds = dict.fromkeys(kind for name in names for kind in scores.models['run'][name]['kinds'])
    asked = [scores.kind_of(prompt) for prompt in _prompts(scores)]
    head = [element('th', 'score', scope='col')]
    for kind in kinds:
        words = f'{asked.count(kind)} prompt{"" if asked.count(kind) == 1 else "s"}'
        head.append(element('th', kind, element('br'), element('span', words, class_='muted'), scope='col'))
    rows = []
    for name in names:
        of_models = {model: all_of[name]['kinds'] for model, all_of in scores.models.items() if name in all_of}
        told = ({model: of_kinds.get(kind) for model, of_kinds in of_models.items()} for kind in kinds)
        cells = [compared(kind, one) for kind, one in zip(kinds, told, strict=True)]
        rows.append(element('tr', element('th', element('b', name), scope='row'), *cells))
    return table(head, [element('tbody', *rows)], 'kinds')


def prompt_table(scores: SubjectScores, embedded: EmbeddedImages) -> Markup:
    """Returns every prompt with its images and scores; a click on a heading sorts.

    Raises:
      TooLarge: if the images of the page take too much.
    """
    names = list(scores.models['run'])
    bodies = []
    for number, prompt in enumerate(_prompts(scores)):
        kind = scores.kind_of(prompt)
        label = [element('b', prompt), element('br'), element('span', kind, class_='muted')]
        cells = [element('th', *label, scope='row', data_value=f'{number:04d}')]
        for name in names:
            told = {m: all_of[name]['prompts'].get(prompt) for m, all_of in scores.models.items() if name in all_of}
            told = {model: None if value is None else {'value': value, 'low': None} for model, value in told.items()}
            cells.append(compared(name, told))
        images = [_images(scores, model, prompt, embedded) for model in scores.models]
        shown = element('td', element('div', *images), colspan=len(names) + 1, class_='shown')
        bodies.append(element('tbody', element('tr', *cells), element('tr', shown)))
    buttons = [('prompt', 'prompt'), *((_broken(name), name) for name in names)]
    head = [
        element('th', element('button', shown, type='button', title=f'sort by {name}'), scope='col')
        for shown, name in buttons
    ]
    return table(head, bodies, 'prompts sortable')


def table(head: Sequence[Markup], bodies: Sequence[Markup], kind: str) -> Markup:
    """Returns a table that scrolls sideways by itself where the screen is narrow."""
    whole = element('table', element('thead', element('tr', *head)), *bodies, class_=kind)
    return element('div', whole, class_='scrolled', tabindex='0')


def interval(score: Mapping[str, Any]) -> list[Markup]:
    """Returns a score with its interval, if it has one."""
    told = [element('span', f'{score["value"]:.3f}', class_='number')]
    if score['low'] is not None:
        told.append(element('span', f' [{score["low"]:.3f}, {score["high"]:.3f}]', class_='muted'))
    return told


def compared(name: str, told: Mapping[str, Mapping[str, Any] | None], ceiling: float | None = None) -> Markup:
    """Returns the cell of a score: the run's own number above those of other models and of the photos.

    Args:
      name: of the score.
      told: model -> value, low and high; None: it has no such score.
      ceiling: of the photos among each other; None: it is not told.
    """
    own = told.get('run')
    if own is None:
        return element('td', '–', data_label=name, class_='empty')
    others = [
        (_SHORT.get(model, model), score) for model, score in told.items() if model != 'run' and score is not None
    ]
    others = [(title, score['value']) for title, score in others]
    others += [] if ceiling is None else [('photos', ceiling)]
    below = [element('span', f'{title} {value:.3f}', class_='line muted') for title, value in others]
    parts = [element('span', *interval(own), class_='line'), *below]
    return element('td', *parts, title=name, data_label=name, data_value=f'{own["value"]:.9f}')


def _images(scores: SubjectScores, model: str, prompt: str, embedded: EmbeddedImages) -> Markup | None:
    if model != 'run' and not embedded.detail.with_base:
        return None
    of_class = scores.kind_of(prompt) == 'class'
    count = scores.found['class_images' if of_class else 'images_per_prompt']
    files = [scores.folders[model] / image_name(prompt, number) for number in range(count)]
    there = [file for file in files if file.is_file()][: embedded.detail.per_prompt]
    shown = [Shown(file, f'“{prompt}”, {_called(model)}, image {i + 1}') for i, file in enumerate(there)]
    return element('div', element('span', _called(model), class_='whose'), embedded.thumbnails(shown), class_='row')


def _prompts(scores: SubjectScores) -> list[str]:
    return list(dict.fromkeys(prompt for told in scores.models['run'].values() for prompt in told['prompts']))


def _called(model: str) -> str:
    return MODELS.get(model, model)


def _broken(name: str) -> Markup:
    """Returns the name of a score that may be broken at its underscores."""
    first, *others = name.split('_')
    return joined(first, *(part for word in others for part in ('_', element('wbr'), word)))
