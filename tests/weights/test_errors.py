"""The error of weights: one sentence, and the problems behind it, of which the message lists so many."""

from dreambooth_jax.weights.errors import SHOWN, WeightsError


def test_without_problems_it_is_its_sentence():
    error = WeightsError('x is no model.')
    assert str(error) == 'x is no model.' and error.problems == () and isinstance(error, ValueError)


def test_problems_are_listed_up_to_a_number_and_all_kept():
    few = WeightsError('x does not fit:', ['missing: a', 'unused: b'])
    assert str(few) == 'x does not fit:\n  missing: a\n  unused: b'
    many = WeightsError('x does not fit:', [f'missing: {number}' for number in range(SHOWN + 3)])
    lines = str(many).splitlines()
    assert len(lines) == SHOWN + 2 and lines[-1] == '  and 3 more' and len(many.problems) == SHOWN + 3
