"""Trains configs/dog.py with and without class images, and measures what of the subject leaks into its class.

  python experiments/prior_preservation/run.py --model=storybook

Trains one run per weight in --workdir/weight_<lambda>, which share their class images; finished runs and measured
models are not done again. README.md has the question, the cost and the numbers.
"""

import functools
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.bars import bars
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.storybook_scores import SUBJECT_SHARES
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import grids

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'dog.py'
SAMPLING = experiment.sampling_of(CONFIG)
SUBJECT, CALLED = 'dog', 'sks dog'  # of configs/dog.py
_MODEL = program.DEFINE_path('model', 'storybook', "'storybook', or a pipeline folder.")
_CLASSIFIER = program.DEFINE_path('classifier', None, 'Folder of the classifier; default: the shipped one.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/prior_preservation', 'Keeps runs and measured models.')
_OUTPUT = program.DEFINE_path(
    'output',
    None,
    'Gets results.json, the images and the numbers in README.md; default: the folder of this file, '
    'or with --quick <workdir>/quick.',
)
_WEIGHTS = flags.DEFINE_list('weights', ['1', '0'], 'Values of prior.weight, the lambda of the paper.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 48, "Images of 'a dog'.", lower_bound=2)
_STEPS = flags.DEFINE_integer('steps', SAMPLING['steps'], 'Denoise steps.', lower_bound=1)
_GUIDANCE = flags.DEFINE_float('guidance_scale', SAMPLING['guidance_scale'], '1 is none.', lower_bound=1)
_SAMPLER = flags.DEFINE_enum('sampler', SAMPLING['sampler'], list(SAMPLERS), 'How noise is taken away.')
_SEED = flags.DEFINE_integer('seed', 1000, 'Of the noise; not that of the class images.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images at once.', lower_bound=1)
_QUICK = flags.DEFINE_bool('quick', False, '2 training steps, 2 class images: only shows that it works.')

GRID_PROMPTS = (
    'a sks dog',
    'a sks dog in the snow',
    'a sks dog on the beach',
    'a sks dog with a blue house in the background',
    'a sks dog wearing a red hat',
    'a sks dog in a chef outfit',
    'a purple sks dog',
    'a dog',
)
GRID_IMAGES = 2
QUICK_TRAINING = {'base.steps': 2, 'prior.num_images': 2, 'prior.steps': 2}


def train(weight: str, workdir: Path, weights: str) -> Path:
    """The finished run of one lambda, base stage alone; `weights` is the fingerprint of the model before."""
    settings = {
        **experiment.of_model(_MODEL.value, SUBJECT, workdir / 'reference'),
        'super_resolution_model': 'none',
        'super_resolution.steps': 0,  # not what this experiment is about
        'prior.weight': weight,
        'prior.dir': workdir / 'prior',
        'samples.every': 0,
        'evaluation.every': 0,  # the last step is measured, not the best one
        **(QUICK_TRAINING if _QUICK.value else {}),
    }
    return experiment.train_once(workdir / f'weight_{weight}', CONFIG, settings, weights=weights)


def main(argv) -> None:
    del argv
    try:
        weights = [f'{float(weight):g}' for weight in _WEIGHTS.value]
    except ValueError:
        raise ConfigError(f'--weights={",".join(_WEIGHTS.value)} must be numbers, such as 1,0') from None
    workdir = Path(_WORKDIR.value)
    num_images, class_images, steps = _NUM_IMAGES.value, _CLASS_IMAGES.value, _STEPS.value
    if _QUICK.value:
        workdir, num_images, class_images, steps = workdir / 'quick', 1, GRID_IMAGES, 4
    output = Path(_OUTPUT.value or (workdir if _QUICK.value else HERE))
    base = Cascade.load(_MODEL.value, super_resolution_model='none')
    classifier = Classifier.load(_CLASSIFIER.value)
    marker = experiment.fingerprint(classifier.naming_params)
    amounts = {'num_images': num_images, 'class_images': class_images}
    sampling = {
        'steps': steps,
        'guidance_scale': _GUIDANCE.value,
        'sampler': _SAMPLER.value,
        'seed': _SEED.value,
    }
    measurements = experiment.Measurements(workdir, marker, {**amounts, **sampling})

    for weight in [None, *weights]:
        name, title = ('base', 'before') if weight is None else (f'weight_{weight}', f'lambda = {weight}')
        cascade = base
        if weight is not None:
            cascade = experiment.with_base_of(base, train(weight, workdir, experiment.fingerprint_of(base.base)))
        score = functools.partial(
            storybook_scores.subject_scores,
            cascade,
            classifier,
            SUBJECT,
            CALLED,
            SamplingOptions(batch_size=_BATCH_SIZE.value, **sampling),
            **amounts,
        )
        make = functools.partial(experiment.scored, score, GRID_PROMPTS, GRID_IMAGES)
        measurements.add(title, name, experiment.fingerprint_of(cascade.base), make)

    results, images = measurements.results, measurements.images
    found = measurements.write(output, model=_MODEL.value)
    count = min(num_images, GRID_IMAGES)
    headings = [title for title in images for _ in range(count)]
    rows = [[image for generated in images.values() for image in generated[prompt][:count]] for prompt in GRID_PROMPTS]
    provenance.save(grids.contact_sheet(rows, GRID_PROMPTS, headings=headings), output / 'grid.png')
    shares = {
        title: {name: value(scores) for name, value in SUBJECT_SHARES.items()} for title, scores in results.items()
    }
    provenance.save(bars(shares), output / 'chart.png', source=provenance.PAINTED)
    if not _QUICK.value:
        experiment.report(output, HERE / 'expected.json', found, tables(results))
    for title, scores in results.items():
        shares = (f'{name} {experiment.percent(value(scores))}' for name, value in SUBJECT_SHARES.items())
        print(f'{title}: {", ".join(shares)}')
    print(f'written: {output / "results.json"}')


def tables(results) -> str:
    """The numbers as Markdown: the shares of SUBJECT_SHARES, then the subject by kind of prompt and by prompt."""
    percent, scores = experiment.percent, list(results.values())
    kinds = [kind for kind, share in scores[0]['subject_named_by_kind'].items() if share is not None]
    first = [[name, *(percent(value(each)) for each in scores)] for name, value in SUBJECT_SHARES.items()]
    first += [
        [f'subject named, {kind} prompts', *(percent(each['subject_named_by_kind'][kind]) for each in scores)]
        for kind in kinds
    ]
    prompts = [
        [rows[0]['prompt'], *(percent(row['subject']) for row in rows)]
        for rows in zip(*(each['prompts'] for each in scores), strict=True)
    ]
    counts = scores[0]['images'], scores[0]['class_images']['images']
    return '\n\n'.join(
        [
            f"{counts[0]} images of the 25 prompts and {counts[1]} of 'a dog' for each model.",
            experiment.table(['', *results], first),
            '![shares](chart.png)',
            'The classifier names the subject:',
            experiment.table(['prompt', *results], prompts),
            '![the same prompts and noise, before and after](grid.png)',
        ]
    )


if __name__ == '__main__':
    program.run(main)
