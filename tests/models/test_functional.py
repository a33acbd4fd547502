"""Networks as pure functions of their parameters: what jit, grad and scan may do with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.system import cuda


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)])

    def __call__(self, x, *, scale=1.0):
        for layer in self.layers:
            x = layer(x)
        return x * scale

    def first(self, x, *, scale=1.0):
        return self.layers[0](x) * scale


NAMES = {'layers.0.kernel', 'layers.0.bias', 'layers.1.scale', 'layers.1.bias'}


def test_a_constant_is_a_parameter_that_is_known_as_one_that_never_trains():
    model = Network(nnx.Rngs(0))
    assert functional.constants(model) == set()
    model.table = functional.Constant(jnp.ones(3))
    assert functional.constants(model) == {'table'}
    assert functional.split(model)[1].keys() == {*NAMES, 'table'}


def test_apply_equals_the_call_of_the_module():
    model = Network(nnx.Rngs(0))
    apply, params = functional.split(model)
    x = jnp.arange(6.0).reshape(2, 3)
    assert params.keys() == NAMES
    np.testing.assert_array_equal(apply(params, x, scale=2.0), model(x, scale=2.0))


def test_apply_calls_the_method_that_is_named():
    model = Network(nnx.Rngs(0))
    apply, params = functional.split(model)
    x = jnp.arange(6.0).reshape(2, 3)
    ours = jax.jit(lambda params: apply(params, x, method='first', scale=2.0))(params)
    np.testing.assert_allclose(ours, model.first(x, scale=2.0), rtol=1e-6)


def test_apply_works_inside_scan_of_gradient_steps():
    apply, params = functional.init(Network, seed=0)
    x = jnp.arange(6.0).reshape(2, 3)

    def step(params, _):
        value, gradient = jax.value_and_grad(lambda p: jnp.mean(jnp.square(apply(p, x) - 1)))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    _, values = jax.jit(lambda p: jax.lax.scan(step, p, length=5))(params)
    assert np.all(np.diff(values) < 0)


def test_init_depends_on_the_seed_alone():
    _, one = functional.init(Network, seed=3)
    _, same = functional.init(Network, seed=jax.random.key(3))
    _, other = functional.init(Network, seed=4)
    np.testing.assert_array_equal(one['layers.0.kernel'], same['layers.0.kernel'])
    assert np.any(one['layers.0.kernel'] != other['layers.0.kernel'])


def test_abstract_has_the_shapes_of_init_and_the_same_function():
    apply, shapes = functional.abstract(lambda: Network(functional.Keys(0)))
    _, params = functional.init(Network, seed=0)
    assert {k: (v.shape, v.dtype) for k, v in shapes.items()} == {k: (v.shape, v.dtype) for k, v in params.items()}
    assert functional.parameter_count(shapes) == functional.parameter_count(params) == 18
    assert apply(params, jnp.ones((2, 3))).shape == (2, 3)


def test_parameters_that_do_not_fit_are_named():
    apply, params = functional.init(Network, seed=0)
    params['layers.2.kernel'] = params.pop('layers.0.kernel')
    with pytest.raises(ValueError, match=r"missing \['layers.0.kernel'\], unknown \['layers.2.kernel'\]"):
        apply(params, jnp.ones((2, 3)))


def test_state_that_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match='BatchNorm holds state that is no parameter: mean, var'):
        functional.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize('dtype, exact', [(jnp.float32, True), (None, True), (jnp.bfloat16, False)])
def test_networks_in_float32_multiply_in_float32_on_every_device_and_others_as_jax_does(dtype, exact):
    class Layers(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(3, 4, dtype=dtype, rngs=nnx.Rngs(0))
            self.conv = nnx.Conv(3, 4, (3, 3), dtype=dtype, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x).sum() + self.conv(x).sum()

    apply, params = functional.split(Layers())
    program = str(jax.make_jaxpr(jax.grad(apply))(params, jnp.ones((1, 5, 5, 3))))
    products = program.count('dot_general[') + program.count('conv_general_dilated[')
    assert products == 4 and program.count('precision=(Precision.HIGHEST') == (products if exact else 0)


@pytest.mark.parametrize(
    ('backend', 'capability', 'expected'),
    [
        ('cpu', None, jnp.float32),
        ('tpu', None, jnp.bfloat16),
        ('gpu', None, jnp.bfloat16),  # of another maker
        ('gpu', (8, 0), jnp.bfloat16),
        ('gpu', (7, 5), jnp.float32),  # a T4
    ],
)
def test_the_usual_dtype_is_one_that_the_device_has(monkeypatch, backend, capability, expected):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(cuda, 'capability', lambda: capability)
    assert functional.compute_dtype() == functional.compute_dtype('auto') == expected
    assert functional.compute_dtype('float32') == jnp.float32
