"""Draws all classes of Storybook in all contexts with the untouched base model, and lets the classifier name them.

  python experiments/storybook_base/run.py --model=storybook

Every class is a part of its own in --workdir, so an interrupted run goes on with the next one. README.md has the
question, the cost and the numbers.
"""

from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK_SAMPLING
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import world

HERE = Path(__file__).parent
_MODEL = program.DEFINE_path('model', 'storybook', "'storybook', a pipeline folder or a run's folder.")
_CLASSIFIER = program.DEFINE_path('classifier', None, 'Folder of the classifier; default: the shipped one.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/storybook_base', 'Keeps finished classes.')
_OUTPUT = program.DEFINE_path(
    'output',
    None,
    'Gets results.json, grid.png and the numbers in README.md; default: the folder of this file, or '
    'with --quick <workdir>/quick.',
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', STORYBOOK_SAMPLING['steps'], 'Denoise steps.', lower_bound=1)
_GUIDANCE = flags.DEFINE_float('guidance_scale', STORYBOOK_SAMPLING['guidance_scale'], '1 is none.', lower_bound=1)
_SAMPLER = flags.DEFINE_enum(
    'sampler', STORYBOOK_SAMPLING['sampler'], ['ddpm', 'ddim', 'dpmsolver++'], 'How noise is taken away.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the noise.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 20, 'Images at once.', lower_bound=1)
_QUICK = flags.DEFINE_bool('quick', False, '3 classes, 4 contexts, 1 image, 8 steps: only shows that it works.')

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


def main(argv) -> None:
    del argv
    cascade = Cascade.load(_MODEL.value, super_resolution_model='none')
    classifier = Classifier.load(_CLASSIFIER.value)
    classes, contexts, num_images, steps = world.CLASSES, world.CONTEXTS, _NUM_IMAGES.value, _STEPS.value
    workdir = Path(_WORKDIR.value)
    if _QUICK.value:
        classes, contexts, num_images, steps, workdir = classes[::5], contexts[::5], 1, 8, workdir / 'quick'
    output = Path(_OUTPUT.value or (workdir if _QUICK.value else HERE))
    options = {
        'num_images': num_images,
        'steps': steps,
        'guidance_scale': _GUIDANCE.value,
        'sampler': _SAMPLER.value,
        'seed': _SEED.value,
    }
    weights = experiment.fingerprint(cascade.base.unet.params, cascade.base.text_encoder.params)
    marker = experiment.fingerprint(classifier.naming_params)
    settings = {'weights': weights, 'classifier': marker, 'contexts': list(contexts), **options}

    parts, images = [], {}
    for number, class_noun in enumerate(classes, 1):

        def measure(class_noun=class_noun):
            generated = {}
            scores = storybook_scores.base_scores(
                cascade,
                classifier,
                classes=[class_noun],
                contexts=contexts,
                generated=generated,
                batch_size=_BATCH_SIZE.value,
                **options,
            )
            return scores, generated

        print(f'{class_noun}, {number} of {len(classes)}', flush=True)
        numbers, generated = experiment.kept(workdir / 'parts', class_noun.replace(' ', '_'), settings, measure)
        parts.append(numbers)
        images |= generated

    scores = storybook_scores.base_summary([cell for part in parts for cell in part['cells']])
    measured = experiment.measured_on(parts)
    experiment.write_json(output / 'results.json', {'model': _MODEL.value, 'measured': measured, **settings, **scores})
    shown = [context for context in contexts if context in GRID_CONTEXTS or _QUICK.value]
    sheet = grids.contact_sheet(
        [[images[f'a {class_noun} {context}'][0] for class_noun in classes] for context in shown],
        shown,
        headings=classes,
        title=f'a [class] [context], drawn by {_MODEL.value}',
    )
    sheet.save(output / 'grid.png')
    if not _QUICK.value:
        aims = experiment.expectations(HERE / 'expected.json', scores)
        experiment.write_section(output / 'README.md', f'{measured}\n\n{aims}\n\n{tables(scores)}')
    summary = ', '.join(f'{name} {experiment.percent(scores[name])}' for name in COLUMNS)
    print(f'{scores["images"]} images: {summary}; {output / "results.json"}')


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
            '![classes and contexts](grid.png)',
        ]
    )


if __name__ == '__main__':
    program.run(main)
