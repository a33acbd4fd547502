"""What experiments/evaluation makes of its measurements: brackets, rank correlations, best against last, a grid."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from dreambooth_jax.evaluation import experiment
from dreambooth_jax.evaluation.protocol import image_name
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.storybook.subjects import SUBJECTS

BRACKETED = ('dino', 'dino_masked', 'clip_i')  # the scores that photos have as well
CORRELATED = ('dino', 'dino_retrieval', 'clip_i', 'subject_named')
GRID_CONTEXTS = (' in the jungle', ' on the beach', ' in the snow')
Measured = Mapping[str, Mapping[str, Any]]  # subject -> what run.py's score returns


def judged(scores: Mapping[str, float]) -> float:
    """Returns the classifier's own trade-off: the harmonic mean of the shares with the subject and with the context.

    The rule that chooses checkpoints knows nothing of the classifier, and its prompts and noise are others.
    """
    subject, context = scores['subject_named'], scores['context_named']
    return 2 * subject * context / (subject + context) if subject + context else 0.0


def bracket(measured: Measured, name: str) -> dict[str, float]:
    """Returns the shares of subjects whose score lies above the base model's, and below the photos' likeness."""
    return {
        'above_base': float(np.mean([of['best'][name] > of['base'][name] for of in measured.values()])),
        'below_photos': float(np.mean([of['best'][name] < of['ceiling'][name] for of in measured.values()])),
    }


def correlation(measured: Measured, one: str, other: str) -> dict[str, float]:
    """Returns Spearman's rank correlation of two scores, over the best checkpoints and over these and the base model.

    The last checkpoints are left out: they were scored alone, so that their retrieval is among fewer look-alikes.
    """
    best = [of['best'] for of in measured.values()]
    return {
        'best': _spearman(best, one, other),
        'with_base': _spearman([*best, *(of['base'] for of in measured.values())], one, other),
    }


def _spearman(scores: list[Mapping[str, float]], one: str, other: str) -> float:
    return float(stats.spearmanr([each[one] for each in scores], [each[other] for each in scores]).statistic)


def results(measured: Measured) -> dict[str, Any]:
    """Returns the numbers that the experiment is about."""
    gains = {subject: judged(of['best']) - judged(of['last']) for subject, of in measured.items()}
    without = {subject: of for subject, of in measured.items() if 'without_prior' in of}
    return {
        'bracket': {name: bracket(measured, name) for name in BRACKETED},
        'correlation': {
            f'{one} / {other}': correlation(measured, one, other)
            for number, one in enumerate(CORRELATED)
            for other in CORRELATED[number + 1 :]
        },
        'best_against_last': {
            'gains': gains,
            'better_or_equal': float(np.mean([gain >= 0 for gain in gains.values()])),
            'mean_gain': float(np.mean(list(gains.values()))),
        },
        'rise_without_class_images': {
            name: {subject: of['without_prior'][name] - of['last'][name] for subject, of in without.items()}
            for name in ('dino_pres', 'dino_copy', 'taken_for_subject')
        },
        'least_rise': {
            name: min(of['without_prior'][name] - of['last'][name] for of in without.values())
            for name in ('dino_pres', 'dino_copy')
        },
    }


def grid(workdir: Path, measured: Measured) -> Image.Image:
    """For every subject: two photos, then the same prompts and noise of the best and of the last checkpoint."""
    rows = []
    for subject, of in measured.items():
        noun = SUBJECTS[subject].class_noun
        photos = [draw.paint(scene) for scene in subjects.reference_scenes(subject)[:2]]
        images = [
            np.asarray(Image.open(workdir / of['images'][which] / image_name(f'a sks {noun}{context}', 0)))
            for which in ('best', 'last')
            for context in GRID_CONTEXTS
        ]
        rows.append([*photos, *images])
    prompts = [context.strip() for context in GRID_CONTEXTS]
    headings = ['photo', 'photo', *(f'{which}: {prompt}' for which in ('best', 'last') for prompt in prompts)]
    labels = [f'{subject}: step {of["step"]}' for subject, of in measured.items()]
    return grids.contact_sheet(rows, labels, headings=headings)


def tables(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    measured, numbers, percent = found['runs'], found['results'], experiment.percent
    scores = [
        [
            subject,
            *(f'{of["base"][name]:.2f} / **{of["best"][name]:.2f}** / {of["ceiling"][name]:.2f}' for name in BRACKETED),
            f'{of["best"]["dino_retrieval"]:.2f}',
            f'{of["best"]["clip_t"]:.2f} ({of["base"]["clip_t"]:.2f})',
            *(percent(of['best'][name]) for name in ('subject_named', 'context_named', 'taken_for_subject')),
        ]
        for subject, of in measured.items()
    ]
    choice = [
        [
            subject,
            f'{of["step"]} of {found["steps"][subject]}',
            *(_pair(of, value) for value in (_of('subject_named'), _of('context_named'), judged)),
            f'{100 * numbers["best_against_last"]["gains"][subject]:+.0f}',
        ]
        for subject, of in measured.items()
    ]
    curves = [
        [
            subject,
            *(
                f'{one["step"]}: {one["subject_fidelity"]:.2f} / {one["prompt_fidelity"]:.2f} / {one["drift"]:.2f}'
                for one in of['candidates']
            ),
        ]
        for subject, of in measured.items()
    ]
    verdicts = [
        [
            subject,
            *(f'{share:.2f} / {percent(truth)}' for which in ('best', 'last') for share, truth in _shares(of, which)),
        ]
        for subject, of in measured.items()
    ]
    correlations = [
        [name, f'{pair["best"]:.2f}', f'{pair["with_base"]:.2f}'] for name, pair in numbers['correlation'].items()
    ]
    prior = [
        [
            subject,
            *(
                f'{of["last"][name]:.2f} / {of["without_prior"][name]:.2f}'
                for name in ('dino_pres', 'dino_copy', 'taken_for_subject')
            ),
        ]
        for subject, of in measured.items()
        if 'without_prior' in of
    ]
    return '\n\n'.join(
        [
            f'25 prompts x {found["num_images"]} and {found["class_images"]} images of the class, for every model.',
            'The best checkpoints; base model / **run** / photos among each other:',
            experiment.table(
                [
                    'subject',
                    'DINO',
                    'DINO, masked',
                    'CLIP-I',
                    'retrieval',
                    'CLIP-T (base)',
                    'subject',
                    'context',
                    'class taken for it',
                ],
                scores,
            ),
            'What the verdict of report.html is made of, and what the classifier says: DINO on the way from the base '
            'model to the photos / subject named; CLIP-T as a share of that of the base model / context named:',
            experiment.table(['subject', 'best: subject', 'best: prompt', 'last: subject', 'last: prompt'], verdicts),
            "Spearman's rank correlation, over the ten best checkpoints, and over these and the base models:",
            experiment.table(['scores', 'best', 'with base'], correlations),
            'The best checkpoint against the last one, by the classifier, which the rule does not ask (best / last; '
            'the trade-off is the harmonic mean of both, the gain is in points):',
            experiment.table(['subject', 'step', 'subject named', 'context named', 'trade-off', 'gain'], choice),
            'What the rule saw (step: subject / prompt / drift, on the scales of best.json):',
            experiment.table(['subject', '1st', '2nd', '3rd', '4th evaluation'], curves),
            'The last checkpoint with class images / without:',
            experiment.table(['subject', 'PRES', 'copy score', 'class taken for it'], prior),
            '![photos, best and last checkpoint](grid.png)',
        ]
    )


def _shares(of: Mapping[str, Any], which: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The shares that evaluation/verdict.py grades, each with the classifier's share: of the subject, of the prompt."""
    scores, base = of[which], of['base']
    subject = (scores['dino'] - base['dino']) / (of['ceiling']['dino'] - base['dino'])
    return (subject, scores['subject_named']), (scores['clip_t'] / base['clip_t'], scores['context_named'])


def _of(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda scores: scores[name]


def _pair(of: Mapping[str, Any], value: Callable[[Mapping[str, float]], float]) -> str:
    return f'{experiment.percent(value(of["best"]))} / {experiment.percent(value(of["last"]))}'
