"""One network on both sides, ours and torch's, with the same weights and inputs: results and all gradients."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.support.torch_reference import assert_same_gradients, largest_relative_difference, quick_jit, to_ours
from tests.support.torch_reference import gradients as torch_gradients


def run_both(theirs, torch_forward, apply, shapes, inputs):
    """Runs both networks forward and backward once, with a random cotangent.

    Args:
      theirs: torch's module.
      torch_forward: function of torch tensors, one per input, to torch's output in the layout of ours.
      apply: ours, a pure function of (params, *inputs).
      shapes: {name: shape or array} of our parameters, which must be those of torch's.
      inputs: float32 arrays.

    Returns:
      params, inputs, output (ours, theirs), params_gradient and input_gradients, each as pairs (ours, theirs).
    """
    tensors = [torch.from_numpy(value.copy()).requires_grad_() for value in inputs]
    output = torch_forward(*tensors)
    cotangent = np.random.default_rng(9).normal(size=output.shape).astype(np.float32)
    (output * torch.from_numpy(cotangent)).sum().backward()
    params = to_ours(theirs)
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in shapes.items()}

    def product(params, inputs):
        ours = apply(params, *inputs)
        return jnp.sum(ours * cotangent), ours

    run = quick_jit(jax.value_and_grad(product, argnums=(0, 1), has_aux=True))
    (_, ours), (of_params, of_inputs) = run(params, list(inputs))
    return SimpleNamespace(
        params=params,
        inputs=inputs,
        output=(ours, output.detach().numpy()),
        params_gradient=(of_params, torch_gradients(theirs)),
        input_gradients=[(own, tensor.grad.numpy()) for own, tensor in zip(of_inputs, tensors, strict=True)],
    )


def assert_same_output(run):
    """Checks that results, which are float32 and not small, differ by at most 1e-4 of the largest."""
    ours, theirs = run.output
    assert ours.dtype == jnp.float32
    assert np.abs(theirs).max() > 0.5
    assert largest_relative_difference(ours, theirs) < 1e-4


def assert_all_gradients_same(run):
    """Checks gradients of parameters and inputs, by largest_relative_difference below 1e-3."""
    assert all(largest_relative_difference(*pair) < 1e-3 for pair in run.input_gradients)
    assert_same_gradients(*run.params_gradient)
