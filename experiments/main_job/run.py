"""Trains configs/dog.py with other settings, and measures which learn the subject and keep the class.

  python experiments/main_job/run.py
  python experiments/main_job/run.py --variant=base.learning_rate=3e-4,base.steps=100

The base stage alone; all runs share their class images. Finished runs and measured models in --workdir are not done
again. README.md has the question, the cost and the numbers.
"""

import functools
import re
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.evaluation.storybook_scores import SUBJECT_SHARES
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.models.lora import ATTENTION_PROJECTIONS
from dreambooth_jax.monitoring import grids

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'dog.py'
SUBJECT, CALLED = 'dog', 'sks dog'  # of configs/dog.py
SAMPLING = experiment.sampling_of(CONFIG)
LEARNING_RATES = (
    'base.learning_rate=2e-4,base.train_text_encoder=False,base.text_encoder_learning_rate=None',
    *(
        f'base.learning_rate=2e-4,base.train_text_encoder=True,base.text_encoder_learning_rate={learning_rate}'
        for learning_rate in ('2e-4', '5e-4', '7e-4', '2e-3')
    ),
    *(
        f'base.learning_rate={learning_rate},base.train_text_encoder=True,base.text_encoder_learning_rate=5e-4'
        for learning_rate in ('1e-4', '3e-4')
    ),
    'base.learning_rate=2e-4,base.train_text_encoder=True,base.text_encoder_learning_rate=5e-4,base.steps=300',
)
WAYS = (
    'optimizer.state_dtype=bfloat16',
    'optimizer.state_dtype=int8',
    'optimizer.kind=adafactor',
    'optimizer.kind=lion,base.learning_rate=4e-5,base.text_encoder_learning_rate=1e-4',
    'optimizer.kind=prodigy,base.learning_rate=1.0,base.text_encoder_learning_rate=2.5',
    'prior.kind=distillation,prior.dir=None',
    f'lora.rank=16,lora.targets={ATTENTION_PROJECTIONS},base.learning_rate=1e-3,base.text_encoder_learning_rate=2.5e-3',
    *(
        f'lora.rank=16,base.learning_rate={learning_rate}'
        for learning_rate in (
            '1e-3,base.text_encoder_learning_rate=2.5e-3',
            '1e-3,base.text_encoder_learning_rate=2.5e-3,lora.frozen_dtype=int8,prior.dir=None',
            '1e-3,base.text_encoder_learning_rate=2.5e-3,lora.frozen_dtype=nf4,prior.dir=None',
            '2e-3,base.text_encoder_learning_rate=5e-3',
        )
    ),
)
_VARIANT = flags.DEFINE_multi_string(
    'variant', LEARNING_RATES + WAYS, 'Settings that differ from configs/dog.py: name=value,name=value. Several times.'
)
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/main_job', 'Keeps runs and measured models.')
_OUTPUT = program.DEFINE_path(
    'output', None, 'Gets results.json, grid.png and the numbers in README.md; default: the folder of this file.'
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 40, "Images of 'a dog'.", lower_bound=2)
_GUIDANCE = flags.DEFINE_float('guidance_scale', SAMPLING['guidance_scale'], '1 is none.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 2000, 'Of the noise; not that of the reported measurements.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images at once.', lower_bound=1)

GRID_PROMPTS = ('a sks dog', 'a sks dog in the snow', 'a sks dog wearing a red hat', 'a dog')


def settings_of(variant: str) -> dict[str, str]:
    """'base.steps=100,seed=1' -> {'base.steps': '100', 'seed': '1'}."""
    pairs = [part.partition('=') for part in re.split(r',(?=[\w.]+=)', variant)]  # a value may have commas
    if not all(name and value for name, _, value in pairs):
        raise ConfigError(f'--variant={variant} must look like base.learning_rate=2e-4,base.steps=100')
    return {name.strip(): value.strip() for name, _, value in pairs}


def main(argv) -> None:
    del argv
    variants = {variant: settings_of(variant) for variant in _VARIANT.value}
    workdir, output = Path(_WORKDIR.value), Path(_OUTPUT.value or HERE)
    base, classifier = Cascade.load('storybook', super_resolution_model='none'), Classifier.load()
    fingerprint = experiment.fingerprint_of(base.base)
    amounts = {'num_images': _NUM_IMAGES.value, 'class_images': _CLASS_IMAGES.value}
    sampling = {'seed': _SEED.value, **SAMPLING, 'guidance_scale': _GUIDANCE.value}
    marker = experiment.fingerprint(classifier.naming_params)
    measurements = experiment.Measurements(workdir, marker, {**amounts, **sampling})

    for variant, settings in variants.items():
        name = re.sub(r'[^\w.+-]+', '_', variant)
        settings = {
            'super_resolution_model': 'none',
            'super_resolution.steps': 0,
            'samples.every': 0,
            'evaluation.every': 0,  # the last step is measured, not the best one
            'prior.dir': workdir / 'prior',
            **settings,
        }
        run = experiment.train_once(workdir / name, CONFIG, settings, weights=fingerprint)
        cascade = experiment.with_base_of(base, run)
        score = functools.partial(
            storybook_scores.subject_scores,
            cascade,
            classifier,
            SUBJECT,
            CALLED,
            SamplingOptions(batch_size=_BATCH_SIZE.value, **sampling),
            **amounts,
        )
        make = functools.partial(experiment.scored, score, GRID_PROMPTS, 2)
        measurements.add(variant, name, experiment.fingerprint_of(cascade.base), make)

    results, images = measurements.results, measurements.images
    found = measurements.write(output)
    sheet = grids.contact_sheet(
        [[image for prompt in GRID_PROMPTS for image in generated[prompt]] for generated in images.values()],
        list(variants),
        headings=[text for prompt in GRID_PROMPTS for text in (prompt, '')],
    )
    provenance.save(sheet, output / 'grid.png')
    rows = [
        [variant, *(experiment.percent(value(scores)) for value in SUBJECT_SHARES.values())]
        for variant, scores in results.items()
    ]
    table = experiment.table(['setting', *SUBJECT_SHARES], rows)
    grid = '![the same noise under each setting](grid.png)'
    experiment.report(output, HERE / 'expected.json', found, f'{table}\n\n{grid}')
    print(table)


if __name__ == '__main__':
    program.run(main)
