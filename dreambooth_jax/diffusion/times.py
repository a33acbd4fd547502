"""The distribution of the times that training draws.

A share u in (0, 1) is drawn, where 0 is the clean image and 1 is noise, and a noise process turns it into one of its
times. `uniform` is Ho et al. 2020; `logit_normal` and `mode` are Esser et al. 2024, section 3.1, whose u it is. (In
diffusers' scripts u counts through times that fall, so that there a high u means little noise, against the paper.)
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

KINDS = ('uniform', 'logit_normal', 'mode')
# Beyond these, `mode` would not rise with u: Esser et al. 2024, equation 20.
MODE_SCALE = (-1.0, 2 / (math.pi - 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeDistribution:
    """How often each time is drawn.

    Attributes:
      kind: one of KINDS.
      mean, std: of logit(u) for 'logit_normal'; a higher mean draws more noise.
      mode_scale: of 'mode', in MODE_SCALE; positive numbers draw the middle more often, negative ones the ends.
      shift: k, above 0: the share u becomes k * u / (1 + (k - 1) * u) before `range`; above 1 it draws more
        noise. None: the shift of the noise process itself, if it has one.
      dynamic_shift: whether k is that of a rectified flow for the size of the images instead; only without `shift`.
      range: (low, high), shares of all times between which times are drawn; 0 <= low < high <= 1. What is drawn from
        (0, 1) is stretched onto it.

    Raises:
      ValueError: for a value that is not allowed.
    """

    kind: str = 'uniform'
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29
    shift: float | None = None
    dynamic_shift: bool = False
    range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f'kind is {self.kind!r}; allowed: {", ".join(KINDS)}.')
        if self.std <= 0:
            raise ValueError(f'std is {self.std}; it must be above 0.')
        low, high = MODE_SCALE
        if not low <= self.mode_scale <= high:
            raise ValueError(f'mode_scale is {self.mode_scale}; {low} to {high:.6f} is allowed.')
        if self.shift is not None and self.shift <= 0:
            raise ValueError(f'shift is {self.shift}; it must be above 0.')
        if self.shift is not None and self.dynamic_shift:
            raise ValueError(f'shift is {self.shift} beside dynamic_shift; only one of them can be given.')
        if not 0 <= self.range[0] < self.range[1] <= 1:
            raise ValueError(f'range is {self.range}; 0 <= low < high <= 1 is needed.')

    def sample(self, keys: jax.Array) -> jax.Array:
        """Samples shares, f32[B] between the ends of `range`, with one key per example, key[B]."""
        if self.kind == 'logit_normal':
            draw = lambda key: self.of_normal(jax.random.normal(key))  # noqa: E731
        else:
            draw = lambda key: self.of_uniform(jax.random.uniform(key))  # noqa: E731
        low, high = self.range
        u = jax.vmap(draw)(keys)
        return low + (high - low) * (u if self.shift is None else shifted(u, self.shift))

    def of_normal(self, normal: jax.Array) -> jax.Array:
        """Returns u of 'logit_normal' from standard normal numbers, f32 of the same shape."""
        return jax.nn.sigmoid(self.mean + self.std * normal)

    def of_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns u of 'uniform' or 'mode' from uniform numbers in [0, 1), f32 of the same shape."""
        if self.kind == 'uniform':
            return uniform
        return 1 - uniform - self.mode_scale * (jnp.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)


def shifted(u: Any, k: float) -> Any:
    """Returns k * u / (1 + (k - 1) * u), which leaves 0 and 1 where they are; u: a number or an array.

    Source: Esser et al. 2024, equation 23.
    """
    return k * u / (1 + (k - 1) * u)


UNIFORM = TimeDistribution()
