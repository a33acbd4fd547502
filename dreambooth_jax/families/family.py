"""The seam between one family of models and the rest of the package, and the one tuple of all families.

To add a family, write a file like stable_diffusion.py or, for a transformer that follows a rectified flow, like
z_image.py, and put it into FAMILIES. Nothing else in the package asks which family a model is of.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.families import (
    deepfloyd_if,
    flux,
    flux2_klein,
    sd_upscaler,
    sdxl,
    stable_diffusion,
    stable_diffusion_3,
    z_image,
)
from dreambooth_jax.families.image_space import ImageSpace
from dreambooth_jax.families.prompts import PromptEncoder
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights.pipeline import Pipeline


class Family(Protocol):
    """One class of pipelines: a weights.pipeline.Layout, and everything else that only this family knows.

    Attributes:
      fixed_size: whether the model generates images of its own size only.
      shares_text: whether a second stage without text encoders uses the text states of the base stage.
      crop: side in pixels of the crops on which a second stage trains that cannot crop in the step; None otherwise.
      lora_targets: regular expressions of the layers that get adapters unless the settings name others.
    """

    fixed_size: bool
    shares_text: bool
    crop: int | None
    lora_targets: tuple[str, ...]

    def check_parts(self, components: Sequence[str], source: str) -> None:
        """Raises WeightsError, one sentence, if a model that names these networks is a variant that is not supported.

        Args:
          components: those of the family's networks that the model names.
          source: name of the model for an error.
        """

    def check(self, configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
        """Raises WeightsError, one sentence, if networks are not those of the family or do not fit each other.

        Args:
          configs: {component: contents of its config.json} for the networks that are known.
          source: name of the model for an error.
        """

    def can_share_text(self, second: Pipeline, base: Pipeline) -> bool:
        """Whether a second stage that was read without text encoders can use the text states of the base stage."""

    def check_shared_text(self, second: Pipeline, base: Pipeline) -> None:
        """Raises WeightsError, one sentence, if it cannot."""

    def is_distilled(self, pipeline: Pipeline) -> bool:
        """Whether the model was distilled to few steps without guidance, so that it can be sampled but not trained."""

    def embeds_guidance(self, pipeline: Pipeline) -> bool:
        """Whether the denoiser is told the guidance as a number, `guidance` of the conditioning, and runs once a step.

        Then guidance_scale is that number, and there is no negative prompt.
        """

    def usual_sampling(self, pipeline: Pipeline) -> Mapping[str, Any]:
        """Returns how the makers of the model generate with it, as settings of config.samples; {}: as by default."""

    def process(self, pipeline: Pipeline) -> NoiseProcess:
        """Returns the noise process of what is generated; WeightsError if it is not supported or does not fit."""

    def noising_process(self, pipeline: Pipeline) -> NoiseProcess:
        """Returns the noise process of the low-resolution image of a second stage; errors as `process`."""

    def highest_noise_level(self, pipeline: Pipeline) -> int:
        """Returns the highest level of that noise, a time of `noising_process`."""

    def space(self, pipeline: Pipeline) -> ImageSpace:
        """Returns what the denoiser works on; Pipeline.space calls it once."""

    def bucket_multiple(self, pipeline: Pipeline) -> int:
        """Returns the number of pixels of which sides of aspect buckets are multiples."""

    def enlarged_size(self, pipeline: Pipeline, size: int) -> int:
        """Returns the side in pixels of the images that a second stage makes of images of side `size`."""

    def prompt_encoder(
        self, pipeline: Pipeline, *, size: int, clip_skip: int = 0, tokenizers: Mapping[str, Tokenizer] | None = None
    ) -> PromptEncoder:
        """Returns the way in which prompts are read, for images of side `size` in pixels; see PromptEncoder.of."""

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        """Returns the denoiser's answer f[B, h, w, C], or 2C channels with a learned variance. Pure.

        Args:
          apply, params: of the denoiser.
          x_t: f32[B, h, w, C].
          t: [B], times of the process.
          conditioning: of B prompts (prompts.py); in a second stage also low_image f32[B, h, w, 3], the noisy
            low-resolution image at the size of x_t, and noise_level i32[B], its level. With embeds_guidance, guidance
            f32[B] while images are generated; in training it is missing, and the family says what the denoiser is told.
        """


FAMILIES = (
    deepfloyd_if.BASE,
    deepfloyd_if.SUPER_RESOLUTION,
    stable_diffusion.FAMILY,
    sdxl.FAMILY,
    sd_upscaler.FAMILY,
    stable_diffusion_3.FAMILY,
    flux.FAMILY,
    flux2_klein.FAMILY,
    z_image.FAMILY,
)
# What can be trained from nothing (finetune/fresh.py): first stages, and second stages with the first stage below them.
FIRST_STAGES = (deepfloyd_if.BASE, z_image.FAMILY)
SECOND_STAGES = {deepfloyd_if.SUPER_RESOLUTION: deepfloyd_if.BASE}
_OF_CLASS = {family.class_name: family for family in FAMILIES}


def of_class(class_name: str) -> Any:
    """Returns the family of a pipeline class of diffusers, such as 'IFPipeline'; KeyError for another class."""
    return _OF_CLASS[class_name]
