"""What does prior preservation prevent? Trains subjects with it and without, and measures what leaks into the class.

  python experiments/prior_preservation/run.py
  python experiments/prior_preservation/run.py --model=storybook --output=out

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK_FLOW
from dreambooth_jax.evaluation.comparison import Comparison, Way

# Subjects that the recipe was not chosen on.
_COMPARISON = Comparison(Path(__file__).parent, ['red_cartoon', 'dog6', 'fancy_boot', 'candle', 'cat2'])
# The flow model's recipe holds the model to its own predictions (prior.kind=distillation); this is the paper's way.
CLASS_IMAGES = {
    'prior.kind': 'images',
    'prior.num_images': 64,
    'prior.sampler': 'euler',
    'prior.steps': 15,
    'prior.guidance_scale': '3.0',
}


def ways_of(_: str) -> dict[str, Way]:
    ways = {'recipe': Way(), 'no prior': Way({'prior.weight': '0.0'}), 'untrained': Way(None)}
    if _COMPARISON.about['model'] == STORYBOOK_FLOW:
        ways = {'recipe': Way(), 'class images': Way(CLASS_IMAGES), **ways}
    return ways


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
