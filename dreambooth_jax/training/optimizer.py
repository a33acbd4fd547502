"""Optax optimisers from plain settings."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from dreambooth_jax.config import OptimizerConfig


def learning_rate_schedule(kind: str, rate: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The rate by step: 'constant', 'warmup' (linear, then constant) or 'cosine' (linear, then to 0 at `steps`).

    Raises: ValueError for another kind.
    """
    warmup = optax.linear_schedule(rate / max(warmup_steps, 1), rate, max(warmup_steps - 1, 1))
    after = {
        'constant': optax.constant_schedule(rate),
        'warmup': optax.constant_schedule(rate),
        'cosine': optax.cosine_decay_schedule(rate, max(steps - warmup_steps, 1)),
    }
    if kind not in after:
        raise ValueError(f'learning-rate schedule is {kind!r} but must be one of {tuple(after)}')
    if kind == 'constant' or warmup_steps == 0:
        return after[kind]
    return optax.join_schedules([warmup, after[kind]], [warmup_steps])


def scale_updates(factors: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scales the updates of chosen components, or of tensors in them, or of parts of those.

    Args:
      factors: component, such as 'unet' -> a number, or dotted path of a parameter -> an array that broadcasts over
        it; 0 holds. What is not named stays as it is. It comes last in the chain: the decay of weights is scaled as
        well, so that a factor of AdamW's updates is one of its learning rate, and nothing moves what is held.
    """

    def scaled(updates, factor):
        if not isinstance(factor, Mapping):
            return jax.tree.map(lambda update: update * factor, updates)
        return {path: update * factor[path] if path in factor else update for path, update in updates.items()}

    def update(updates, state, params=None):
        return {name: scaled(part, factors.get(name, {})) for name, part in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def variance_head_masks(unet_params: Mapping[str, jax.Array], channels: int = 3) -> dict[str, np.ndarray]:
    """Factors that hold the learned-variance half of `conv_out` (the last of its 2 * channels outputs)."""
    outputs = unet_params['conv_out.bias'].shape[0]
    trained = (np.arange(outputs) < channels).astype(np.float32)
    return {'conv_out.kernel': trained, 'conv_out.bias': trained}


def make_optimizer(
    rate: optax.Schedule | float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_clip_norm: float | None = 1.0,
    factors: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW as torch.optim.AdamW computes it, after clipping by the global norm.

    Args:
      rate: learning rate or schedule of it.
      grad_clip_norm: None does not clip.
      factors: of the rate, see `scale_updates`; None: the same for everything.
    """
    parts = [] if grad_clip_norm is None else [optax.clip_by_global_norm(grad_clip_norm)]
    parts.append(optax.adamw(rate, b1=betas[0], b2=betas[1], eps=epsilon, weight_decay=weight_decay))
    if factors:
        parts.append(scale_updates(factors))
    return optax.chain(*parts)


def from_settings(
    settings: OptimizerConfig, learning_rate: float, steps: int, *, factors: Mapping[str, Any] | None = None
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """(learning rate by step, optimiser) of one stage of `steps` steps; `factors`: see `scale_updates`."""
    rate = learning_rate_schedule(settings.schedule, learning_rate, steps=steps, warmup_steps=settings.warmup_steps)
    tx = make_optimizer(
        rate,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        grad_clip_norm=settings.grad_clip_norm,
        factors=factors,
    )
    return rate, tx
