"""How many floating-point operations a function computes, counted from its jaxpr.

The compiler's own count (`Lowered.cost_analysis`) takes the body of a loop once, however often it turns, and a kernel
for nothing. Blocks of transformers are such loops (scanned.py), and so is attention in parts (attention.py).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# cuDNN's attention as jax.nn calls it: a primitive with the two products inside.
_CUDNN_ATTENTION = 'dot_product_attention_fwd'


def flops(function: Callable, *args: Any) -> float:
    """Returns the operations of the matrix products and convolutions of one call, two for each multiply-add.

    All else that networks compute is little beside them, and is left out. Of branches the costliest counts, and the
    body of a `while_loop`, whose turns are not known before, counts once.

    Args:
      function: is traced and not computed.
      args: its arguments, pytrees of arrays or of jax.ShapeDtypeStruct.
    """
    return float(_of(jax.make_jaxpr(function)(*args).jaxpr))


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel, axis = equation.invars[1].aval, params['dimension_numbers'].rhs_spec[0]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[axis]
    if name.startswith(_CUDNN_ATTENTION):
        query, key = (operand.aval.shape for operand in equation.invars[:2])
        return 4 * math.prod(query) * key[1]
    parts = [_of(part) for value in params.values() for part in _jaxprs(value)]
    if name == 'cond':
        return max(parts)
    times = params['length'] if name == 'scan' else 1
    if name == 'pallas_call':
        times = math.prod(params['grid_mapping'].grid)
    if name == 'shard_map':
        times = params['mesh'].size  # inside are the shapes of one device
    return times * sum(parts)


def _jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _jaxprs(each)
