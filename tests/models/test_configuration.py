"""config.json completed by the reference's defaults: types decide what is allowed, and one sentence what is not."""

import math

import pytest

from dreambooth_jax.models.configuration import is_positive, resolve

DEFAULTS = {'width': 8, 'epsilon': 1e-5, 'bias': True, 'act': 'silu', 'heads': None, 'dropout': 0.0, 'widths': (1, 2)}
RULES = {'choices': {'act': ('silu', 'gelu')}, 'fixed': ('dropout', 'heads')}


def test_missing_keys_have_defaults_and_unknown_ones_are_left_out():
    assert resolve('net', {}, DEFAULTS, **RULES) == DEFAULTS
    found = resolve('net', {'width': 3, 'epsilon': 1, '_name': 'x', 'other': 9}, DEFAULTS, **RULES)
    assert found == {**DEFAULTS, 'width': 3, 'epsilon': 1}


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('width', 0, 'a positive integer'),
        ('width', 2.0, 'a positive integer'),
        ('width', True, 'a positive integer'),
        ('epsilon', -1.0, 'a positive number'),
        ('epsilon', math.inf, 'a positive number'),
        ('epsilon', '1', 'a positive number'),
        ('bias', 1, 'one of (False, True)'),
        ('act', 'elu', "one of ('silu', 'gelu')"),
        ('dropout', 0.1, '0.0: no other value is implemented'),
        ('heads', 4, 'None: no other value is implemented'),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(key, value, allowed):
    with pytest.raises(ValueError) as error:
        resolve('net', {key: value}, DEFAULTS, **RULES)
    assert str(error.value) == f'net config: {key} is {value!r} but must be {allowed}'


def test_lists_are_left_to_the_network():
    assert resolve('net', {'widths': 'anything'}, DEFAULTS, **RULES)['widths'] == 'anything'


@pytest.mark.parametrize(
    ('value', 'kind', 'expected'),
    [
        (1, int, True),
        (1, int | float, True),
        (0.5, int, False),
        (0, int, False),
        (True, int, False),
        (math.nan, float, False),
    ],
)
def test_positive_is_a_finite_number_above_zero(value, kind, expected):
    assert is_positive(value, kind) is expected
