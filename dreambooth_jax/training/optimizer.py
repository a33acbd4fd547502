"""Optax optimisers from plain settings."""

from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.training.optimizer_state import scale_by_adam

KINDS = ('adamw', 'adafactor', 'lion', 'prodigy')
# Of the papers and of Optax, by kind: decay of the first and second moment (lion: of the step's mix and of the moment),
# and what is added to the root of the second.
BETAS = {'adamw': (0.9, 0.999), 'lion': (0.9, 0.99), 'prodigy': (0.9, 0.999)}
EPSILON = {'adamw': 1e-8, 'prodigy': 1e-8}


def learning_rate_schedule(kind: str, learning_rate: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate by step: 'constant', 'warmup' (linear, then constant) or 'cosine' (linear, then to 0 at
    `steps`).

    Raises: ValueError for another kind.
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
        return {name: scaled(part, multipliers.get(name, {})) for name, part in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def variance_head_masks(unet_params: Mapping[str, jax.Array], channels: int = 3) -> dict[str, np.ndarray]:
    """Factors that hold the learned-variance half of `conv_out` (the last of its 2 * channels outputs)."""
    outputs = unet_params['conv_out.bias'].shape[0]
    trained = (np.arange(outputs) < channels).astype(np.float32)
    return {'conv_out.kernel': trained, 'conv_out.bias': trained}


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """As Optax's, but by one factor, which XLA multiplies in where each gradient is used.

    Optax divides each array, and XLA then keeps a second copy of all gradients.
    """

    def update(updates, state, params=None):
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _adamw(learning_rate, betas, epsilon, weight_decay, state_dtype):
    """optax.adamw, in the same order, on compressed moments."""
    return optax.chain(
        scale_by_adam(*betas, epsilon, state_dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _adafactor(learning_rate, weight_decay):
    """Without the scaling by each array's size, so that a learning rate means what it means for the others."""

    def decay(count):  # Optax's own is not scaled by the learning rate
        return weight_decay * (learning_rate(count) if callable(learning_rate) else learning_rate)

    return optax.adafactor(learning_rate, multiply_by_parameter_scale=False, weight_decay_rate=decay)


def _prodigy(learning_rate, betas, epsilon, weight_decay, warmup):
    tx = optax.contrib.prodigy(learning_rate, betas, eps=epsilon, weight_decay=weight_decay, safeguard_warmup=warmup)
    # It keeps the weights it began with: a copy, since the weights themselves are donated.
    return tx._replace(init=lambda params: tx.init(jax.tree.map(jnp.copy, params)))


def _undecayed(tx, without_decay, paths):
    """`tx`, of whose updates those of `paths` are taken from the same optimiser without decay.

    Both read one state, which decay has no part in, so XLA computes what they have in common once. (Masks would need
    one in every kind, and prodigy has none; two optimisers side by side would give it two learning rates.)
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
    *,
    kind: str = 'adamw',
    state_dtype: str = 'float32',
    betas: tuple[float, float] | None = None,
    epsilon: float | None = None,
    weight_decay: float = 0.01,
    grad_clip_norm: float | None = 1.0,
    warmup: bool = False,
    multipliers: Mapping[str, Any] | None = None,
    undecayed: Container[str] = (),
) -> optax.GradientTransformation:
    """An optimiser after clipping by the global norm; the decay of weights is decoupled and scaled by the learning
    rate.

    Args:
      learning_rate: learning rate or schedule of it; of prodigy, which finds the learning rate, a multiplier.
      kind: 'adamw' as torch.optim.AdamW computes it; 'adafactor', 'lion' or 'prodigy' as Optax does.
      state_dtype: of adamw's moments, optimizer_state.KINDS.
      betas, epsilon: None: BETAS and EPSILON of that kind, which has none if it is not named there.
      grad_clip_norm: None does not clip.
      warmup: whether the learning rate begins with a warm-up, which prodigy must not take for a small gradient.
      multipliers: of the learning rate, see `scale_updates`; None: the same for everything.
      undecayed: dotted paths of parameters, in any component, whose weights do not decay.
    Raises: ValueError for another kind, or moments that it does not have.
    """
    betas, epsilon = betas or BETAS.get(kind), epsilon or EPSILON.get(kind)
    if state_dtype != 'float32' and kind != 'adamw':
        raise ValueError(
            f'moments are {state_dtype!r} but only adamw has them in other numbers than float32, not {kind}'
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
        if kind == 'prodigy':
            return _prodigy(learning_rate, betas, epsilon, weight_decay, warmup)
        raise ValueError(f'optimizer.kind is {kind!r} but must be one of {KINDS}')

    parts = [] if grad_clip_norm is None else [clip_by_global_norm(grad_clip_norm)]
    parts.append(of_decay(weight_decay))
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
    """(learning rate by step, optimiser) of one stage of `steps` steps; `multipliers`, `undecayed`: see
    make_optimizer."""
    schedule = learning_rate_schedule(settings.schedule, learning_rate, steps=steps, warmup_steps=settings.warmup_steps)
    tx = make_optimizer(
        schedule,
        kind=settings.kind,
        state_dtype=settings.state_dtype,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        grad_clip_norm=settings.grad_clip_norm,
        warmup=settings.warmup_steps > 0,
        multipliers=multipliers,
        undecayed=undecayed,
    )
    return schedule, tx


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of the optimiser's state for such params, arrays or shapes, on all devices together; makes nothing."""
    shapes = jax.eval_shape(tx.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
