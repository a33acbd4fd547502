"""Equal blocks of a network as one loop of the compiled program, so that 30 blocks compile almost as fast as one.

Every block keeps its own parameters under its own names, as checkpoints, adapters, averages and placements know them.
Each turn of the loop looks the parameters of its block up (`lax.switch`), so that none are stored twice: a copy of one
block exists at a time. The gradient of such a look-up would add zeros for all other blocks in every turn. Instead, the
loop also takes an input for each turn that has no effect, but whose gradient is defined as that of the parameters.
These gradients come out of the loop one after the other and are handed to the blocks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models.functional import call


def run(blocks: Sequence[nnx.Module], x: Any, *args: Any, remat: bool, scan: bool) -> Any:
    """Applies blocks one after the other: x = block(x, *args).

    Args:
      blocks: modules of one class.
      x: what the blocks pass on, a pytree of arrays whose shapes and dtypes stay the same.
      *args: further arguments, the same for all blocks.
      remat: whether every block is computed again in the backward pass.
      scan: whether blocks that are equal except for their values are compiled once, in a loop. If they differ, because
        only some have an adapter, they are compiled one by one all the same.

    Returns:
      The last result. Values and gradients are the same up to rounding, however the blocks are compiled.
    """
    split = [nnx.split(block) for block in blocks]
    graphs = [graph for graph, _ in split]
    if not scan or len(blocks) < 2 or any(graph != graphs[0] for graph in graphs[1:]):
        for block in blocks:
            x = call(block, x, *args, remat=remat)
        return x
    variables = dict(nnx.to_flat_state(split[0][1]))
    # {path of a parameter in its block: its values in all blocks}
    values = {path: [] for path in variables}
    for _, state in split:
        for path, variable in nnx.to_flat_state(state):
            values[path].append(variable.get_value())
    # One look-up for each parameter, so that only those that are trained have a gradient.
    slots = {path: _slots(each) for path, each in values.items()}
    frozen = {path: [jax.lax.stop_gradient(value) for value in each] for path, each in values.items()}

    def step(x, turn):
        index, own = turn

        def block(x, *args):
            taken = {path: _take(index, frozen[path], own[path]) for path in variables}
            state = [(path, variables[path].replace(value)) for path, value in taken.items()]
            return nnx.merge(graphs[0], nnx.from_flat_state(state))(x, *args)

        return call(block, x, *args, remat=remat), None

    return jax.lax.scan(step, x, (jnp.arange(len(blocks)), slots))[0]


@jax.custom_vjp
def _slots(values: Sequence[jax.Array]) -> jax.Array:
    """Returns zeros [N, ...] for N arrays [...]; a gradient with respect to them is handed to the arrays."""
    return jnp.zeros((len(values), *values[0].shape), values[0].dtype)


def _slots_forward(values):
    return _slots(values), len(values)


def _slots_backward(count, gradient):
    return ([gradient[index] for index in range(count)],)


@jax.custom_vjp
def _take(index: jax.Array, values: Sequence[jax.Array], slot: jax.Array) -> jax.Array:
    """Returns values[index]; the gradient goes to `slot`, which has no effect on the result."""
    return jax.lax.switch(index, [lambda value=value: value for value in values])


def _take_forward(index, values, slot):
    return _take(index, values, slot), None


def _take_backward(_, gradient):
    return None, None, gradient


_slots.defvjp(_slots_forward, _slots_backward)
_take.defvjp(_take_forward, _take_backward)
