"""THE step: one optimiser step on any loss, the same body under jit, pmap and fsdp.

Prior preservation is a weight per example, never a mean per group: loss = mean over the global batch of weight *
example loss, so the split of the batch over devices cannot change it (DESIGN.md, decision 4). Every sample is a
function of (seed, stream, step, slot), slot being the example's place in the global batch (decision 5).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dreambooth_jax.training.order import mean_of_micro_batches
from dreambooth_jax.training.state import TrainState

EXAMPLES_STREAM, NOISE_STREAM = 0, 1  # which images, and everything that is sampled inside the loss

Batch = dict[str, jax.Array]


def example_keys(key: jax.Array, step: jax.Array, slot: jax.Array) -> jax.Array:
    """One PRNG key an example [B], from the run's key, the step i32[] and the examples' global places i32[B]."""
    step_key = jax.random.fold_in(jax.random.fold_in(key, NOISE_STREAM), step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(slot)


def averaging_decay(step: jax.Array, highest: float) -> jax.Array:
    """What the averaged weights keep of themselves in a step, f32[], from how many steps there were before it, i32[].

    The average of a long memory would hold on to the weights that it began with: 0.9999 gives them 90 % after 1000
    steps. So the memory grows with the steps, min(highest, (1 + t) / (10 + t)), and the first step starts it anew.

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
    """Makes (state, frozen, key, batch) -> (state, metrics), `num_steps` optimiser steps in one call.

    Args:
      loss: (params, frozen, batch, example keys [B]) -> (f32[B], {part: f32[B]}), a stage's.
      tx: the optimiser; gradients reach it averaged over all devices.
      ema_decay: of the averaged weights once they are warm (averaging_decay), None without.
      axis_name: the pmap axis to average over; None under jit, where the compiler sees the whole batch.
      pick: (examples key, step, batch, frozen) -> batch with the examples' images in it; None leaves the batch as it
        is.
      num_steps: steps of one dispatch. 1 is not wrapped in a scan: XLA on CPU runs a convolution's
        backward pass inside a loop some thirty times slower than outside.
      gradient_accumulation_steps: equal micro-batches that the examples of each device are cut into, to hold fewer
        activations; the step stays the same but for rounding.
      unroll: micro-batches without a loop, for CPU.
    The batch has `slot` i32[B], `weight` f32[B] and `is_instance` f32[B] (1 instance, 0 class, weight 0 padding).
    Metrics, each f32[num_steps]: loss, instance_loss, prior_loss, instance_/prior_ parts, gradient_norm.
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
                if (
                    per_example.shape != examples['weight'].shape
                ):  # a mean would broadcast, and the weights mean nothing
                    wanted = examples['weight'].shape
                    raise ValueError(
                        f'the loss has shape {per_example.shape} but must be one number an example, {wanted}'
                    )
                return jnp.mean(examples['weight'] * per_example), {'loss': per_example, **parts}

            (value, parts), gradients = jax.value_and_grad(weighted, has_aux=True)(state.params)
            groups = {'instance': examples['is_instance'], 'prior': 1.0 - examples['is_instance']}
            sums = {}
            for group, member in groups.items():
                member = member * (examples['weight'] > 0)
                sums[group] = jnp.mean(member), {name: jnp.mean(member * part) for name, part in parts.items()}
            return gradients, value, sums

        gradients, value, sums = mean(
            mean_of_micro_batches(means, examples, gradient_accumulation_steps, unroll=unroll)
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            moved = 1 - averaging_decay(state.step, ema_decay)
            # In this form the average of a weight that stands still is that weight, bit for bit.
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
