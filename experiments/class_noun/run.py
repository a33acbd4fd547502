"""Does the class noun matter? Trains subjects with their noun, with none and with that of another class.

  python experiments/class_noun/run.py

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.evaluation.comparison import Comparison, Way
from dreambooth_jax.evaluation.subject_trials import IDENTIFIER
from dreambooth_jax.storybook.subjects import SUBJECTS

# Subject -> a noun that is wrong for it. None of the subjects is one that the recipe was chosen on.
WRONG = {'red_cartoon': 'vase', 'dog6': 'can', 'fancy_boot': 'bowl', 'candle': 'sneaker', 'duck_toy': 'backpack'}
_COMPARISON = Comparison(Path(__file__).parent, list(WRONG))


def ways_of(subject: str) -> dict[str, Way]:
    """Returns the three ways. Without a noun the class prompt stays: it says what is preserved, not what is learned."""
    noun = SUBJECTS[subject].class_noun
    wrong = WRONG.get(subject, 'can' if noun != 'can' else 'vase')
    other = {'data.instance_prompt': f'a {IDENTIFIER} {wrong}', 'data.class_prompt': f'a {wrong}'}
    return {
        'its noun': Way(),
        'no noun': Way({'data.instance_prompt': f'a {IDENTIFIER}'}, called=IDENTIFIER),
        'a wrong noun': Way(other, called=f'{IDENTIFIER} {wrong}'),
    }


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
