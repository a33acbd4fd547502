"""The training step: one optimizer step on any loss. The same body runs under jit, pmap and fsdp.

Prior preservation is a weight per example, never a mean per group: loss = mean over the global batch of weight *
example loss. So the split of the batch over devices cannot change it. Every random number is a
function of (seed, stream, step, slot), where slot is the example's index in the global batch (decision 5).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dreambooth_jax.training.order import mean_of_micro_batches
from dreambooth_jax.training.state import TrainState

EXAMPLES_STREAM, NOISE_STREAM = 0, 1  # for the choice of images; for everything sampled inside the loss

Batch = dict[str, jax.Array]


def example_keys(key: jax.Array, step: jax.Array, slot: jax.Array) -> jax.Array:
    """Returns one PRNG key per example, [B].

    Args:
      key: the key of the run.
      step: i32[].
      slot: i32[B], the examples' indices in the global batch.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, NOISE_STREAM), step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(slot)


def averaging_decay(step: jax.Array, highest: float) -> jax.Array:
    """Returns the share f32[] of themselves that the averaged weights keep in one step.

    A constant decay close to 1 would hold on to the initial weights: with 0.9999 they still make up 90 % after 1000
    steps. So the decay grows with the steps t taken before: min(highest, (1 + t) / (10 + t)). In the first step it is
    0, so that the average starts from the new weights.

    Args:
      step: i32[], the number of steps taken before this one.
      highest: the largest decay.

    Source: EMAModel of diffusers (training_utils.py), without its other warm-up.
    """
    step = step.astype(jnp.float32)
    return jnp.where(step > 0, jnp.minimum(highest, (1 + step) / (10 + step)), 0.0)


def make_train_step(
    loss: Callable,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float | None = None,
    axis_name: str | None = None,
    pick: Callable[[jax.Array, jax.Array, Batch, Any], Batch] | None = None,
    num_steps: int = 1,
    gradient_accumulation_steps: int = 1,
    unroll: bool = False,
) -> Callable[[TrainState, Any, jax.Array, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a function that takes `num_steps` optimizer steps in one call.

    The function maps (state, frozen, key, batch) to (state, metrics).

    The batch holds at least `slot` i32[B], `weight` f32[B] (0 for padding) and `is_instance` f32[B] (1 for instance
    examples, 0 for class examples). The metrics, each f32[num_steps], are loss, gradient_norm, instance_loss,
    prior_loss, and the named parts of the loss with the prefixes instance_ and prior_.

    Args:
      loss: the loss of a stage, (params, frozen, batch, example keys [B]) -> (f32[B], {part: f32[B]}).
      tx: the optimizer; the gradients that reach it are averaged over all devices.
      ema_decay: the largest decay of the averaged weights (averaging_decay); None keeps no average.
      axis_name: the pmap axis to average over; None under jit, where the compiler sees the whole batch.
      pick: (examples key, step, batch, frozen) -> the batch with the index of each example's image; None leaves the
        batch as it is.
      num_steps: the steps of one dispatch. A single step is not wrapped in a scan, because XLA on CPU runs the backward
        pass of a convolution about thirty times slower inside a loop.
      gradient_accumulation_steps: into how many equal micro-batches the examples of each device are cut, to hold fewer
        activations at once. The step stays the same except for rounding.
      unroll: computes micro-batches without a loop, for CPU.
    """
    mean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def one_step(state: TrainState, frozen, key, batch):
        examples = batch
        if pick is not None:
            examples = pick(jax.random.fold_in(key, EXAMPLES_STREAM), state.step, batch, frozen)

        def means(examples):
            keys = example_keys(key, state.step, examples['slot'])

            def weighted(params):
                per_example, parts = loss(params, frozen, examples, keys)
                # Another shape would broadcast without an error, and the weights would mean nothing.
                if per_example.shape != examples['weight'].shape:
                    wanted = examples['weight'].shape
                    raise ValueError(
                        f'the loss has shape {per_example.shape} but must be one number per example, {wanted}'
                    )
                return jnp.mean(examples['weight'] * per_example), {'loss': per_example, **parts}

            (value, parts), gradients = jax.value_and_grad(weighted, has_aux=True)(state.params)
            # The share of a group is divided out only at the end: a micro-batch or a device may have no example of the
            # group, and a mean of such means would be wrong.
            groups = {'instance': examples['is_instance'], 'prior': 1.0 - examples['is_instance']}
            sums = {}
            for group, member in groups.items():
                member = member * (examples['weight'] > 0)
                sums[group] = jnp.mean(member), {name: jnp.mean(member * part) for name, part in parts.items()}
            return gradients, value, sums

        gradients, value, sums = mean(
            mean_of_micro_batches(means, examples, gradient_accumulation_steps, unroll=unroll)
        )
        # The gradients are now averaged over all devices, so replicated weights stay equal.
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            moved = 1 - averaging_decay(state.step, ema_decay)
            # In this form the average of a weight that does not change is exactly that weight, bit for bit.
            ema = jax.tree.map(lambda average, new: average + moved * (new - average), ema, params)
        metrics = {'loss': value, 'gradient_norm': optax.tree.norm(gradients)}
        for group, (share, named) in sums.items():
            for name, total in named.items():
                metrics[f'{group}_{name}'] = total / jnp.maximum(share, 1e-9)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def step(state: TrainState, frozen, key, batch):
        if num_steps == 1:
            state, metrics = one_step(state, frozen, key, batch)
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, _: one_step(carry, frozen, key, batch), state, None, length=num_steps)

    return step
