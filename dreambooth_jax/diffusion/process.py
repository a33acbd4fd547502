"""The noise process: what losses, samplers and model families see of it.

A process takes an image x0 to noise, x_t = alpha(t) * x0 + sigma(t) * noise. Its times are float32, because some
samplers call the network between the times of training, and because a rectified flow has no whole times. How times are
counted is the process's own affair; 0 is (almost) the clean image and they rise to noise.

Images and latents are NHWC; images lie in [-1, 1].
"""

from typing import Protocol, Self

import jax

from dreambooth_jax.diffusion.step_table import Sampling, StepTable
from dreambooth_jax.diffusion.times import UNIFORM, TimeDistribution


class NoiseProcess(Protocol):
    """One noise process, and what a model that was trained on it predicts.

    It is hashable, so that it can be a static argument of jitted functions.

    Attributes:
      prediction_type: what the network predicts, one of the types of prediction.py.
      weightings: names of the weights of times that it has; see `weight`.
      has_dynamic_shift: whether the times of training can be shifted by the size of the images.
      learns_variance: whether the network answers with variance channels after those of the prediction.
    """

    prediction_type: str
    weightings: tuple[str, ...]
    has_dynamic_shift: bool

    @property
    def learns_variance(self) -> bool: ...

    @property
    def last_time(self) -> float:
        """The time at which nothing, or least, is left of the image."""
        ...

    def described(self, steps: int) -> str:
        """Returns in a few words what the process is, for the plan of a run that generates in so many steps."""
        ...

    def of_shape(self, shape: tuple[int, int]) -> Self:
        """Returns the process for images whose denoised array has this (height, width): sampling may depend on it."""
        ...

    def sample_times(self, keys: jax.Array, distribution: TimeDistribution = UNIFORM) -> jax.Array:
        """Samples training times, f32[B], with one key per example, key[B]."""
        ...

    def network_time(self, t: jax.Array) -> jax.Array:
        """Returns the numbers that the network is told for the times f32[B], f32[B]."""
        ...

    def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the shares of image and noise at training times, (alpha, sigma), f32 of the shape of t."""
        ...

    def snr(self, t: jax.Array) -> jax.Array:
        """Returns the signal-to-noise ratio alpha^2 / sigma^2 at training times, f32 of the shape of t."""
        ...

    def weight(self, t: jax.Array, kind: str) -> jax.Array:
        """Returns the weight of the loss at training times, f32 of the shape of t; kind: one of `weightings`."""
        ...

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns x_t, f32[B, ...], of x0 and noise [B, ...] at training times [B]."""
        ...

    def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Returns what the network should predict, f32[B, ...], of x0 and noise [B, ...] at training times [B]."""
        ...

    def to_x0(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the x0 that a prediction for x_t means, f32[B, ...]; alpha, sigma: f32[B] or f32[], of x_t."""
        ...

    def to_noise(self, prediction: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the noise that a prediction for x_t means, f32[B, ...]; arguments as of `to_x0`."""
        ...

    def sampling(self, sampler: str) -> Sampling:
        """Returns how `sampler` generates with this process.

        Raises:
          ValueError: for an unknown sampler, or if that sampler cannot do what the scheduler file asks for.
        """
        ...

    def step_table(self, sampler: str, num_steps: int, eta: float = 0.0) -> StepTable:
        """Returns the coefficients of every step of a sampler; arguments and errors are those of `samplers.sample`."""
        ...
