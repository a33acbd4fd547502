"""How images are sampled: one group of values, with the same names in settings, flags and calls."""

import dataclasses

from dreambooth_jax.config import DreamBoothConfig, PriorConfig, SamplesConfig, SuperResolutionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a cascade samples images.

    Attributes:
      steps: denoising steps of both stages, unless super_resolution_steps is given.
      guidance_scale: guidance of both stages, unless super_resolution_guidance_scale is given; 1 means no guidance.
      sampler: name of the sampler of both stages, as in samplers.sample.
      seed: seed of the noise; image j of every prompt has the key image_keys(seed, j).
      negative_prompt: what guidance leads away from.
      batch_size: images at once, on all local devices together; rounded up to a multiple of their number. None:
        `Cascade.usual_batch_size`. The images do not depend on it.
      super_resolution: False leaves the second stage out.
      super_resolution_steps, super_resolution_guidance_scale: those of the second stage; None: those of both.
      noise_level: timestep of image_noising_scheduler, the noise augmentation of the low-resolution image; 0: none.
    """

    steps: int
    guidance_scale: float
    sampler: str
    seed: int = 0
    negative_prompt: str = ''
    batch_size: int | None = None
    super_resolution: bool = True
    super_resolution_steps: int | None = None
    super_resolution_guidance_scale: float | None = None
    noise_level: int = 0

    @classmethod
    def of_samples(cls, samples: SamplesConfig, second: SuperResolutionConfig | None = None) -> 'SamplingOptions':
        """Returns how a run generates its samples.

        Args:
          second: the settings of its second stage; None: there is none.
        """
        return _from_settings(samples, second, seed=samples.seed)

    @classmethod
    def of_class_images(cls, config: DreamBoothConfig, *, super_resolution: bool) -> 'SamplingOptions':
        """Returns how a run generates its class images, with the second stage or without it."""
        return _from_settings(
            config.prior, config.super_resolution, seed=config.seed, super_resolution=super_resolution
        )

    @property
    def second_steps(self) -> int:
        """Denoising steps of the second stage."""
        return self.super_resolution_steps or self.steps

    @property
    def second_guidance_scale(self) -> float:
        """Guidance scale of the second stage."""
        return self.super_resolution_guidance_scale or self.guidance_scale


def _from_settings(
    settings: SamplesConfig | PriorConfig, second: SuperResolutionConfig | None, **more: int | bool
) -> SamplingOptions:
    if second is not None:
        more |= {
            'super_resolution_steps': second.sample_steps,
            'super_resolution_guidance_scale': second.sample_guidance_scale,
            'noise_level': second.sample_noise_level,
        }
    shared = ('steps', 'guidance_scale', 'sampler', 'batch_size')
    return SamplingOptions(**{name: getattr(settings, name) for name in shared}, **more)
