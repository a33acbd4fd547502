"""Optax optimizers from plain settings."""

from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.training.optimizer_state import scale_by_adam

# The defaults of the papers and of Optax, by kind. BETAS: the decay rates of the first and the second moment (for lion,
# of the mix that makes the step and of the moment). EPSILON: what is added to the root of the second moment.
BETAS = {'adamw': (0.9, 0.999), 'lion': (0.9, 0.99), 'prodigy': (0.9, 0.999)}
EPSILON = {'adamw': 1e-8, 'prodigy': 1e-8}


def learning_rate_schedule(kind: str, learning_rate: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Returns a function from the step to the learning rate.

    Args:
      kind: 'constant'; 'warmup': linear from learning_rate / warmup_steps to `learning_rate` during `warmup_steps`,
        then constant; or 'cosine': the same warm-up, then down to 0 at `steps`.

    Raises:
      ValueError: for another kind.
    """
    warmup = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, max(warmup_steps - 1, 1))
    after = {
        'constant': optax.constant_schedule(learning_rate),
        'warmup': optax.constant_schedule(learning_rate),
        'cosine': optax.cosine_decay_schedule(learning_rate, max(steps - warmup_steps, 1)),
    }
    if kind not in after:
        raise ValueError(f'learning-rate schedule is {kind!r} but must be one of {tuple(after)}')
    if kind == 'constant' or warmup_steps == 0:
        return after[kind]
    return optax.join_schedules([warmup, after[kind]], [warmup_steps])


def scale_updates(multipliers: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scales the updates of chosen components, of tensors in them, or of parts of those tensors.

    It is the last transformation of the chain, after weight decay. So a multiplier of AdamW's updates acts as a
    multiplier of its learning rate, and nothing changes a parameter whose multiplier is 0.

    Args:
      multipliers: component -> either a number, or a mapping from the dotted path of a parameter to an array that
        broadcasts over it. 0 freezes. What is not named keeps its updates.
    """

    def scaled(updates, factor):
        if not isinstance(factor, Mapping):
            return jax.tree.map(lambda update: update * factor, updates)
        return {path: update * factor[path] if path in factor else update for path, update in updates.items()}

    def update(updates, state, params=None):
        return {name: scaled(part, multipliers.get(name, {})) for name, part in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def variance_head_masks(unet_params: Mapping[str, jax.Array], channels: int = 3) -> dict[str, np.ndarray]:
    """Returns multipliers that freeze the learned-variance half of `conv_out`, the last of its 2 * channels outputs.

    Each is f32[outputs], 1 for the outputs that train and 0 for those that do not.
    """
    outputs = unet_params['conv_out.bias'].shape[0]
    trained = (np.arange(outputs) < channels).astype(np.float32)
    return {'conv_out.kernel': trained, 'conv_out.bias': trained}


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Does what optax.clip_by_global_norm does, but with less memory.

    It multiplies by one factor, which XLA fuses into each use of a gradient.

    Optax divides each array, and XLA then keeps a second copy of all gradients.
    """

    def update(updates, state, params=None):
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _adamw(learning_rate, betas, epsilon, weight_decay, state_dtype):
    """optax.adamw with compressed moments; the transformations have the same order."""
    return optax.chain(
        scale_by_adam(*betas, epsilon, state_dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _adafactor(learning_rate, weight_decay):
    """Adafactor without the scaling by the size of each array.

    So a learning rate means the same as for the other optimizers.
    """

    def decay(count):  # Optax does not scale adafactor's decay by the learning rate
        return weight_decay * (learning_rate(count) if callable(learning_rate) else learning_rate)

    return optax.adafactor(learning_rate, multiply_by_parameter_scale=False, weight_decay_rate=decay)


def _prodigy(learning_rate, betas, epsilon, weight_decay, warmup):
    tx = optax.contrib.prodigy(learning_rate, betas, eps=epsilon, weight_decay=weight_decay, safeguard_warmup=warmup)
    # Prodigy keeps the initial weights. It needs a copy of them, because the weights themselves are donated.
    return tx._replace(init=lambda params: tx.init(jax.tree.map(jnp.copy, params)))


def _undecayed(tx, without_decay, paths):
    """Returns `tx`, except that the parameters `paths` do not decay.

    Their updates are taken from `without_decay`, the same optimizer without decay.

    Both read the same state, which does not depend on decay, so XLA computes what they have in common only once.
    (optax.masked would need a mask argument in every kind, and prodigy has none; two optimizers side by side would give
    prodigy two learning rates.)
    """

    def update(updates, state, params=None):
        held, _ = without_decay.update(updates, state, params)
        updates, state = tx.update(updates, state, params)
        chosen = {
            name: {path: held[name][path] if path in paths else value for path, value in part.items()}
            for name, part in updates.items()
        }
        return chosen, state

    return optax.GradientTransformation(tx.init, update)


def make_optimizer(
    learning_rate: optax.Schedule | float,
    settings: OptimizerConfig,
    *,
    multipliers: Mapping[str, Any] | None = None,
    undecayed: Container[str] = (),
) -> optax.GradientTransformation:
    """Makes an optimizer that first clips by the global norm.

    Its weight decay is decoupled and scaled by the learning rate.

    Args:
      learning_rate: the learning rate or its schedule. For prodigy, which finds the learning rate itself, a multiplier
        of it.
      settings: the kind 'adamw' is computed as by torch.optim.AdamW; 'adafactor', 'lion' and 'prodigy' as by Optax.
        betas and epsilon of None mean BETAS and EPSILON of that kind; a kind that is not listed there does not use
        them. Prodigy must know of a warm-up, so as not to mistake small learning rates for small gradients. `schedule`
        and `ema_decay` are not used here.
      multipliers: multipliers of the learning rate, see `scale_updates`; None means the same rate for all parameters.
      undecayed: dotted paths of parameters, in any component, whose weights do not decay.

    Raises:
      ValueError: if the state's dtype is not 'float32' and the kind is not 'adamw'.
    """
    kind, state_dtype = settings.kind, settings.state_dtype
    betas, epsilon = settings.betas or BETAS.get(kind), settings.epsilon or EPSILON.get(kind)
    if state_dtype != 'float32' and kind != 'adamw':
        raise ValueError(
            f'state_dtype is {state_dtype!r} but kind {kind!r} keeps its state in float32; only adamw can compress it'
        )

    def of_decay(weight_decay):
        if kind == 'adamw' and state_dtype == 'float32':
            return optax.adamw(learning_rate, *betas, epsilon, weight_decay=weight_decay)
        if kind == 'adamw':
            return _adamw(learning_rate, betas, epsilon, weight_decay, state_dtype)
        if kind == 'adafactor':
            return _adafactor(learning_rate, weight_decay)
        if kind == 'lion':
            return optax.lion(learning_rate, *betas, weight_decay=weight_decay)
        return _prodigy(learning_rate, betas, epsilon, weight_decay, warmup=settings.warmup_steps > 0)

    # Clipping comes first, because it limits gradients; multipliers come last, because they must also scale the decay.
    parts = [] if settings.grad_clip_norm is None else [clip_by_global_norm(settings.grad_clip_norm)]
    parts.append(of_decay(settings.weight_decay))
    if undecayed:
        parts[-1] = _undecayed(parts[-1], of_decay(0.0), undecayed)
    if multipliers:
        parts.append(scale_updates(multipliers))
    return optax.chain(*parts)


def from_settings(
    settings: OptimizerConfig,
    learning_rate: float,
    steps: int,
    *,
    multipliers: Mapping[str, Any] | None = None,
    undecayed: Container[str] = (),
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns (learning rate by step, optimizer) of a stage that trains for `steps` steps.

    For `multipliers` and `undecayed` see make_optimizer.
    """
    schedule = learning_rate_schedule(settings.schedule, learning_rate, steps=steps, warmup_steps=settings.warmup_steps)
    return schedule, make_optimizer(schedule, settings, multipliers=multipliers, undecayed=undecayed)
