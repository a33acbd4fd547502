"""Training losses of one denoising prediction, per example.

The caller weights the examples and averages over the batch.

`denoising_loss` is the squared error; `variance_loss` trains the second half of the channels of a learned-variance
model. Their sum is the hybrid loss of Nichol & Dhariwal 2021, section 3.1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.discrete_vp import DiscreteVP
from dreambooth_jax.diffusion.prediction import over_trailing

# The min-SNR weight of each prediction type, written so that snr = 0 and snr = inf give its limits instead of NaN.
_MIN_SNR_WEIGHTS = {
    'epsilon': lambda snr, gamma: jnp.minimum(1.0, gamma / snr),
    'v_prediction': lambda snr, gamma: jnp.minimum(snr, gamma) / (snr + 1.0),
    'sample': jnp.minimum,
    # The weight of v too is that of an error of x0, min(snr, gamma), times sigma^2; here sigma = 1 / (1 + sqrt(snr)).
    'velocity': lambda snr, gamma: jnp.minimum(snr, gamma) / jnp.square(1.0 + jnp.sqrt(snr)),
}

# Half the distance between two of the 256 values of an image in [-1, 1].
_HALF_LEVEL = 1.0 / 255.0
# Lowest probability whose logarithm is taken, as in improved-diffusion's losses.py.
_MIN_PROBABILITY = 1e-12


def denoising_loss(
    prediction: jax.Array,
    target: jax.Array,
    snr: jax.Array,
    *,
    prediction_type: str,
    min_snr_gamma: float | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the weighted squared error of one denoising prediction, f32[B].

    It is not averaged over the batch, because the caller multiplies it by each example's weight first.

    Args:
      prediction: [B, H, W, C], of the same kind as `target`; without variance channels.
      target: [B, H, W, C], noise, v or x0 (prediction.target_for).
      snr: f32[B], alpha^2 / sigma^2 at each example's time; only min-SNR uses it.
      prediction_type: 'epsilon', 'v_prediction', 'sample' or 'velocity' (rectified_flow.py): what `target` is.
      min_snr_gamma: the cap, usually 5.0; None weights all times alike.
      mask: f32[B, H, W, 1] (or any shape that broadcasts to that of `prediction`), the weight of each pixel, >= 0.
        The result is the weighted mean over the pixels, and 0 for an example whose mask is 0 everywhere. None
        weights all pixels alike.

    Raises:
      ValueError: if shapes differ, min_snr_gamma <= 0 or prediction_type is unknown.

    Source: Hang et al. 2023: the weight is min(snr, gamma) / snr for epsilon, / (snr + 1) for v, / 1 for sample;
    that of a rectified flow's velocity follows from the same error of x0.
    """
    if prediction.shape != target.shape:
        raise ValueError(f'prediction has shape {prediction.shape} but target {target.shape}; they must be equal.')
    if prediction_type not in _MIN_SNR_WEIGHTS:
        raise ValueError(f'prediction_type is {prediction_type!r}; allowed: {", ".join(_MIN_SNR_WEIGHTS)}.')
    if min_snr_gamma is not None and min_snr_gamma <= 0:
        raise ValueError(f'min_snr_gamma is {min_snr_gamma}; it must be above 0, or None for no weighting.')
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    loss = _mean_per_example(error, mask)
    if min_snr_gamma is None:
        return loss
    snr = jnp.asarray(snr, jnp.float32)
    if snr.shape != loss.shape:  # Broadcasting would hide that one weight is used for a whole batch.
        raise ValueError(f'snr has shape {snr.shape}; one number per example is needed, {loss.shape}.')
    return loss * _MIN_SNR_WEIGHTS[prediction_type](snr, jnp.float32(min_snr_gamma))


