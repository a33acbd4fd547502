"""Trains the thirty subjects by one recipe, and lets the classifier say which are learned.

  python experiments/subjects/run.py --model=storybook-flow
  python experiments/subjects/run.py --model=storybook-flow --subjects=teapot,vase --set=base.steps=300 --output=out

The recipe is that of configs/subject.py for the model. It was chosen on the ten subjects of CHOSEN_ON alone; the other
twenty are the report. Finished runs and measured subjects in --workdir are not done again, and the report is written
after each subject. README.md has the question, the cost and the numbers.
"""

import functools
import hashlib
import json
import re
import runpy
import statistics
from pathlib import Path
from typing import Any

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import BUILT_IN, STORYBOOK_FLOW, ConfigError, of_run
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.storybook_scores import SUBJECT_SHARES
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.run_settings import settings_of
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.system import cpu_devices
from dreambooth_jax.text.prompts import ACCESSORY, CONTEXT

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'subject.py'
# Those of experiments/evaluation, named before anything was measured.
CHOSEN_ON = (
    'dog',
    'cat',
    'shiny_sneaker',
    'vase',
    'rc_car',
    'backpack',
    'teapot',
    'bear_plushie',
    'pink_sunglasses',
    'clock',
)
_MODEL = flags.DEFINE_enum('model', STORYBOOK_FLOW, BUILT_IN, 'The model that is fine-tuned.')
_SUBJECTS = flags.DEFINE_list('subjects', list(SUBJECTS), 'Those of the thirty that are trained.')
_SET = flags.DEFINE_multi_string('set', [], 'Settings that differ from configs/subject.py: name=value. Several times.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/subjects', 'Keeps runs and measured subjects.')
_OUTPUT = program.DEFINE_path(
    'output', None, 'Gets results.json, MODEL.png and the numbers in README.md; default: the folder of this file.'
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 16, 'Images of the class prompt.', lower_bound=2)
_SEED = flags.DEFINE_integer('seed', 2000, 'Of the noise.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images at once.', lower_bound=1)
IDENTIFIER = 'sks'
PLURALS = {CONTEXT: 'contexts', ACCESSORY: 'accessories'}
GROUPS = {'the ten that the recipe was chosen on': True, 'the other twenty': False}


def main(_) -> None:
    if unknown := [subject for subject in _SUBJECTS.value if subject not in SUBJECTS]:
        raise ConfigError(f'--subjects has {unknown[0]!r} but each must be one of {", ".join(SUBJECTS)}')
    model, workdir, output = _MODEL.value, Path(_WORKDIR.value) / _MODEL.value, Path(_OUTPUT.value or HERE)
    if wrong := [text for text in _SET.value if '=' not in text]:
        raise ConfigError(f'--set={wrong[0]} must look like base.steps=300')
    given = dict(text.split('=', 1) for text in _SET.value)
    cpu_devices.use(settings_of(model).cpu_devices)
    recipe = runpy.run_path(str(CONFIG))['get_config']
    base, classifier = Cascade.load(model, super_resolution_model='none'), Classifier.load()
    weights = experiment.fingerprint_of(base.base)
    amounts = {'num_images': _NUM_IMAGES.value, 'class_images': _CLASS_IMAGES.value}
    marker = experiment.fingerprint(classifier.naming_params)
    name = name_of(_SET.value) or 'recipe'
    prior = workdir / 'prior' / name_of([text for text in _SET.value if text.startswith('prior.')])

    measured, images, phrases = {}, {}, set()
    for subject in _SUBJECTS.value:
        noun = SUBJECTS[subject].class_noun
        settings = {
            'super_resolution_model': 'none',
            'super_resolution.steps': 0,
            'samples.every': 0,
            **given,
        }
        if settings.get('prior.kind', recipe(f'{subject},{model}').prior.kind) == 'images':
            # The subjects of a class share its class images.
            settings.setdefault('prior.dir', prior / noun.replace(' ', '_'))
        run = experiment.train_once(workdir / name / subject, f'{CONFIG}:{subject},{model}', settings, weights=weights)
        cascade = experiment.with_base_of(base, run)
        phrases |= {*of_run.settings(run).prior.phrases}
        options = settings_of(str(run)).options(cascade, {'seed': _SEED.value, 'batch_size': _BATCH_SIZE.value})
        score = functools.partial(
            storybook_scores.subject_scores, cascade, classifier, subject, IDENTIFIER, options, **amounts
        )
        shown = [f'a {IDENTIFIER} {noun}', f'a {IDENTIFIER} {noun} in the snow', f'a {noun}']
        of = {'weights': experiment.fingerprint_of(cascade.base), 'classifier': marker, **amounts}
        of |= {name: getattr(options, name) for name in ('steps', 'guidance_scale', 'sampler', 'seed')}
        make = functools.partial(experiment.scored, score, shown, 2)
        measured[subject], images[subject] = experiment.kept(workdir / 'parts' / name, subject, of, make)
        print(subject, *(f'{title} {_percent(of(measured[subject]))}' for title, of in SUBJECT_SHARES.items()))
        report(output, model, {'set': given, 'phrases': sorted(phrases), **amounts}, measured, images)
    print(section(model, json.loads((output / 'results.json').read_text('utf-8'))[model]))


