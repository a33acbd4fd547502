"""Can one model hold two subjects? Trains pairs together and apart, and asks for each by its words and for both.

  python experiments/two_subjects/run.py

README.md has the question, the cost and the numbers.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, of_run
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.comparison import Comparison
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import SUBJECTS, reference_scenes
from dreambooth_jax.text.prompts import CONTEXT, evaluation_prompts

IDENTIFIERS = ('sks', 'ohwx')  # of the first and of the second subject of a pair
# Two of different classes, and two of one class. The recipe was chosen on none of them.
PAIRS = (('dog2', 'wolf_plushie'), ('dog2', 'dog6'))
NEITHER = 'neither'
_COMPARISON = Comparison(Path(__file__).parent, list(dict.fromkeys(subject for pair in PAIRS for subject in pair)))


def words_of(pair) -> tuple[str, ...]:
    return tuple(
        f'{identifier} {SUBJECTS[subject].class_noun}' for identifier, subject in zip(IDENTIFIERS, pair, strict=True)
    )


def together(pair, alone: DreamBoothConfig) -> dict:
    """Returns the settings of a run on both subjects that sees each as often as the run `alone` sees its subject."""
    both = tuple(
        {
            'subject': subject,
            'instance_prompt': f'a {words}',
            'class_prompt': f'a {SUBJECTS[subject].class_noun}',
            'subject_captions': alone.data.subject_captions,
        }
        for subject, words in zip(pair, words_of(pair), strict=True)
    )
    none = {f'data.{name}': '' for name in ('subject', 'instance_prompt', 'class_prompt')}
    none['data.subject_captions'] = False
    # Class images, where there are any, are of both classes and its own.
    return {**none, 'data.subjects': both, 'base.steps': 2 * alone.base.steps, 'prior.dir': None}


def merged(trials, pair) -> Cascade:
    """Returns the model with all that a run on each subject of a pair has changed in it.

    Adapters change kernels by a sum, so this is what both runs' adapters make of the model.
    """
    base, _, _ = trials.trained(pair[0], None)
    apart = ({}, {'data.instance_prompt': f'a {words_of(pair)[1]}'})
    runs = [trials.trained(subject, settings)[0] for subject, settings in zip(pair, apart, strict=True)]
    params = {}
    for name, network in base.base.components.items():
        before, after = network.params, [one.base.components[name].params for one in runs]
        params[name] = {path: before[path] + sum(one[path] - before[path] for one in after) for path in before}
    return runs[0].with_params(base=params)


def ask(trials, cascade, options, pair) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Asks for the subjects of a pair in ten contexts, and for both at once.

    Returns:
      The words -> name -> the share of the images that the classifier gives that name, one of the pair or NEITHER; and
      an image of each of the words, uint8[3, H, W, 3].
    """
    first, second = words_of(pair)
    contexts = [prompt.template for prompt in evaluation_prompts('dog') if prompt.kind == CONTEXT]
    asked = {
        words: [template.format(identifier='', class_noun=words).replace('  ', ' ') for template in contexts]
        for words in (first, second)
    }
    asked['both'] = [f'a {first} and a {second}', f'a {second} and a {first}']
    shares, shown = {}, []
    for words, texts in asked.items():
        count = _COMPARISON.about['num_images'] * len(contexts) // len(texts)
        images = storybook_scores.generate(cascade, texts, count, None, options)
        said = Counter(name if name in pair else NEITHER for name in trials.classifier.name(images).subject)
        shares[words] = {name: said[name] / len(images) for name in (*pair, NEITHER)}
        shown.append(images[0])
    return shares, np.stack(shown)


def main(_) -> None:
    trials = _COMPARISON.trials()
    if trials.classifier is None:
        raise ConfigError(
            'the classifier tells the subjects apart, and knows those of Storybook alone; leave --photos out'
        )
    found, rows, labels = {}, [], []
    for pair in PAIRS:
        if not set(pair) <= set(_COMPARISON.subjects):
            continue
        photos = [draw.paint(reference_scenes(subject)[0], 128) for subject in pair]
        first, options, run = trials.trained(pair[0], {})
        both, _, _ = trials.trained(pair[0], together(pair, of_run.settings(run)))
        ways = {
            'one run for both': both,
            'two runs, merged': merged(trials, pair),
            f'a run for {pair[0]} alone': first,
        }
        for title, cascade in ways.items():
            shares, shown = ask(trials, cascade, options, pair)
            found.setdefault(' and '.join(pair), {})[title] = shares
            rows.append([*photos, *shown])
            labels.append(f'{" and ".join(pair)}: {title}')
        report(found, grids.contact_sheet(rows, labels, headings=['photos', 'photos', *IDENTIFIERS, 'both']))


def report(found, sheet) -> None:
    """Writes results.json, grid.png and the section of README.md."""
    output = _COMPARISON.output
    experiment.write_json(
        output / 'results.json', {'hardware': experiment.hardware(), **_COMPARISON.about, 'named': found}
    )
    provenance.save(sheet, output / 'grid.png')
    parts = []
    for pair, ways in found.items():
        names = list(next(iter(next(iter(ways.values())).values())))
        rows = [
            [title, words, *(experiment.percent(of[name]) for name in names)]
            for title, shares in ways.items()
            for words, of in shares.items()
        ]
        parts += [f'### {pair}', experiment.table(['', 'asked for', *(f'named {name}' for name in names)], rows)]
    if (output / 'README.md').is_file():
        experiment.write_section(output / 'README.md', '\n\n'.join([*parts, '![one image of each](grid.png)']))


if __name__ == '__main__':
    program.run(main)
