"""What can a fine-tuned model show its subject as? A gallery of the paper's applications.

  python experiments/applications/run.py

README.md has the question, the cost and the images.
"""

import statistics
from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, storybook_scores
from dreambooth_jax.evaluation.comparison import Comparison
from dreambooth_jax.evaluation.subject_trials import IDENTIFIER
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.text.prompts import LIVE_CLASSES

# Application of the paper's section 4.4 -> prompts; {} is the subject. Only cats and dogs wear accessories.
ACCESSORIES = 'accessories'
APPLICATIONS = {
    'recontextualisation': ('a {} in the jungle', 'a {} with the Eiffel Tower in the background', 'a {} on the beach'),
    'art': (
        'a painting of a {} in the style of Vincent van Gogh',
        'a painting of a {} in the style of Andy Warhol',
        'a painting of a {} in the style of Katsushika Hokusai',
    ),
    'views': ('a {} seen from the top', 'a {} seen from the side', 'a {} seen from the back'),
    'properties': ('a purple {}', 'a shiny {}', 'a cube shaped {}'),
    ACCESSORIES: ('a {} wearing a red hat', 'a {} wearing pink glasses', 'a {} in a police outfit'),
}
# Subjects that the recipe was not chosen on.
_COMPARISON = Comparison(Path(__file__).parent, ['dog2', 'wolf_plushie', 'fancy_boot'])
_SHOWN = 2  # images of each prompt


def main(_) -> None:
    trials, count = _COMPARISON.trials(), max(_SHOWN, _COMPARISON.about['num_images'])
    named: dict[str, dict[str, list[bool]]] = {name: {} for name in APPLICATIONS}
    for subject in _COMPARISON.subjects:
        noun = SUBJECTS[subject].class_noun
        prompts = {
            prompt: name
            for name, prompts in APPLICATIONS.items()
            if name != ACCESSORIES or noun in LIVE_CLASSES
            for prompt in prompts
        }
        galleries = []
        for settings, called in (({}, f'{IDENTIFIER} {noun}'), (None, noun)):
            cascade, options, _ = trials.trained(subject, settings)
            texts = [prompt.format(called) for prompt in prompts]
            images = storybook_scores.generate(cascade, texts, count, None, options)
            galleries.append(images.reshape(len(texts), count, *images.shape[1:]))
        tuned, untrained = galleries
        if trials.classifier is not None:
            verdicts = trials.classifier.name(tuned.reshape(-1, *tuned.shape[2:])).subject
            for number, name in enumerate(prompts.values()):
                said = verdicts[number * count : (number + 1) * count]
                named[name].setdefault(subject, []).extend(found == subject for found in said)
        show(subject, list(prompts), tuned, untrained)
        done = _COMPARISON.subjects[: _COMPARISON.subjects.index(subject) + 1]
        report({name: {each: statistics.mean(of) for each, of in found.items()} for name, found in named.items()}, done)


def show(subject: str, prompts, tuned, untrained) -> None:
    """Writes a sheet of the subject's photos, and under each prompt what the models before and after it show."""
    noun, size = SUBJECTS[subject].class_noun, tuned.shape[2]
    photos = _COMPARISON.photos.of(subject, size)[0][:4]
    rows = [[*after[:_SHOWN], *before[:_SHOWN]] for after, before in zip(tuned, untrained, strict=True)]
    headings = [f'{IDENTIFIER} {noun}, fine-tuned'] * _SHOWN + [f'any {noun}, before'] * _SHOWN
    labels = ['photos of the subject', *(prompt.format(f'{IDENTIFIER} {noun}') for prompt in prompts)]
    sheet = grids.contact_sheet([photos, *rows], labels, headings=headings, headings_from=1)
    provenance.save(sheet, _COMPARISON.output / f'{subject}.png')


def report(named: dict[str, dict[str, float]], done: list[str]) -> None:
    """Writes results.json and the section of README.md about the subjects that are `done`."""
    found = {'hardware': experiment.hardware(), **_COMPARISON.about, 'subject_named': named}
    experiment.write_json(_COMPARISON.output / 'results.json', found)
    rows = [[name, *(experiment.percent(of.get(subject)) for subject in done)] for name, of in named.items()]
    sheets = (f'![{subject} in every application]({subject}.png)' for subject in done)
    text = '\n\n'.join([experiment.table(['subject named', *done], rows), *sheets])
    if (_COMPARISON.output / 'README.md').is_file():
        experiment.write_section(_COMPARISON.output / 'README.md', text)


if __name__ == '__main__':
    program.run(main)