def name_of(settings: list[str]) -> str:
    """Returns the name of a folder for what differs from the recipe; '' if nothing does."""
    name = re.sub(r'[^\w.+-]+', '_', '_'.join(settings))
    return name if len(name) < 60 else f'{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}'


def report(output: Path, model: str, settings, measured, images) -> None:
    """Writes what was measured so far: an experiment that is ended has reported the subjects that it came to."""
    results = output / 'results.json'
    found = json.loads(results.read_text('utf-8')) if results.is_file() else {}
    found[model] = {
        'measured': experiment.measured_on(list(measured.values())),
        **settings,
        'subjects': measured,
        'groups': {title: summary(measured, chosen) for title, chosen in GROUPS.items()},
    }
    experiment.write_json(results, found)
    provenance.save(sheet(images), output / f'{model}.png')
    if (output / 'README.md').is_file():
        experiment.write_section(output / 'README.md', '\n\n'.join(section(title, of) for title, of in found.items()))


def summary(measured, chosen: bool) -> dict[str, Any]:
    """Returns the mean over a group's subjects of each share, its standard error and its worst, where there are any."""
    of = [scores for subject, scores in measured.items() if (subject in CHOSEN_ON) == chosen]
    found = {'subjects': len(of)}
    for title, share in SUBJECT_SHARES.items():
        values = [value for value in map(share, of) if value is not None]
        if values:
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            found[title] = {'mean': statistics.mean(values), 'standard_error': error, 'of': [min(values), max(values)]}
    return found


def preserved(found) -> str:
    """Returns a sentence that compares the words which the class examples had with those that they had not."""
    parts = []
    for kind in PLURALS:
        prompts = [prompt for of in found['subjects'].values() for prompt in of['prompts'] if prompt['kind'] == kind]
        known = [prompt['prompt'].endswith(tuple(found['phrases'])) for prompt in prompts]
        for had, which in ((True, 'that are'), (False, 'that are not')):
            shares = [prompt[kind] for prompt, is_known in zip(prompts, known, strict=True) if is_known == had]
            if shares and any(known):
                parts.append(f'{PLURALS[kind]} {which} among them in {_percent(statistics.mean(shares))}')
    return f'By whether the words are among `prior.phrases`: {", ".join(parts)} of the images.' if parts else ''


def section(model: str, found) -> str:
    """Returns what was measured of a model as Markdown: the groups, then every subject."""

    def cell(share):
        if share is None:
            return '-'
        error = '' if share['standard_error'] is None else f' ± {100 * share["standard_error"]:.0f}'
        return f'{100 * share["mean"]:.0f}{error} % ({_percent(share["of"][0])} to {_percent(share["of"][1])})'

    groups = [
        [title, of['subjects'], *(cell(of.get(share)) for share in SUBJECT_SHARES)]
        for title, of in found['groups'].items()
        if of['subjects']
    ]
    each = [
        [subject, *(_percent(share(scores)) for share in SUBJECT_SHARES.values())]
        for subject, scores in found['subjects'].items()
    ]
    changed = ', '.join(f'`{name}={value}`' for name, value in found['set'].items())
    parts = [
        f'### {model}{f" with {changed}" if changed else ""}',
        found['measured'],
        experiment.table(['mean over subjects ± standard error (least to most)', 'subjects', *SUBJECT_SHARES], groups),
        preserved(found),
        experiment.table(['subject', *SUBJECT_SHARES], each),
        f'![a photo, then the subject, the subject in the snow, and its class]({model}.png)',
    ]
    return '\n\n'.join(filter(None, parts))


def sheet(images):
    """Returns a photo of each subject, and what the fine-tuned model generates of it and of its class."""
    rows = []
    for subject, generated in images.items():
        photo = draw.paint(subjects.reference_scenes(subject)[0], next(iter(generated.values())).shape[1])
        rows.append([photo, *(image for some in generated.values() for image in some)])
    headings = ['a photo', *(text for prompt in ('a sks', 'in the snow', 'its class') for text in (prompt, ''))]
    return grids.contact_sheet(rows, list(images), headings=headings)


def _percent(share: float | None) -> str:
    return '-' if share is None else experiment.percent(share)


if __name__ == '__main__':
    program.run(main)
