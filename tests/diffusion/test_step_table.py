"""The table of a sampler's steps: float32 columns, terms that are absent, and a table with made-up coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.diffusion.step_table import Correction, Sampling, make_table

ROWS = {'t': [2, 1], 'alpha': [0.5, 0.8], 'sigma': [0.8, 0.6], 'x0': [1, 1]}


def test_columns_are_float32_and_x_is_0_unless_it_is_given():
    correction = Correction(x=[1, 0], previous_x=[0, 1], x0=[0, 2], previous_x0=([0, 3],))
    table = make_table(**ROWS, previous_x0=([0, 0.5],), correction=correction)
    assert {leaf.dtype for leaf in jax.tree.leaves(table)} == {np.dtype(np.float32)}
    assert table.x.tolist() == [0, 0] and make_table(**ROWS, x=[1, 2]).x.tolist() == [1, 2]
    assert table.correction.previous_x0[0].tolist() == [0, 3]
    assert table.std is table.noise_prediction is table.previous_x is table.input_scale is None


@pytest.mark.parametrize(
    ('column', 'noisy'), [({}, False), ({'is_noisy': [0, 0]}, False), ({'is_noisy': [1, 0]}, True)]
)
def test_a_table_adds_noise_where_a_row_says_so(column, noisy):
    assert make_table(**ROWS, **column).adds_noise is noisy


@pytest.mark.parametrize('variance_type', ['fixed_small', 'learned', 'learned_range'])
def test_a_variance_is_learned_by_name(variance_type):
    assert Sampling('leading', 0, variance_type=variance_type).learns_variance == variance_type.startswith('learned')


class Process:
    """Whose network predicts x0 itself, and whose sampler is the table that a test gives."""

    learns_variance = False

    def __init__(self, table):
        self.table = table

    def of_shape(self, shape):
        return self

    def network_time(self, t):
        return t

    def to_x0(self, prediction, x_t, alpha, sigma):
        return prediction

    def to_noise(self, prediction, x_t, alpha, sigma):
        return (x_t - alpha * prediction) / sigma

    def sampling(self, sampler):
        return Sampling('linspace', 0)

    def step_table(self, sampler, num_steps, eta=0.0):
        return self.table


def test_a_row_is_the_linear_update_that_its_columns_say():
    """x <- a x + b x0 + c earlier x0 + p earlier x + d noise prediction, each term by a number of its own."""
    columns = {'x': [0.5, 0.25], 'x0': [1.0, 2.0], 'previous_x0': ([0.0, 3.0],), 'previous_x': [0.0, 0.125]}
    process = Process(make_table(**{**ROWS, **columns}, noise_prediction=[0.0, 10.0]))
    start, keys = jnp.full((1, 2, 2, 1), 8.0), jax.random.split(jax.random.key(0), 1)
    answers = lambda x, t: jnp.full_like(x, 7.0) * t.reshape(-1, 1, 1, 1)  # noqa: E731
    found = samplers.sample(answers, start, keys, schedule=process, sampler='made up', num_steps=2)
    first = 0.5 * 8 + 1 * 14
    second = 0.25 * first + 2 * 7 + 3 * 14 + 0.125 * 8 + 10 * (first - 0.8 * 7) / 0.6
    np.testing.assert_allclose(found, np.full((1, 2, 2, 1), second), rtol=1e-5)
