"""The posterior q(x_previous | x_t, x0) of the discrete variance-preserving process.

Source: Ho et al. 2020, equations 6 and 7, generalized to any two times.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Posterior(NamedTuple):
    """q(x_previous | x_t, x0) = N(x0_coefficient * x0 + x_t_coefficient * x_t, variance), all f32 of the shape of t.

    beta = 1 - alphas_cumprod[t] / alphas_cumprod[previous_t] is the upper bound of the variance.
    """

    x0_coefficient: Any
    x_t_coefficient: Any
    variance: Any
    beta: Any


def posterior(process: Any, t: jax.Array, previous_t: jax.Array) -> Posterior:
    """Returns the coefficients of q(x_previous | x_t, x0).

    Args:
      process: a discrete process, which has alphas_cumprod.
      t: i32[...] in [0, T).
      previous_t: i32[...] below t; negative means the clean image, where the variance is 0.
    """
    table = jnp.asarray(process.alphas_cumprod)
    now = table[t]
    before = jnp.where(previous_t < 0, 1.0, table[jnp.maximum(previous_t, 0)])
    return posterior_of(now, before)


def posterior_of(alphas_cumprod: Any, previous_alphas_cumprod: Any) -> Posterior:
    """Returns `posterior` from values of alphas_cumprod, f32[...] of NumPy or JAX.

    The order of operations is that of diffusers.
    """
    alpha_step = alphas_cumprod / previous_alphas_cumprod
    beta = 1 - alpha_step
    sigma2, previous_sigma2 = 1 - alphas_cumprod, 1 - previous_alphas_cumprod
    return Posterior(
        x0_coefficient=previous_alphas_cumprod**0.5 * beta / sigma2,
        x_t_coefficient=alpha_step**0.5 * previous_sigma2 / sigma2,
        variance=previous_sigma2 / sigma2 * beta,
        beta=beta,
    )
