"""Trains LoRA beside kernels in f32, int8 and nf4, with several seeds, and compares how well the subject is learned.

  python experiments/quantised_base/run.py

The base stage alone, as configs/dog.py sets it but for LoRA. Finished runs and measured models in --workdir are not
done again. README.md has the question, the cost and the numbers.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags

from dreambooth_jax import program
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.storybook_scores import SUBJECT_SHARES
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import grids

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'dog.py'
SUBJECT, CALLED = 'dog', 'sks dog'  # of configs/dog.py
SAMPLING = experiment.sampling_of(CONFIG)
KERNELS = {'f32': 'None', 'int8': 'int8', 'nf4': 'nf4'}
GRID_PROMPTS = ('a sks dog', 'a sks dog in the snow', 'a sks dog wearing a red hat', 'a dog')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2', '3'], 'Seeds of the trainings, and of their class images.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/quantised_base', 'Keeps runs and measured models.')
_OUTPUT = program.DEFINE_path(
    'output', None, 'Gets results.json, grid.png and the numbers in README.md; default: the folder of this file.'
)
_LEARNING_RATE = flags.DEFINE_string('learning_rate', '1e-3', 'Of the denoiser.')
_TEXT_LEARNING_RATE = flags.DEFINE_string('text_encoder_learning_rate', '2.5e-3', 'Of the text encoder.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 40, "Images of 'a dog'.", lower_bound=2)
_SEED = flags.DEFINE_integer('seed', 2000, 'Of the noise of the measured images.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images at once.', lower_bound=1)


def main(argv) -> None:
    del argv
    workdir, output = Path(_WORKDIR.value), Path(_OUTPUT.value or HERE)
    base, classifier = Cascade.load('storybook', super_resolution_model='none'), Classifier.load()
    fingerprint = experiment.fingerprint_of(base.base)
    amounts = {'num_images': _NUM_IMAGES.value, 'class_images': _CLASS_IMAGES.value}
    sampling = {'seed': _SEED.value, **SAMPLING}
    marker = experiment.fingerprint(classifier.naming_params)
    measurements = experiment.Measurements(workdir, marker, {**amounts, **sampling})

    # Seeds first, so that an experiment that is stopped has compared all kernels.
    runs = [(f'{kernels}, seed {seed}', seed, dtype) for seed in _SEEDS.value for kernels, dtype in KERNELS.items()]
    for title, seed, dtype in runs:
        name = title.replace(', seed ', '_')
        settings = {
            'seed': seed,
            'super_resolution_model': 'none',
            'super_resolution.steps': 0,
            'samples.every': 0,
            'evaluation.every': 0,  # the last step is measured, not the best one
            'base.learning_rate': _LEARNING_RATE.value,
            'base.text_encoder_learning_rate': _TEXT_LEARNING_RATE.value,
            'lora.rank': 16,
            'lora.targets': "('.*',)",
            'lora.frozen_dtype': dtype,
        }
        run = experiment.train_once(workdir / name, CONFIG, settings, weights=fingerprint)
        # The adapters merged into f32 kernels: what is measured is what was learned, whatever it was learned beside.
        cascade = experiment.with_base_of(base, run)
        options = SamplingOptions(batch_size=_BATCH_SIZE.value, **sampling)
        given = (cascade, classifier, SUBJECT, CALLED, options)
        score = functools.partial(storybook_scores.subject_scores, *given, **amounts)
        make = functools.partial(experiment.scored, score, GRID_PROMPTS, 1)
        measurements.add(title, name, experiment.fingerprint_of(cascade.base), make)

    means = {kernels: means_of(measurements.results, kernels) for kernels in KERNELS}
    found = measurements.write(output, means=means)
    images = measurements.images
    rows = [[generated[prompt][0] for prompt in GRID_PROMPTS] for generated in images.values()]
    provenance.save(grids.contact_sheet(rows, list(images), headings=GRID_PROMPTS), output / 'grid.png')
    report = f'{tables(measurements.results, means)}\n\n![the same noise for each training](grid.png)'
    experiment.report(output, HERE / 'expected.json', found, report)
    print(report)


def means_of(results, kernels: str) -> dict[str, dict[str, float]]:
    """Returns, for each score, the mean over the seeds, its standard error, and by how much less it is than f32's."""

    def values(kernels, share):
        return np.array([share(scores) for title, scores in results.items() if title.startswith(f'{kernels},')])

    found = {}
    for name, share in SUBJECT_SHARES.items():
        own, f32 = values(kernels, share), values('f32', share)
        error = float(own.std(ddof=1) / len(own) ** 0.5) if len(own) > 1 else None
        found[name] = {'mean': float(own.mean()), 'error': error, 'below_f32': float(f32.mean() - own.mean())}
    return found


def tables(results, means) -> str:
    """Returns the means over the seeds with their standard errors, and below them every training."""
    rows = [
        [kernels, *(f'{experiment.percent(m["mean"])} ± {100 * (m["error"] or 0):.0f}' for m in scores.values())]
        for kernels, scores in means.items()
    ]
    of_means = experiment.table(['kernels (mean ± standard error)', *SUBJECT_SHARES], rows)
    rows = [
        [title, *(experiment.percent(share(scores)) for share in SUBJECT_SHARES.values())]
        for title, scores in results.items()
    ]
    return f'{of_means}\n\n{experiment.table(["training", *SUBJECT_SHARES], rows)}'


if __name__ == '__main__':
    program.run(main)
