"""Blocks in a loop compute, and learn, what they compute one by one; they are compiled once, and nothing is stacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreambooth_jax.models import functional, lora, scanned

COUNT, WIDTH = 4, 3


class Block(nnx.Module):
    """Passes two arrays on; the second argument and a number are the same for all blocks."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.gate = nnx.Param(jax.random.normal(rngs.params(), (WIDTH,)))

    def __call__(self, pair, added):
        x, y = pair
        return x + jnp.tanh(self.dense(y)) * self.gate[...], y + added * x


class Stack(nnx.Module):
    """Several blocks, run by scanned.run."""

    def __init__(self, *, scan, remat=False, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(COUNT)])
        self.options = {'scan': scan, 'remat': remat}

    def __call__(self, x, added):
        return scanned.run(self.blocks, (x, 2 * x), added, **self.options)[0]


X = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)


def split(scan, remat=False, targets=None):
    model = Stack(scan=scan, remat=remat, rngs=functional.Keys(0))
    if targets:
        lora.adapt(model, rank=2, alpha=2.0, targets=[targets], rngs=functional.Keys(1))
    apply, params = functional.split(model)
    return apply, {name: value + 0.1 * lora.is_adapter(name) for name, value in params.items()}


def loops(apply, params):
    program = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(apply(p, X, 0.5))))(params))
    return program.count('= scan['), program.count('dot_general')


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('targets', [None, r'blocks\.\d\.dense'])
def test_values_and_gradients_are_those_of_blocks_one_by_one(remat, targets):
    results = []
    for scan in (False, True):
        apply, params = split(scan, remat, targets)

        def loss(params, x, added, apply=apply):
            return jnp.sum(apply(params, x, added) ** 3)

        results.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, X, jnp.float32(0.5)))
    (value, gradient), (looped, of_loop) = results
    np.testing.assert_allclose(looped, value, rtol=1e-5)
    assert all(np.any(one) for one in jax.tree.leaves(gradient))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), of_loop, gradient)


def test_only_what_is_trained_has_a_gradient_in_the_loop():
    apply, params = split(True, targets=r'blocks\.\d\.dense')
    adapter, base = lora.separate(params)

    def program(trained, frozen):
        return str(jax.make_jaxpr(jax.grad(lambda trained: jnp.sum(apply(trained | frozen, X, 0.5))))(trained))

    # The gradient of a kernel is a product of its input and the gradient of its output, and leaves the loop stacked.
    stacked = f'f32[{COUNT},{WIDTH},{WIDTH}]'
    of_adapter, of_all = program(adapter, base), program(params, {})
    assert of_adapter.count('dot_general') < of_all.count('dot_general')
    assert 'concatenate' not in of_all and stacked in of_all


def test_equal_blocks_are_traced_once_and_others_one_by_one():
    scans, products = loops(*split(False))
    assert scans == 0 and products > 3 * (COUNT - 1)
    assert loops(*split(True)) == (2, 3)  # forward and backward; one product forward, and two backward
    assert loops(*split(True, targets=r'blocks\.[01]\.dense'))[0] == 0  # an adapter on some of them only


def test_names_of_parameters_do_not_change():
    assert split(True)[1].keys() == split(False)[1].keys()
    assert f'blocks.{COUNT - 1}.dense.kernel' in split(True)[1]
