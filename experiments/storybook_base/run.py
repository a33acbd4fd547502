"""Generates what Storybook's captions know with an untouched base model, and lets the classifier name it.

  python experiments/storybook_base/run.py --model=storybook
  python experiments/storybook_base/run.py --model=storybook-flow    (into experiments/storybook_flow)

All classes in all contexts, and cats and dogs with all accessories.

Every class is a part of its own in --workdir, so an interrupted run goes on with the next one. README.md has the
question, the cost and the numbers.
"""

import functools
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK, STORYBOOK_FLOW
from dreambooth_jax.data import provenance
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.run_settings import settings_of
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import world
from dreambooth_jax.system import cpu_devices

HERE = Path(__file__).parent
# Where results of models that ship with the package belong.
FOLDERS = {STORYBOOK: HERE, STORYBOOK_FLOW: HERE.parent / 'storybook_flow'}
_MODEL = program.DEFINE_path('model', STORYBOOK, f"{', '.join(FOLDERS)}, a pipeline folder or a run's folder.")
_CLASSIFIER = program.DEFINE_path('classifier', None, 'Folder of the classifier; default: the shipped one.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/storybook_base', 'Keeps finished classes.')
_OUTPUT = program.DEFINE_path(
    'output',
    None,
    'Gets results.json, grid.png and the numbers in README.md, and may have an expected.json; default: the folder in '
    'experiments/ of a model that ships with the package, else <workdir>; with --quick <workdir>/quick.',
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', None, "Denoise steps; default: the model's own.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float('guidance_scale', None, "1 is none; default: the model's own.", lower_bound=1)
_SAMPLER = flags.DEFINE_enum('sampler', None, list(SAMPLERS), "How noise is taken away; default: the model's own way.")
_SEED = flags.DEFINE_integer('seed', 0, 'Of the noise.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 20, 'Images at once.', lower_bound=1)
_QUICK = flags.DEFINE_bool('quick', False, '4 classes, 4 contexts, 2 accessories, 1 image: only shows that it works.')

GRID_CONTEXTS = (
    'in the jungle',
    'in the snow',
    'on the beach',
    'on top of pink fabric',
    'with a blue house in the background',
    'with the Eiffel Tower in the background',
    'floating on top of water',
    'on top of a mirror',
)


def main(_) -> None:
    own = settings_of(_MODEL.value)
    cpu_devices.use(own.cpu_devices)
    cascade = Cascade.load(_MODEL.value, super_resolution_model='none')
    classifier = Classifier.load(_CLASSIFIER.value)
    classes, contexts, accessories, num_images = world.CLASSES, world.CONTEXTS, world.ACCESSORIES, _NUM_IMAGES.value
    workdir = Path(_WORKDIR.value)
    if _QUICK.value:
        classes, contexts, accessories = classes[5:9], contexts[::5], accessories[::5]
        num_images, workdir = 1, workdir / 'quick'
    output = Path(_OUTPUT.value or (workdir if _QUICK.value else FOLDERS.get(_MODEL.value, workdir)))
    flags_given = {'steps': _STEPS.value, 'guidance_scale': _GUIDANCE.value, 'sampler': _SAMPLER.value}
    given = {name: value for name, value in flags_given.items() if value is not None}
    options = own.options(cascade, {**given, 'batch_size': _BATCH_SIZE.value, 'seed': _SEED.value})
    sampling = {name: getattr(options, name) for name in ('steps', 'guidance_scale', 'sampler', 'seed')}
    weights = experiment.fingerprint_of(cascade.base)
    marker = experiment.fingerprint(classifier.naming_params)
    settings = {
        'weights': weights,
        'classifier': marker,
        'contexts': list(contexts),
        'num_images': num_images,
        **sampling,
    }

    parts, images = [], {}
    for number, class_noun in enumerate(classes, 1):
        score = functools.partial(
            storybook_scores.base_scores,
            cascade,
            classifier,
            options,
            classes=[class_noun],
            contexts=contexts,
            num_images=num_images,
        )
        make = functools.partial(experiment.scored, score)
        print(f'{class_noun}, {number} of {len(classes)}', flush=True)
        numbers, generated = experiment.kept(workdir / 'parts', class_noun.replace(' ', '_'), settings, make)
        parts.append(numbers)
        images |= generated

    worn = []
    for class_noun in filter(world.LIVE_CLASSES.__contains__, classes):
        score = functools.partial(
            storybook_scores.accessory_scores,
            cascade,
            classifier,
            options,
            class_noun=class_noun,
            accessories=accessories,
            num_images=num_images,
        )
        print(f'{class_noun} with accessories', flush=True)
        dressed = {**settings, 'accessories': list(accessories)}
        make = functools.partial(experiment.scored, score)
        numbers, generated = experiment.kept(workdir / 'parts', f'{class_noun}_worn', dressed, make)
        parts.append(numbers)
        worn += numbers['cells']
        images |= generated

    cells = [cell for part in parts for cell in part['cells'] if 'context' in cell]
    scores = storybook_scores.base_summary(cells)
    scores['worn'] = worn
    scores['accessory_right'] = sum(cell['accessory_right'] for cell in worn) / sum(cell['images'] for cell in worn)
    measured = experiment.measured_on(parts)
    found = {'model': _MODEL.value, 'measured': measured, **settings, **scores}
    experiment.write_json(output / 'results.json', found)
    shown = [context for context in contexts if context in GRID_CONTEXTS or _QUICK.value]
    sheet = grids.contact_sheet(
        [[images[f'a {class_noun} {context}'][0] for class_noun in classes] for context in shown],
        shown,
        headings=classes,
        title=f'a [class] [context], generated by {_MODEL.value}',
    )
    provenance.save(sheet, output / 'grid.png')
    if not _QUICK.value:
        experiment.report(output, _expected(output), found, tables(scores))
    summary = ', '.join(f'{name} {experiment.percent(scores[name])}' for name in (*COLUMNS, 'accessory_right'))
    print(f'{scores["images"]} images: {summary}; {output / "results.json"}')


def _expected(output: Path) -> Path:
    return next(path for path in (output / 'expected.json', HERE / 'expected.json') if path.is_file())


COLUMNS = {'class_right': 'class right', 'context_right': 'context right', 'both_right': 'both right'}


def tables(scores) -> str:
    """The numbers as Markdown: all, by class, by context."""

    def line(name, shares):
        return [name, shares['images'], *(experiment.percent(shares[column]) for column in COLUMNS)]

    def part(heading, groups):
        lines = [line(name, shares) for name, shares in groups.items()]
        return experiment.table([heading, 'images', *COLUMNS.values()], lines)

    return '\n\n'.join(
        [
            part('all', {'all prompts': scores}),
            part('class', scores['per_class']),
            part('context', scores['per_context']),
            experiment.table(['accessory', 'images', 'accessory right'], list(_dressed(scores['worn']))),
            '![classes and contexts](grid.png)',
        ]
    )


def _dressed(worn):
    """Yields a line for each accessory, all classes together."""
    for accessory in dict.fromkeys(cell['accessory'] for cell in worn):
        cells = [cell for cell in worn if cell['accessory'] == accessory]
        count = sum(cell['images'] for cell in cells)
        yield accessory, count, experiment.percent(sum(cell['accessory_right'] for cell in cells) / count)


if __name__ == '__main__':
    program.run(main)
