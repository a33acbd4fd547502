"""Trains the second stage on each of the thirty subjects, and looks for the fine mark that 32 px cannot show.

  python experiments/fine_marks/run.py

The recipe is that of configs/subject.py:SUBJECT,storybook, chosen on the ten subjects of subject_trials.CHOSEN_ON. The
base stages are those of experiments/subjects --model=storybook, where these are there. Finished runs and measured
subjects in --workdir are not done again, and the report is written after each subject. README.md has the question, the
cost and the numbers.
"""

import functools
import statistics
from pathlib import Path
from typing import Any

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK, STORYBOOK_ENLARGING, ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.comparison import Comparison
from dreambooth_jax.evaluation.subject_trials import CHOSEN_ON, GROUPS, IDENTIFIER
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook.subjects import SUBJECTS

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / 'configs'
_COMPARISON = Comparison(HERE, list(SUBJECTS), STORYBOOK)
ORIGINAL, TUNED = 'original', 'fine-tuned'
# What tables say of a subject: name in words -> function of its numbers. Errors are in levels of 255, all else shares.
NUMBERS = {
    'painted': lambda of: of[TUNED]['real']['with_mark'],
    'true images enlarged, original': lambda of: _level(of, ORIGINAL)['held_out'],
    'true images enlarged, fine-tuned': lambda of: _level(of, TUNED)['held_out'],
    'generated images, original': lambda of: _level(of, ORIGINAL)['generated'],
    'generated images, fine-tuned': lambda of: _level(of, TUNED)['generated'],
    'the class, fine-tuned': lambda of: _level(of, TUNED)['class_images'],
}
ERRORS = {f'error, {stage}': lambda of, stage=stage: _level(of, stage)['held_out_error'] for stage in (ORIGINAL, TUNED)}
# Columns of the images: label in the gallery -> heading, the first two alike for both stages.
SHOWN = {'held_out true': 'held-out, true', 'held_out low': 'held-out, 32 px'}
ENLARGED = {'held_out 0': 'from it', 'generated 0': 'generated'}


def _level(of, stage: str) -> dict[str, Any]:
    (level,) = of[stage]['noise_levels']
    return level


def train(subject: str, run: Path, cascade: Cascade) -> Path:
    """The finished run that fine-tunes the second stage of `cascade` alone, whose base stage is that of `run`."""
    workdir = _COMPARISON.workdir / STORYBOOK / 'second_stage'
    settings = {
        **experiment.of_model(str(run / 'model'), subject, workdir / 'reference' / subject),
        'super_resolution_model': cascade.super_resolution.folder,
        'base.steps': 0,
        'prior.weight': 0,
        'samples.every': 0,
        'evaluation.every': 0,
        'samples.num_images': 1,
    }
    weights = experiment.fingerprint_of(cascade.base, cascade.super_resolution)
    return experiment.train_once(
        workdir / subject, f'{CONFIGS / "subject.py"}:{subject},{STORYBOOK}', settings, weights=weights
    )


def main(_) -> None:
    trials, original = _COMPARISON.trials(), Cascade.load(STORYBOOK)
    if trials.classifier is None or _COMPARISON.about['model'] != STORYBOOK:
        raise ConfigError(f'the classifier knows the marks of {STORYBOOK} alone; leave --model and --photos out')
    marker = experiment.fingerprint(trials.classifier.naming_params, trials.classifier.fine_mark_params)
    amounts = storybook_scores.FineMarkImages(num_images=_COMPARISON.about['num_images'])
    measured, images = {}, {}
    for subject in _COMPARISON.subjects:
        _, options, run = trials.trained(subject, {})
        sampling = {
            name: getattr(options, name) for name in ('steps', 'guidance_scale', 'sampler', 'seed', 'batch_size')
        }
        sampling |= {
            'super_resolution_steps': STORYBOOK_ENLARGING['sample_steps'],
            'super_resolution_guidance_scale': STORYBOOK_ENLARGING['sample_guidance_scale'],
        }
        untrained = experiment.with_base_of(original, run)
        second = read_pipeline(train(subject, run, untrained) / 'model' / 'super_resolution', components=['unet'])
        stages = {ORIGINAL: untrained, TUNED: untrained.with_params(super_resolution={'unet': second.denoiser.params})}
        measured[subject], images[subject] = {}, {}
        for title, stage in stages.items():
            score = functools.partial(
                storybook_scores.fine_mark_scores,
                stage,
                trials.classifier,
                subject,
                IDENTIFIER,
                SamplingOptions(**sampling),
                images=amounts,
            )
            of = {'weights': experiment.fingerprint_of(stage.base, stage.super_resolution), 'classifier': marker}
            measured[subject][title], images[subject][title] = experiment.kept(
                _COMPARISON.workdir / STORYBOOK / 'parts' / 'fine_marks' / title,
                subject,
                of | sampling | vars(amounts),
                functools.partial(experiment.scored, score, [*SHOWN, *ENLARGED], 1),
            )
        print(subject, *(f'{name} {of(measured[subject])}' for name, of in (NUMBERS | ERRORS).items()), flush=True)
        report(_COMPARISON.output, measured, images)


def report(output: Path, measured, images) -> None:
    """Writes results.json, grid.png and the section of README.md."""
    groups = {}
    for title, chosen in GROUPS.items():
        some = [of for subject, of in measured.items() if (subject in CHOSEN_ON) == chosen]
        if some:
            groups[title] = {'subjects': len(some)} | {
                name: statistics.mean(number(of) for of in some) for name, number in (NUMBERS | ERRORS).items()
            }
    found = {
        'measured': experiment.measured_on([of for stages in measured.values() for of in stages.values()]),
        'model': STORYBOOK,
        'groups': groups,
        'subjects': measured,
    }
    experiment.write_json(output / 'results.json', found)
    rows = [
        [
            *(of[ORIGINAL][label][0] for label in SHOWN),
            *(of[stage][label][0] for label in ENLARGED for stage in (ORIGINAL, TUNED)),
        ]
        for of in images.values()
    ]
    headings = [*SHOWN.values(), *(f'{text}, {stage}' for text in ENLARGED.values() for stage in (ORIGINAL, TUNED))]
    provenance.save(grids.contact_sheet(rows, list(images), side=128, headings=headings), output / 'grid.png')
    experiment.report(output, HERE / 'expected.json', found, tables(found))


def tables(found) -> str:
    """The numbers of results.json as Markdown: the means of the groups, then every subject."""
    means = [
        [
            title,
            of['subjects'],
            *(experiment.percent(of[name]) for name in NUMBERS),
            *(f'{of[name]:.1f}' for name in ERRORS),
        ]
        for title, of in found['groups'].items()
    ]
    each = [
        [
            subject,
            SUBJECTS[subject].look['fine_mark'],
            *(experiment.percent(number(of)) for number in NUMBERS.values()),
            *(number(of) for number in ERRORS.values()),
        ]
        for subject, of in found['subjects'].items()
    ]
    return '\n\n'.join(
        [
            'Fine mark found, and mean absolute error of the enlarged true images in levels of 255:',
            experiment.table(['mean over subjects', 'subjects', *NUMBERS, *ERRORS], means),
            experiment.table(['subject', 'its mark', *NUMBERS, *ERRORS], each),
            '![true images and generated ones, enlarged by the stage before and after](grid.png)',
        ]
    )


if __name__ == '__main__':
    program.run(main)
