"""Whether a run worked, in plain words: three questions, each answered from one score by a written rule.

A cosine means nothing by itself, so every answer places it between what the run itself measures: the model before, and
the photos among each other. RULE says how. The bounds in it are ours; the paper (Ruiz et al. 2023) has none. Those of
the subject and of the prompt were chosen on five of Storybook's subjects (experiments/evaluation).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

GOOD, FAIR, BAD, OPEN = 'good', 'fair', 'bad', 'open'
_FIDELITY = ('dino', 'dinov2', 'clip_i')  # from the one that is taken first, as the paper prefers DINO
_PROMPT = 'clip_t'
_SHORTEST = 0.005  # of a way whose shares still say anything
RULE = (
    'Is it this subject? Likeness to the photos, on the way from the model before (0 %) to the photos among each other '
    '(100 %; a cosine of 1 where there is a single photo): yes from 80 % on, partly from 33 % on.',
    'Does it follow prompts? Likeness to the prompt without the identifier, as a share of that of the model before: '
    'yes from 95 % on or where the 95 % intervals meet, less than before from 75 % on.',
    'Is the class kept? How far images of the class have moved on the way from where they were in the model before '
    '(0 %) to where images of the subject are now (100 %): yes up to 33 %, partly up to 67 %.',
    'These are rules of thumb about means; look at the images too.',
)
_PARTS = {
    'subject': {
        GOOD: 'show this subject',
        FAIR: 'show something like this subject',
        BAD: 'hardly show this subject',
    },
    'prompt': {
        GOOD: 'follow their prompts as well as before',
        FAIR: 'follow their prompts less well than before',
        BAD: 'have lost much of their prompts',
    },
    'class': {
        GOOD: 'leave the class as it was',
        FAIR: 'have drawn the class towards the subject',
        BAD: 'have turned the whole class into the subject',
    },
}
_QUESTIONS = {
    'subject': 'Is it this subject?',
    'prompt': 'Does it follow prompts?',
    'class': 'Is the class kept?',
}
_ANSWERS = {
    'subject': {GOOD: 'Yes', FAIR: 'Partly', BAD: 'Hardly'},
    'prompt': {GOOD: 'Yes', FAIR: 'Less than before', BAD: 'Hardly'},
    'class': {GOOD: 'Yes', FAIR: 'Partly', BAD: 'No'},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question.

    Attributes:
      about: 'subject', 'prompt' or 'class'.
      grade: GOOD, FAIR, BAD or OPEN, which is: it cannot be told.
      score: the name of the score that it is read from.
      value: that score of the run.
      floor: of the model before; None: not measured.
      ceiling: of the photos among each other; None: it has none.
      share: what the grade is made of, see the module; None: it cannot be told.
    """

    about: str
    grade: str
    score: str
    value: float
    floor: float | None
    ceiling: float | None
    share: float | None

    @property
    def question(self) -> str:
        return _QUESTIONS[self.about]

    @property
    def answer(self) -> str:
        """The answer in a word or two."""
        return _ANSWERS[self.about].get(self.grade, 'Not known')


def answers(found: Mapping[str, Any], subject: str) -> list[Answer]:
    """Returns the answers that the scores of a subject give, in the order of the module's questions.

    Args:
      found: the content of scores.json.
      subject: one of its subjects.
    """
    run, base = found['models']['run'][subject], found['models'].get('base', {}).get(subject, {})
    given = []
    fidelity = next((name for name in _FIDELITY if name in run), None)
    if fidelity is not None:
        ceiling = found['ceiling'].get(fidelity, {}).get(subject, {}).get('others')
        ends = _value(base, fidelity), 1.0 if ceiling is None else ceiling
        given.append(_answer('subject', fidelity, run, base, ceiling, _on_the_way(run[fidelity]['value'], *ends)))
    if _PROMPT in run:
        given.append(_answer('prompt', _PROMPT, run, base, None, _kept(run[_PROMPT], base.get(_PROMPT))))
    pres = None if fidelity is None else f'{fidelity}_pres'
    if pres in run:
        ends = _value(base, pres), max(run[fidelity]['value'], _value(base, pres) or 0.0)
        given.append(_answer('class', pres, run, base, None, _on_the_way(run[pres]['value'], *ends)))
    return given


def sentence(given: Sequence[Answer]) -> str:
    """Returns the answers as one sentence."""
    parts = [_PARTS[one.about][one.grade] for one in given if one.grade != OPEN]
    if not given:
        return 'Nothing was measured that says whether the run worked.'
    if not parts and given[0].floor is None:
        return 'The model before was not scored, so nothing says what the scores of this one are worth.'
    if not parts:
        return 'The scores do not tell this model from the one before.'
    *first, last = parts
    return f'The images {", ".join(first) + " and " if first else ""}{last}.'


def _value(scores: Mapping[str, Any], name: str) -> float | None:
    return scores[name]['value'] if name in scores else None


def _on_the_way(value: float, start: float | None, end: float) -> float | None:
    """Returns how far a value has come from start to end, 1 being all of it; None if there is no way to go."""
    if start is None or end - start < _SHORTEST:
        return None
    return (value - start) / (end - start)


def _kept(run: Mapping[str, Any], base: Mapping[str, Any] | None) -> float | None:
    if base is None or base['value'] <= 0:
        return None
    if None not in (run['high'], base['low']) and run['high'] >= base['low']:
        return 1.0
    return run['value'] / base['value']


def _answer(about, score, run, base, ceiling, share) -> Answer:
    value, floor = run[score]['value'], _value(base, score)
    grade = OPEN if share is None else _grade(about, share)
    return Answer(about=about, grade=grade, score=score, value=value, floor=floor, ceiling=ceiling, share=share)


def _grade(about: str, share: float) -> str:
    if about == 'class':
        return GOOD if share <= 1 / 3 else FAIR if share <= 2 / 3 else BAD
    good, bad = (0.8, 1 / 3) if about == 'subject' else (0.95, 0.75)
    return GOOD if share >= good else FAIR if share >= bad else BAD
