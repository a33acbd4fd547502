"""The complete state of a training run, which is what a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that changes from step to step. There is no iterator state.

    Attributes:
      step: i32[], the number of optimizer steps taken.
      params: the f32 master weights, component -> dotted path -> array.
      ema: their exponential moving average in the same layout, or None.
      opt_state: the optimizer state of Optax.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: optax.OptState

    @property
    def best_params(self):
        """The averaged weights if the run keeps an average, otherwise the weights."""
        return self.params if self.ema is None else self.ema


def init_state(params: Any, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """Returns a state at step 0. With `ema`, the average starts as a copy of the weights."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=tx.init(params),
    )
