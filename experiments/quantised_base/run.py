"""What do quantised kernels cost? Trains subjects with adapters beside kernels in f32, int8 and nf4.

  python experiments/quantised_base/run.py

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.evaluation.comparison import Comparison, Way

# Subjects that the recipe was not chosen on, those of experiments/prior_preservation.
_COMPARISON = Comparison(Path(__file__).parent, ['red_cartoon', 'dog6', 'fancy_boot', 'candle', 'cat2'])
STORED = ('int8', 'nf4')


def ways_of(_: str) -> dict[str, Way]:
    """Returns the recipe, whose adapters train beside kernels in f32, and the same beside quantised kernels."""
    return {'f32': Way(), **{dtype: Way({'lora.frozen_dtype': dtype}) for dtype in STORED}}


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
