"""Trains the thirty subjects by one recipe, and lets the classifier say which are learned.

  python experiments/subjects/run.py --model=storybook-flow
  python experiments/subjects/run.py --model=storybook-flow --subjects=teapot,vase --set=base.steps=300 --output=out

The recipe is that of configs/subject.py for the model. It was chosen on the ten subjects of subject_trials.CHOSEN_ON
alone; the other twenty are the report. Finished runs and measured subjects in --workdir are not done again, and the
report is written after each subject. README.md has the question, the cost and the numbers.
"""

import json
import statistics
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, subject_trials
from dreambooth_jax.evaluation.comparison import Comparison
from dreambooth_jax.evaluation.subject_trials import CHOSEN_ON, GROUPS, SHARES, Trial
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.text.prompts import ACCESSORY, CONTEXT

HERE = Path(__file__).parent
_COMPARISON = Comparison(HERE, list(SUBJECTS))
_SET = flags.DEFINE_multi_string('set', [], 'Settings that differ from configs/subject.py: name=value. Several times.')
PLURALS = {CONTEXT: 'contexts', ACCESSORY: 'accessories'}


def main(_) -> None:
    given = experiment.settings_of(_SET.value)
    about, output = dict(_COMPARISON.about), _COMPARISON.output
    model, trials = about.pop('model'), _COMPARISON.trials()
    measured: dict[str, Trial] = {}
    for subject in _COMPARISON.subjects:
        measured[subject] = trials.measure(subject, given)
        print(subject, *subject_trials.told(measured[subject].scores), flush=True)
        report(output, model, {'set': given, **about}, measured)
    print(section(model, json.loads((output / 'results.json').read_text('utf-8'))[model]))


def report(output: Path, model: str, settings, measured: dict[str, Trial]) -> None:
    """Writes what was measured so far: an experiment that is ended has reported the subjects that it came to."""
    results = output / 'results.json'
    found = json.loads(results.read_text('utf-8')) if results.is_file() else {}
    scores = {subject: trial.scores for subject, trial in measured.items()}
    found[model] = {
        'measured': experiment.measured_on(list(scores.values())),
        **settings,
        'phrases': sorted({phrase for trial in measured.values() for phrase in trial.phrases}),
        'subjects': scores,
        'groups': {
            title: subject_trials.summary(of for subject, of in scores.items() if (subject in CHOSEN_ON) == chosen)
            for title, chosen in GROUPS.items()
        },
    }
    experiment.write_json(results, found)
    provenance.save(sheet(measured), output / f'{model}.png')
    if (output / 'README.md').is_file():
        experiment.write_section(output / 'README.md', '\n\n'.join(section(title, of) for title, of in found.items()))


def preserved(found) -> str:
    """Returns a sentence that compares the words which the class examples had with those that they had not."""
    parts = []
    for kind in PLURALS:
        asked = [prompt for of in found['subjects'].values() for prompt in of.get('prompts', ())]
        prompts = [prompt for prompt in asked if prompt['kind'] == kind]
        known = [prompt['prompt'].endswith(tuple(found['phrases'])) for prompt in prompts]
        for had, which in ((True, 'that are'), (False, 'that are not')):
            shares = [prompt[kind] for prompt, is_known in zip(prompts, known, strict=True) if is_known == had]
            if shares and any(known):
                parts.append(f'{PLURALS[kind]} {which} among them in {experiment.percent(statistics.mean(shares))}')
    return f'By whether the words are among `prior.phrases`: {", ".join(parts)} of the images.' if parts else ''


def section(model: str, found) -> str:
    """Returns what was measured of a model as Markdown: the groups, then every subject."""
    names = subject_trials.measured(found['subjects'].values())
    groups = [
        [title, *subject_trials.summary_cells(of, names)] for title, of in found['groups'].items() if of['subjects']
    ]
    each = [
        [subject, *(experiment.percent(SHARES[name](scores)) for name in names)]
        for subject, scores in found['subjects'].items()
    ]
    changed = ', '.join(f'`{name}={value}`' for name, value in found['set'].items())
    parts = [
        f'### {model}{f" with {changed}" if changed else ""}',
        found['measured'],
        experiment.table(['mean over subjects ± standard error (least to most)', 'subjects', *names], groups),
        preserved(found),
        experiment.table(['subject', *names], each),
        f'![a photo, then the subject, the subject in the snow, and its class]({model}.png)',
    ]
    return '\n\n'.join(filter(None, parts))


def sheet(measured: dict[str, Trial]):
    """Returns a photo of each subject, and what the fine-tuned model generates of it and of its class."""
    rows = []
    for trial in measured.values():
        rows.append([trial.photo, *(image for some in trial.images.values() for image in some)])
    headings = ['a photo', *(text for prompt in ('a sks', 'in the snow', 'its class') for text in (prompt, ''))]
    return grids.contact_sheet(rows, list(measured), headings=headings)


if __name__ == '__main__':
    program.run(main)
