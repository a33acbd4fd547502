"""Trains ten subjects, and asks whether the scores tell good runs from bad and the rule takes the right checkpoint.

  python experiments/evaluation/run.py
  python experiments/evaluation/run.py --subjects=dog,cat --train_only

The base stage alone. Finished runs in --workdir are not trained again, and images are kept, so that an interrupted
experiment goes on. README.md has the question, the cost and the numbers.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import analysis
from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK, ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.training.loop import TrainingError

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'subject.py'
# Chosen before anything was measured: one subject of as many classes, and the recipe's steps for half of them. By
# experience the others need more than the recipe has.
STEPS = {
    'dog': 200,
    'cat': 200,
    'shiny_sneaker': 200,
    'vase': 200,
    'rc_car': 200,
    'backpack': 400,
    'teapot': 400,
    'bear_plushie': 400,
    'pink_sunglasses': 400,
    'clock': 400,
}
EVALUATIONS = 4  # of each run
WITHOUT_PRIOR = ('dog', 'shiny_sneaker')  # trained once more without class images
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/evaluation', 'Keeps runs and images.')
_OUTPUT = program.DEFINE_path(
    'output', None, 'Gets results.json, chart.png and the numbers in README.md; default: the folder of this file.'
)
_SUBJECTS = flags.DEFINE_list('subjects', list(STEPS), 'Those of the ten that are trained.')
_TRAIN_ONLY = flags.DEFINE_bool('train_only', False, 'Whether nothing is scored or written after training.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 16, 'Images of the class prompt.', lower_bound=2)


def train(subject: str, workdir: Path, weights: str, *, with_prior: bool) -> Path:
    """The finished run of a subject; `weights` is the fingerprint of the model before."""
    steps = STEPS[subject]
    settings = {
        'super_resolution_model': 'none',
        'super_resolution.steps': 0,
        'samples.every': 0,
        'samples.seed': 1000,  # of what is scored; the rule, and the class images, have other noise
        'base.steps': steps,
        'checkpoint.every': steps // EVALUATIONS,
        'checkpoint.keep': EVALUATIONS,  # so that another rule can be asked what it would have taken
        'evaluation.every': steps // EVALUATIONS,
        'prior.dir': workdir / 'prior' / SUBJECTS[subject].class_noun.replace(' ', '_'),
        **({} if with_prior else {'prior.weight': 0}),
    }
    folder = workdir / ('runs' if with_prior else 'runs_without_prior') / subject
    return experiment.train_once(folder, f'{CONFIG}:{subject},{STORYBOOK}', settings, weights=weights)


def evaluate(*arguments: str) -> None:
    """Runs `python -m dreambooth_jax.evaluate` on the base stage.

    Raises:
      TrainingError: if it fails; it has then printed the reason.
    """
    counts = [f'--num_images={_NUM_IMAGES.value}', f'--class_images={_CLASS_IMAGES.value}', '--stage=base']
    ended = subprocess.run([sys.executable, '-m', 'dreambooth_jax.evaluate', *arguments, *counts], check=False)
    if ended.returncode:
        raise TrainingError(f'the evaluation ended with exit code {ended.returncode}; the reason stands above')


def read(path: Path) -> Any:
    return json.loads(path.read_text('utf-8'))


def main(argv) -> None:
    del argv
    if unknown := [subject for subject in _SUBJECTS.value if subject not in STEPS]:
        raise ConfigError(f'--subjects has {unknown[0]!r} but each must be one of {", ".join(STEPS)}')
    workdir, output = Path(_WORKDIR.value), Path(_OUTPUT.value or HERE)
    weights = experiment.fingerprint_of(Cascade.load('storybook', super_resolution_model='none').base)
    for with_prior, subjects in ((True, STEPS), (False, WITHOUT_PRIOR)):
        for subject in subjects:
            if subject in _SUBJECTS.value:
                train(subject, workdir, weights, with_prior=with_prior)
    if _TRAIN_ONLY.value:
        return

    measured = score(workdir)
    found = {
        'num_images': _NUM_IMAGES.value,
        'class_images': _CLASS_IMAGES.value,
        'steps': STEPS,
        'results': analysis.results(measured),
        'runs': measured,
    }
    found['measured'] = f'Measured on {experiment.hardware()}, {datetime.date.today().isoformat()}.'
    experiment.write_json(output / 'results.json', found)
    provenance.save(analysis.grid(workdir, measured), output / 'grid.png')
    experiment.report(output, HERE / 'expected.json', found, analysis.tables(found))
    print(f'written: {output / "results.json"}')


def score(workdir: Path) -> dict[str, dict[str, Any]]:
    """Returns what was measured of every subject: best, last, base, without_prior -> score -> value, and the rest.

    The ten best checkpoints are scored as one benchmark, so that every subject is told from the other nine.
    """
    evaluate(f'--benchmark={workdir / "runs"}', f'--workdir={workdir / "best"}')
    evaluate(
        f'--benchmark={workdir / "runs_without_prior"}',
        f'--workdir={workdir / "without_prior"}',
        f'--step={STEPS[WITHOUT_PRIOR[0]]}',  # the last one: without class images the best may be an early one
        '--nobase',
    )
    best, without = (read(workdir / name / 'scores.json')['subjects'] for name in ('best', 'without_prior'))
    measured = {}
    for subject, steps in STEPS.items():
        run, scores = workdir / 'runs' / subject, best[subject]
        chosen = read(run / 'best.json')
        of = measured[subject] = {
            'step': chosen['step'],
            'candidates': chosen['candidates'],
            'ceiling': {name: each(found)['others'] for name, found in scores['ceiling'].items()},
            'best': values(scores, 'run'),
            'base': values(scores, 'base'),
            'images': {'best': f'best/images/{scores["images"]["run"]}'},
        }
        if chosen['step'] == steps:
            of['last'], of['images']['last'] = of['best'], of['images']['best']
        else:
            folder = workdir / 'last' / subject
            evaluate(f'--model={run}', f'--step={steps}', f'--workdir={folder}', '--nobase')
            last = read(folder / 'scores.json')
            of['last'], of['images']['last'] = (
                values(last, 'run'),
                f'last/{subject}/images/{last["images"]["run"]}',
            )
        if subject in without:
            of['without_prior'] = values(without[subject], 'run')
    return measured


def values(scores: Mapping[str, Any], model: str) -> dict[str, float]:
    """Score -> value of the one subject of a run."""
    return {name: one['value'] for name, one in each(scores['models'][model]).items()}


def each(of_subjects: Mapping[str, Any]) -> Any:
    (one,) = of_subjects.values()
    return one


if __name__ == '__main__':
    program.run(main)
