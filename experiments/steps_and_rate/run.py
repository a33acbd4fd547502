"""How many steps, and how fast? Trains subjects of those that the recipe is chosen on with several of both.

  python experiments/steps_and_rate/run.py

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.evaluation.comparison import Comparison, Way

STEPS = (60, 120, 240)
LEARNING_RATES = ('2e-3', '4e-3', '8e-3')  # of adapters
_COMPARISON = Comparison(Path(__file__).parent, ['cat', 'rc_car', 'bear_plushie'])


def ways_of(_: str) -> dict[str, Way]:
    return {
        f'{steps} steps at {learning_rate}': Way({'base.steps': steps, 'base.learning_rate': learning_rate})
        for steps in STEPS
        for learning_rate in LEARNING_RATES
    }


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
