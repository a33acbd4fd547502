"""What a network predicts about x_t = alpha * x0 + sigma * noise, and conversions between kinds of prediction.

  epsilon       the noise                      Ho et al. 2020
  sample        x0, the clean image
  v_prediction  alpha * noise - sigma * x0     Salimans & Ho 2022, appendix D

If x_t is known, each of them determines the others, except at the two ends:

  alpha = 0 (zero terminal SNR): x_t holds nothing of x0, so `epsilon` determines neither x0 nor v: inf or NaN.
  sigma = 0 (a clean x_t): x_t holds nothing of the noise, so `sample` determines neither epsilon nor v: inf or NaN.

v_prediction can be converted to both everywhere, and `target_for` never divides.
"""

import jax
import jax.numpy as jnp

# (source, target) -> f(value, x_t, alpha, sigma); uses alpha^2 + sigma^2 = 1.
_CONVERSIONS = {
    ('epsilon', 'sample'): lambda epsilon, x, alpha, sigma: (x - sigma * epsilon) / alpha,
    ('epsilon', 'v_prediction'): lambda epsilon, x, alpha, sigma: (epsilon - sigma * x) / alpha,
    ('sample', 'epsilon'): lambda x0, x, alpha, sigma: (x - alpha * x0) / sigma,
    ('sample', 'v_prediction'): lambda x0, x, alpha, sigma: (alpha * x - x0) / sigma,
    ('v_prediction', 'sample'): lambda v, x, alpha, sigma: alpha * x - sigma * v,
    ('v_prediction', 'epsilon'): lambda v, x, alpha, sigma: alpha * v + sigma * x,
}

_TARGETS = {
    'epsilon': lambda x0, noise, alpha, sigma: noise,
    'sample': lambda x0, noise, alpha, sigma: x0,
    'v_prediction': lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
}


def convert(
    value: jax.Array, *, source: str, target: str, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Converts one kind of prediction to another.

    Args:
      value: [B, ...], a prediction of type `source`.
      source, target: 'epsilon', 'v_prediction' or 'sample'.
      x_t: [B, ...], the noisy input that the prediction belongs to.
      alpha, sigma: f32[B] or f32[], at the time of x_t.

    Returns:
      f32[B, ...], a prediction of type `target`.

    Raises:
      ValueError: for an unknown type.
    """
    _check(source)
    _check(target)
    value = jnp.asarray(value, jnp.float32)
    if source == target:
        return value
    x_t = jnp.asarray(x_t, jnp.float32)
    return _CONVERSIONS[source, target](value, x_t, over_trailing(alpha, value), over_trailing(sigma, value))


def target_for(prediction_type: str, x0: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns what a network of this prediction type should predict, f32[B, ...].

    Args:
      prediction_type: 'epsilon', 'v_prediction' or 'sample'.
      x0, noise: [B, ...].
      alpha, sigma: f32[B] or f32[].

    Raises:
      ValueError: for an unknown type.
    """
    _check(prediction_type)
    x0, noise = jnp.asarray(x0, jnp.float32), jnp.asarray(noise, jnp.float32)
    return _TARGETS[prediction_type](x0, noise, over_trailing(alpha, x0), over_trailing(sigma, x0))


def over_trailing(per_example: jax.Array, like: jax.Array) -> jax.Array:
    """Returns f32[B] (or f32[]) with trailing axes of size 1, so that it broadcasts over `like`, [B, ...]."""
    per_example = jnp.asarray(per_example, jnp.float32)
    return (
        per_example.reshape(per_example.shape + (1,) * (like.ndim - per_example.ndim))
        if per_example.ndim
        else per_example
    )


def _check(prediction_type: str) -> None:
    if prediction_type not in _TARGETS:
        raise ValueError(f'prediction_type is {prediction_type!r}; allowed: {", ".join(_TARGETS)}.')
