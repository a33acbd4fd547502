"""The order of work in a compiled program, where it decides how much memory is in use at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def after(x: Any, done: Any) -> Any:
    """Returns the pytree `x` unchanged, but its users wait until the arrays of the pytree `done` are computed.

    XLA's optimization barrier does this on GPU and TPU. On CPU the compiler removes the barrier before it orders the
    work breadth first, and then the temporary arrays of all branches are alive together. So there `x` is made to depend
    on one element of each array of `done`: if one of these is NaN, the float arrays of `x` become NaN too.
    """
    x, done = jax.lax.optimization_barrier((x, done))
    if jax.default_backend() != 'cpu':
        return x
    probe = sum(leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in jax.tree.leaves(done))
    broken = jnp.isnan(probe)

    def waiting(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.where(broken, jnp.nan, leaf)
        return leaf + broken.astype(leaf.dtype)

    return jax.tree.map(waiting, x)


def mean_of_micro_batches(function: Callable[[Any], Any], examples: Any, count: int, *, unroll: bool = False) -> Any:
    """Computes function(examples), a pytree of means over the examples, from `count` equal parts one after the other.

    Args:
      examples: a pytree of arrays [B, ...]. Part j holds the examples j, j + count, ... So each part has its share of
        instance examples and of class examples, and of what each device holds of a sharded batch.
      unroll: avoids lax.scan, inside which XLA on CPU runs the backward pass of a convolution very slowly.

    Raises:
      ValueError: if `count` does not divide B.
    """
    if count == 1:
        return function(examples)
    size = len(jax.tree.leaves(examples)[0])
    if size % count:
        raise ValueError(
            f'{size} examples cannot be cut into {count} equal micro-batches; pad the batch (under pmap, that of each '
            f'device)'
        )
    # Sum the parts one at a time, so that only one part's activations are alive.
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), examples)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if unroll:
        for number in range(count):
            part = after(jax.tree.map(lambda x, number=number: x[number], parts), total)
            total = jax.tree.map(jnp.add, total, function(part))
    else:
        total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), total, parts)
    return jax.tree.map(lambda x: x / count, total)
