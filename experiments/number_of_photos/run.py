"""How many photos does a subject need? Trains subjects on their first one to five.

  python experiments/number_of_photos/run.py

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.evaluation.comparison import Comparison, Way
from dreambooth_jax.evaluation.subject_trials import IDENTIFIER
from dreambooth_jax.storybook.subjects import SUBJECTS

COUNTS = (1, 2, 3, 4, 5)
# Subjects with at least five photos that the recipe was not chosen on.
_COMPARISON = Comparison(Path(__file__).parent, ['dog5', 'candle', 'monster_toy'])


def ways_of(subject: str) -> dict[str, Way]:
    """Returns a way for each number of photos; a subject that has fewer is trained on all that it has."""
    found = {}
    for count in COUNTS:
        folder = _COMPARISON.workdir / _COMPARISON.about['model'] / 'photos' / f'{subject}_{count}'
        _COMPARISON.photos.write(subject, count, folder, f'a {IDENTIFIER} {SUBJECTS[subject].class_noun}')
        found[f'{count} photo{"s" if count > 1 else ""}'] = Way({'data.instance_dir': folder})
    return found


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
