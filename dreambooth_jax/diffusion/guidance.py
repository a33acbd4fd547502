"""What is done to a prediction between the network and the sampler: guidance, and dynamic thresholding of x0.

Sources: Ho & Salimans 2022 (classifier-free guidance), Saharia et al. 2022 (Imagen, section 2.3: dynamic thresholding).
"""

import math

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion.prediction import over_trailing


def classifier_free_guidance(
    conditional: jax.Array, unconditional: jax.Array, scale: float | jax.Array, *, learned_variance: bool = False
) -> jax.Array:
    """unconditional + scale * (conditional - unconditional).

    Args:
        conditional: [B, H, W, C], or [B, H, W, 2C] with learned_variance.
        unconditional: same shape: the answer to the empty or negative prompt.
        scale: f32[] or f32[B]; 1 gives `conditional`, 0 `unconditional`.
        learned_variance: whether the second half of the channels is a variance: it is kept from `conditional`
            unguided, as diffusers' IFPipeline does.
    Returns: f32 of the same shape.
    Raises: ValueError if shapes differ or the channels cannot be halved.
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
    """x0 clipped to [-s, s] and divided by s, so that saturated pixels move inwards.

    s is the `ratio` quantile of |x0| over one image, clipped to [1, max_value]; s = 1 is plain clipping to [-1, 1].

    Args:
        x0: [B, ...].
        ratio: in [0, 1], 0.95 for DeepFloyd IF; the quantile interpolates linearly, as torch.quantile.
        max_value: >= 1.
    Returns: f32[B, ...] in [-1, 1]; an example depends on no other example.
    """
    x0 = x0.astype(jnp.float32)
    size = jnp.sort(jnp.abs(x0).reshape(x0.shape[0], -1), axis=1)
    rank = ratio * (size.shape[1] - 1)
    below, above = math.floor(rank), math.ceil(rank)
    quantile = size[:, below] + (rank - below) * (size[:, above] - size[:, below])
    s = over_trailing(jnp.clip(quantile, 1.0, max_value), x0)
    return jnp.clip(x0, -s, s) / s
