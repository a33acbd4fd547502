"""Fine-tunes the second stage with several ranges of noise augmentation, and looks for the subject's fine mark.

  python experiments/super_resolution_noise/run.py --run=runs/dog

Without --run a base stage is trained first, as configs/dog.py says. --set=super_resolution.steps=300 tries another
recipe. Finished runs and measured stages in --workdir are not done again.
README.md has the question, the cost and the numbers.
"""

import functools
import json
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK, STORYBOOK_ENLARGING, ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.diffusion.sampler_list import SAMPLERS
from dreambooth_jax.evaluation import experiment, storybook_scores, subject_trials
from dreambooth_jax.evaluation.classifier import Classifier
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import subjects

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / 'configs'
SAMPLING = experiment.sampling_of(CONFIGS / 'dog.py')
SUBJECT, IDENTIFIER = 'dog', 'sks'  # of configs/dog.py
ORIGINAL = 'original'
_MODEL = program.DEFINE_path('model', 'storybook', "'storybook', or a pipeline folder with a second stage.")
_SUBJECT = flags.DEFINE_enum('subject', SUBJECT, list(subjects.SUBJECTS), 'The subject; others want --output.')
_RUN = program.DEFINE_path('run', None, 'A finished run of the subject, whose base stage is used; default: trained.')
_CLASSIFIER = program.DEFINE_path('classifier', None, 'Folder of the classifier; default: the shipped one.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/super_resolution_noise', 'Keeps runs and measured stages.')
_OUTPUT = program.DEFINE_path(
    'output',
    None,
    'Gets results.json, grid.png and the numbers in README.md; default: the folder of this file, or '
    'with --quick <workdir>/quick.',
)
_RANGES = flags.DEFINE_list('ranges', ['0-0', '0-50', '0-250'], 'Lowest and highest noise level in training.')
_NOISE_LEVELS = flags.DEFINE_list('noise_levels', ['0', '50', '150', '250'], 'Noise levels when images are generated.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 8, "Images of 'a dog'.", lower_bound=1)
_HELD_OUT = flags.DEFINE_integer('held_out', 20, 'True images to enlarge.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', SAMPLING['steps'], 'Denoise steps of the base stage.', lower_bound=1)
_SECOND_STEPS = flags.DEFINE_integer(
    'super_resolution_steps', STORYBOOK_ENLARGING['sample_steps'], 'Of the second stage.', lower_bound=1
)
_GUIDANCE = flags.DEFINE_float(
    'guidance_scale', SAMPLING['guidance_scale'], 'Of the base stage; 1 is none.', lower_bound=1
)
_SECOND_GUIDANCE = flags.DEFINE_float(
    'super_resolution_guidance_scale',
    STORYBOOK_ENLARGING['sample_guidance_scale'],
    'Of the second stage.',
    lower_bound=1,
)
_SAMPLER = flags.DEFINE_enum('sampler', SAMPLING['sampler'], list(SAMPLERS), 'How noise is taken away.')
_SEED = flags.DEFINE_integer('seed', 1000, 'Of the noise.', lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 10, 'Images at once.', lower_bound=1)
_SET = flags.DEFINE_multi_string('set', [], 'Settings that differ from configs/dog.py: name=value. Several times.')
_QUICK = flags.DEFINE_bool('quick', False, '1 range, 2 levels, 2 training steps: only shows that it works.')

QUICK_TRAINING = {'base.steps': 2, 'prior.num_images': 2, 'prior.steps': 2, 'samples.steps': 2}


def config() -> str:
    """The settings file: that of the dog, or the same recipe for another subject."""
    subject = _SUBJECT.value
    return str(CONFIGS / 'dog.py') if subject == SUBJECT else f'{CONFIGS / "subject.py"}:{subject},{STORYBOOK}'


def numbers_of(flag: str, values, count: int) -> tuple[int, ...]:
    """'0-50' -> (0, 50)."""
    parts = values.split('-')
    if len(parts) != count or not all(part.strip().isdigit() for part in parts):
        example = '0-50' if count == 2 else '50'
        raise ConfigError(f'--{flag} holds {values!r}; every entry must look like {example}')
    return tuple(int(part) for part in parts)


def base_run(workdir: Path, original: Cascade) -> Path:
    """The run whose base stage knows the subject."""
    if _RUN.value is None:
        settings = {
            **experiment.of_model(_MODEL.value, _SUBJECT.value, workdir / 'reference'),
            'super_resolution_model': 'none',
            'super_resolution.steps': 0,
            'samples.every': 0,
            'evaluation.every': 0,  # the last step is measured, not the best one
            **(QUICK_TRAINING if _QUICK.value else {}),
        }
        return experiment.train_once(
            workdir / 'base', config(), settings, weights=experiment.fingerprint_of(original.base)
        )
    run = Path(_RUN.value)
    if not (run / 'config.json').is_file() or not (run / 'model' / 'model_index.json').is_file():
        raise ConfigError(f'--run={run} is no finished run; give the --workdir of a training, or leave it out')
    data = json.loads((run / 'config.json').read_text('utf-8'))['data']
    asked = f'a {IDENTIFIER} {subjects.SUBJECTS[_SUBJECT.value].class_noun}'
    if data['subject'] != _SUBJECT.value or data['instance_prompt'] != asked:
        raise ConfigError(f'--run={run} taught {data["instance_prompt"]!r} but must be a run of {config()}')
    return run


def train(levels: tuple[int, int], run: Path, cascade: Cascade, workdir: Path) -> Path:
    """The finished run that fine-tunes the second stage of `cascade` alone, with this range of noise levels."""
    settings = {
        **experiment.of_model(str(run / 'model'), _SUBJECT.value, workdir / 'reference'),
        'super_resolution_model': cascade.super_resolution.folder,
        'super_resolution.noise_level': f'({levels[0]},{levels[1]})',
        'base.steps': 0,
        'prior.weight': 0,
        'samples.every': 0,
        'evaluation.every': 0,  # the last step is measured, not the best one
        'samples.num_images': 1,
    }
    if _QUICK.value:
        settings |= {'super_resolution.steps': 2, 'samples.steps': 2}
    given = experiment.settings_of(_SET.value)
    weights = experiment.fingerprint_of(cascade.base, cascade.super_resolution)
    name = '_'.join(filter(None, [f'noise_{levels[0]}_{levels[1]}', subject_trials.folder_name(given)]))
    return experiment.train_once(workdir / name, config(), settings | given, weights=weights)


def main(argv) -> None:
    del argv
    ranges = [numbers_of('ranges', text, 2) for text in _RANGES.value]
    levels = [numbers_of('noise_levels', text, 1)[0] for text in _NOISE_LEVELS.value]
    amounts = {
        'num_images': _NUM_IMAGES.value,
        'class_images': _CLASS_IMAGES.value,
        'held_out': _HELD_OUT.value,
    }
    steps = {'steps': _STEPS.value, 'super_resolution_steps': _SECOND_STEPS.value}
    workdir = Path(_WORKDIR.value)
    workdir = workdir if _SUBJECT.value == SUBJECT else workdir / _SUBJECT.value
    if _SUBJECT.value != SUBJECT and _OUTPUT.value is None and not _QUICK.value:
        raise ConfigError(f'--subject={_SUBJECT.value} wants --output, or the numbers of {SUBJECT} would be lost')
    if _QUICK.value:
        workdir, ranges, levels = workdir / 'quick', ranges[:1], levels[:2]
        amounts = {
            'num_images': 1,
            'num_prompts': 1,
            'class_images': 1,
            'held_out': 4,
        }
        steps = dict.fromkeys(steps, 2)
    output = Path(_OUTPUT.value or (workdir if _QUICK.value else HERE))
    original = Cascade.load(_MODEL.value)
    if original.super_resolution is None:
        raise ConfigError(f'--model={_MODEL.value} has no second stage, which is fine-tuned here; give one that has')
    classifier = Classifier.load(_CLASSIFIER.value)
    run = base_run(workdir, original)
    cascade = experiment.with_base_of(original, run)
    marker = experiment.fingerprint(classifier.naming_params, classifier.fine_mark_params)
    sampling = {
        'guidance_scale': _GUIDANCE.value,
        'sampler': _SAMPLER.value,
        'super_resolution_guidance_scale': _SECOND_GUIDANCE.value,
        'seed': _SEED.value,
        **steps,
    }
    measurements = experiment.Measurements(workdir, marker, {'noise_levels': levels, **sampling, **amounts})
    plain = next(i for i, scene in enumerate(subjects.held_out_scenes(_SUBJECT.value, 40)) if scene.accessory is None)
    chosen = {'generated': 0, 'held_out': min(plain, amounts['held_out'] - 1)}

    for trained in [None, *ranges]:
        name = ORIGINAL if trained is None else f'{trained[0]}-{trained[1]}'
        stage = cascade
        if trained is not None:
            second = train(trained, run, cascade, workdir) / 'model' / 'super_resolution'
            params = read_pipeline(second, components=['unet']).denoiser.params
            stage = cascade.with_params(super_resolution={'unet': params})

        def measure(stage=stage):
            score = functools.partial(
                storybook_scores.fine_mark_scores,
                stage,
                classifier,
                _SUBJECT.value,
                IDENTIFIER,
                SamplingOptions(batch_size=_BATCH_SIZE.value, **sampling),
                noise_levels=levels,
                images=storybook_scores.FineMarkImages(**amounts),
            )
            scores, generated = experiment.scored(score)
            kinds = {label: label.split()[0] for label in generated}
            return scores, {label: generated[label][chosen[kind]] for label, kind in kinds.items() if kind in chosen}

        measurements.add(name, name, experiment.fingerprint_of(stage.base, stage.super_resolution), measure)

    results, images = measurements.results, measurements.images
    found = measurements.write(output, model=_MODEL.value)
    columns = [
        'held_out true',
        'held_out low',
        *(f'held_out {level}' for level in levels),
        'generated low',
        *(f'generated {level}' for level in levels),
    ]
    headings = [
        'held-out, true',
        'held-out, 32 px',
        *(f'from it, level {level}' for level in levels),
        'generated, 32 px',
        *(f'from it, level {level}' for level in levels),
    ]
    sheet = grids.contact_sheet(
        [[generated[column] for column in columns] for generated in images.values()],
        [ORIGINAL, *(f'fine-tuned at noise levels {name}' for name in list(results)[1:])],
        side=128,
        headings=headings,
    )
    provenance.save(sheet, output / 'grid.png')
    if not _QUICK.value:
        experiment.report(output, HERE / 'expected.json', found, tables(results))
    print(tables(results))
    print(f'written: {output / "results.json"}')


TABLES = {
    'held_out': 'Fine mark found, true held-out images enlarged:',
    'generated': 'Fine mark found, images of the base stage enlarged:',
    'class_images': "Fine mark found on 'a dog', which has none (lower is better):",
    'held_out_error': 'Mean absolute error of the enlarged held-out images, levels of 255:',
}


def tables(results) -> str:
    """The numbers as Markdown, one table for each of TABLES: rows are training ranges, columns are generated levels."""
    first = next(iter(results.values()))
    real, counts = first['real'], first['images']
    share = {name: experiment.percent(value) for name, value in (*real.items(), ('low_named', first['low_named']))}
    text = [
        f'{counts["held_out"]} held-out images, {counts["generated"]} generated and {counts["class_images"]} of '
        f"'a dog' in every cell. The classifier finds the mark in {share['with_mark']} of the painted held-out images, "
        f'in {share["without_mark"]} of the same painted without it, and names the subject in {share["low_named"]} of '
        f'the images that the base stage generated.'
    ]
    for field, title in TABLES.items():
        shown = str if field == 'held_out_error' else experiment.percent
        rows = [[name, *(shown(cell[field]) for cell in scores['noise_levels'])] for name, scores in results.items()]
        levels = [f'generated at {cell["noise_level"]}' for cell in first['noise_levels']]
        text += [title, experiment.table(['trained at', *levels], rows)]
    return '\n\n'.join([*text, '![fine-tuned and original second stages](grid.png)'])


if __name__ == '__main__':
    program.run(main)