def variance_loss(
    variance_prediction: jax.Array,
    model_prediction: jax.Array,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    schedule: DiscreteVP,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the variational bound of a learned-range variance, f32[B].

    It is scaled so that it can be added to denoising_loss.

    For t > 0 it is KL(q(x_{t-1} | x_t, x0) || N(mean, variance)); for t = 0 it is the negative log-likelihood of the
    image, whose values have 256 levels. Both are in bits, averaged over the values, and multiplied by T / 1000
    (improved-diffusion's RESCALED_MSE). The mean carries no gradient, so only the variance learns from this term.

    Args:
      variance_prediction: [B, H, W, C], meant to lie in [-1, 1]. -1 stands for the log of the posterior's variance
        and 1 for the log of beta; between them it is linear.
      model_prediction: [B, H, W, C], a prediction of type schedule.prediction_type.
      x0: [B, H, W, C] in [-1, 1].
      x_t: [B, H, W, C].
      t: [B], whole numbers in [0, T).
      schedule: has variance_type 'learned_range'. With zero terminal SNR and epsilon, the last time gives NaN.
      mask: as in `denoising_loss`.

    Raises:
      ValueError: if shapes differ, or if the schedule's variance is not a learned range.

    Source: Nichol & Dhariwal 2021, equations 15 and 16; gaussian_diffusion.py of openai/improved-diffusion.
    """
    if schedule.variance_type != 'learned_range':
        raise ValueError(f'variance_type is {schedule.variance_type!r}; variance_loss needs learned_range.')
    shapes = {name: v.shape for name, v in (('model_prediction', model_prediction), ('x0', x0), ('x_t', x_t))}
    for name, shape in shapes.items():
        if shape != variance_prediction.shape:
            raise ValueError(
                f'{name} has shape {shape} but variance_prediction {variance_prediction.shape}; they must be equal.'
            )
    x0, x_t = jnp.asarray(x0, jnp.float32), jnp.asarray(x_t, jnp.float32)
    index = jnp.asarray(t).astype(jnp.int32)
    # low and high: the log variances that the predictions -1 and 1 stand for.
    x0_coefficient, x_t_coefficient, low, high = (
        over_trailing(jnp.asarray(table)[index], x0) for table in _posterior_tables(schedule)
    )
    alpha, sigma = schedule.alpha_sigma(t)
    predicted_x0 = schedule.to_x0(jax.lax.stop_gradient(model_prediction), x_t, alpha, sigma)
    share = (variance_prediction.astype(jnp.float32) + 1.0) / 2.0
    log_variance = share * high + (1.0 - share) * low

    # Both means have the same x_t term. It is left out of their difference, because subtracting it would lose digits.
    difference = x0_coefficient * (x0 - predicted_x0)
    divergence = 0.5 * (
        log_variance - low - 1.0 + jnp.exp(low - log_variance) + jnp.square(difference) * jnp.exp(-log_variance)
    )
    # At t = 0 there is no earlier x to compare with, so the likelihood of the image itself is measured.
    mean = x0_coefficient * predicted_x0 + x_t_coefficient * x_t
    surprise = -_log_probability_of_levels(x0, mean, 0.5 * log_variance)
    nats = jnp.where(t == 0, _mean_per_example(surprise, mask), _mean_per_example(divergence, mask))
    return nats / math.log(2.0) * (schedule.num_train_timesteps / 1000.0)


@functools.lru_cache(maxsize=16)
def _posterior_tables(schedule: DiscreteVP) -> tuple[np.ndarray, ...]:
    # The x0 and x_t coefficients, the log of the posterior variance and the log of beta, each f32[T]. They are computed
    # in float64 on the host, because the differences cancel.
    betas = schedule.betas.astype(np.float64)
    alphas_cumprod = np.cumprod(1.0 - betas)
    before = np.concatenate([[1.0], alphas_cumprod[:-1]])
    variance = betas * (1.0 - before) / (1.0 - alphas_cumprod)
    variance[0] = variance[1]  # 0 at t = 0 has no logarithm; improved-diffusion also takes the next value.
    x0_coefficient = betas * np.sqrt(before) / (1.0 - alphas_cumprod)
    x_t_coefficient = (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod)
    return tuple(a.astype(np.float32) for a in (x0_coefficient, x_t_coefficient, np.log(variance), np.log(betas)))


def _log_probability_of_levels(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    # The log probability that a Gaussian gives to the level of each value. The first and the last level reach to
    # infinity.
    centred, inverse_scale = x - mean, jnp.exp(-log_scale)
    # Both edges of a level are measured in the lower tail, where the difference of two small numbers keeps its digits.
    # In the upper tail float32 rounds both to 1, and the variance of a value far from the mean would get no gradient.
    from_mean = -jnp.abs(centred)
    inside = _gaussian_cdf(inverse_scale * (from_mean + _HALF_LEVEL)) - _gaussian_cdf(
        inverse_scale * (from_mean - _HALF_LEVEL)
    )
    lowest = _gaussian_cdf(inverse_scale * (centred + _HALF_LEVEL))
    highest = _gaussian_cdf(-inverse_scale * (centred - _HALF_LEVEL))
    probability = jnp.where(x < -0.999, lowest, jnp.where(x > 0.999, highest, inside))
    return jnp.log(jnp.maximum(probability, _MIN_PROBABILITY))


def _gaussian_cdf(x: jax.Array) -> jax.Array:
    # Page's approximation of the normal distribution, 1/2 (1 + tanh u) = sigmoid(2 u). improved-diffusion uses it too,
    # so that losses can be compared with published ones.
    return jax.nn.sigmoid(math.sqrt(8.0 / math.pi) * (x + 0.044715 * x**3))


def _mean_per_example(values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    axes = tuple(range(1, values.ndim))
    if mask is None:
        return jnp.mean(values, axis=axes)
    try:
        mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), values.shape)
    except ValueError:
        raise ValueError(f'mask has shape {mask.shape}; it must broadcast to {values.shape}.') from None
    area = jnp.mean(mask, axis=axes)
    # Values that the mask leaves out may be infinite, as the bound can be far from the mean; infinity times 0 is NaN.
    kept = jnp.mean(jnp.where(mask > 0, mask * values, 0.0), axis=axes)
    return jnp.where(area > 0, kept / jnp.where(area > 0, area, 1.0), 0.0)
