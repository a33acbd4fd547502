"""Shows six of the thirty subjects as README.md does: a photo of each, and what the fine-tuned model generates.

  python experiments/subjects/gallery.py

The six are every fifth of the alphabet, and each image is the first of its prompt: none was picked for its looks. The
trained models are those of run.py, if --workdir has them, else they are trained.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import storybook_scores
from dreambooth_jax.evaluation.comparison import Comparison
from dreambooth_jax.evaluation.subject_trials import IDENTIFIER
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook.subjects import SUBJECTS

# Heading -> prompt; {} is the subject.
PROMPTS = {
    'a sks ...': 'a {}',
    'in the snow': 'a {} in the snow',
    'on the beach': 'a {} on the beach',
    'Eiffel Tower': 'a {} with the Eiffel Tower in the background',
    'by van Gogh': 'a painting of a {} in the style of Vincent van Gogh',
    'purple': 'a purple {}',
}
CLASS = 'a {}'
_COMPARISON = Comparison(Path(__file__).parent, sorted(SUBJECTS)[::5])


def main(_) -> None:
    trials, rows = _COMPARISON.trials(), []
    for subject in _COMPARISON.subjects:
        cascade, options, _ = trials.trained(subject, {})
        noun = SUBJECTS[subject].class_noun
        texts = [prompt.format(f'{IDENTIFIER} {noun}') for prompt in PROMPTS.values()] + [CLASS.format(noun)]
        images = storybook_scores.generate(cascade, texts, 1, None, options)
        photos, _ = _COMPARISON.photos.of(subject, images.shape[-2])
        rows.append([photos[0], *images.reshape(len(texts), *images.shape[-3:])])
        print(subject, flush=True)
    labels = [f'{SUBJECTS[subject].class_noun} ({subject})' for subject in _COMPARISON.subjects]
    sheet = grids.contact_sheet(rows, labels, headings=['a photo', *PROMPTS, 'its class'])
    provenance.save(sheet, _COMPARISON.output / 'gallery.png')


if __name__ == '__main__':
    program.run(main)
