"""What happens to a prediction between the network and the sampler: guidance, and dynamic thresholding of x0.

Sources: Ho & Salimans 2022 (classifier-free guidance), Saharia et al. 2022 (Imagen, section 2.3: dynamic thresholding).
"""

import math

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion.prediction import over_trailing


def classifier_free_guidance(
    conditional: jax.Array, unconditional: jax.Array, scale: float | jax.Array, *, learned_variance: bool = False
) -> jax.Array:
    """Returns unconditional + scale * (conditional - unconditional), f32 of the same shape.

    Args:
      conditional: [B, H, W, C], or [B, H, W, 2C] with learned_variance.
      unconditional: of the same shape, the prediction for the empty or the negative prompt.
      scale: f32[] or f32[B]; 1 gives `conditional`, 0 gives `unconditional`.
      learned_variance: whether the second half of the channels is a variance. It is then copied from `conditional`
        without guidance, as in diffusers' IFPipeline.

    Raises:
      ValueError: if the shapes differ, or if there is an odd number of channels with learned_variance.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            f'conditional has shape {conditional.shape} but unconditional {unconditional.shape}; they must be equal.'
        )
    conditional, unconditional = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    guided = unconditional + over_trailing(scale, conditional) * (conditional - unconditional)
    if not learned_variance:
        return guided
    channels, odd = divmod(conditional.shape[-1], 2)
    if odd:
        raise ValueError(f'{conditional.shape[-1]} channels cannot hold a prediction and a variance of the same size.')
    return jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)


def dynamic_threshold(x0: jax.Array, ratio: float, max_value: float) -> jax.Array:
    """Returns x0 clipped to [-s, s] and divided by s, so that saturated pixels move inwards.

    s is the `ratio` quantile of |x0| over one image, clipped to [1, max_value]. s = 1 is plain clipping to [-1, 1].

    Args:
      x0: [B, ...].
      ratio: in [0, 1]; DeepFloyd IF has 0.95. The quantile is interpolated linearly, as in torch.quantile.
      max_value: the largest s, >= 1.

    Returns:
      f32[B, ...] in [-1, 1]; an example does not depend on the other examples.
    """
    x0 = x0.astype(jnp.float32)
    if max_value <= 1:
        return jnp.clip(x0, -1, 1)  # s can only be 1, and to sort many pixels takes long on a CPU
    size = jnp.sort(jnp.abs(x0).reshape(x0.shape[0], -1), axis=1)
    rank = ratio * (size.shape[1] - 1)
    below, above = math.floor(rank), math.ceil(rank)
    quantile = size[:, below] + (rank - below) * (size[:, above] - size[:, below])
    s = over_trailing(jnp.clip(quantile, 1.0, max_value), x0)
    return jnp.clip(x0, -s, s) / s
