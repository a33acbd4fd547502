"""What all families have in common whose denoiser is a UNet2DConditionModel: IF, Stable Diffusion and its upscaler.

A family of this kind is an instance of UNetFamily, or of a subclass that replaces what differs. The seam that the rest
of the package sees is families/family.py.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.families import distilled, processes, unet_checks
from dreambooth_jax.families.image_space import ImageSpace, LatentSpace, PixelSpace
from dreambooth_jax.families.prompts import PromptEncoder
from dreambooth_jax.models import unet_config, vae
from dreambooth_jax.models.lora import ATTENTION_PROJECTIONS
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Layout, Pipeline

_LOW_IMAGE_CHANNELS = 3  # channels of the low-resolution image, which a super-resolution UNet also takes as input
# Sides of aspect buckets of latent models are multiples of this many pixels, as is usual.
_LATENT_BUCKETS = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UNetFamily(Layout):
    """A family whose denoiser is a UNet; see family.Family for what the methods return.

    Attributes:
      reads_with: the kind of its text encoders, 'T5' or 'CLIP'.
      prompts: the way in which it reads prompts.
      noise_labels: how the UNet may be told the noise level of the low-resolution image: 'timestep' (embedded), 'table'
        (looked up), or None (it takes none).
      takes_sizes: whether the UNet is told the size of the image and a pooled text state.
      shares_text: whether a second stage without text encoders uses the text states of the base stage.
      fixed_size: whether the model generates images of its own size only.
      crop: side in pixels of the crops on which a second stage trains that cannot crop in the step.
      forced_scheduler: entries of scheduler_config.json that the pipeline's class sets whatever the file says.
      lora_targets: regular expressions of the layers that get adapters unless the settings name others.
    """

    denoiser: str = 'unet'
    reads_with: str
    prompts: type[PromptEncoder]
    noise_labels: tuple[str | None, ...] = (None,)
    takes_sizes: bool = False
    shares_text: bool = False
    fixed_size: bool = False
    crop: int | None = None
    forced_scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lora_targets: tuple[str, ...] = ATTENTION_PROJECTIONS

    def check_parts(self, components: Sequence[str], source: str) -> None:
        """Checks which of its networks a model names; every family with special variants replaces it."""

    def check(self, configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
        full = {component: kind_of(component, config).resolve(config) for component, config in configs.items()}
        unet_checks.check_text_encoders(full, self.title, self.reads_with, source)
        if 'vae' in full:
            unet_checks.check_class('vae', configs['vae'], 'AutoencoderKL', self.title, source)
            unet_checks.check_vae(full['vae'], source)
        if 'unet' not in full:
            return
        unet_checks.check_unet(self, full, source)
        unet_checks.check_text_width(self, configs, source)
        if self.takes_sizes and all(component in configs for component in self.tokenizers):
            unet_checks.check_pooled([*self.tokenizers][-1], full, configs, source)

    def check_shared_text(self, second: Pipeline, base: Pipeline) -> None:
        unet_checks.check_shared_text(second, base)

    def can_share_text(self, second: Pipeline, base: Pipeline) -> bool:
        return self.shares_text and base.family.shares_text and unet_checks.shares_text(second, base)

    def is_distilled(self, pipeline: Pipeline) -> bool:
        return distilled.by_name(pipeline)

    def embeds_guidance(self, pipeline: Pipeline) -> bool:
        return False

    def process(self, pipeline: Pipeline) -> schedules.Schedule:
        return processes.read(pipeline, self.forced_scheduler)

    def noising_process(self, pipeline: Pipeline) -> schedules.Schedule:
        return processes.read_noising(pipeline)

    def highest_noise_level(self, pipeline: Pipeline) -> int:
        return self.noising_process(pipeline).num_train_timesteps - 1

    def space(self, pipeline: Pipeline) -> ImageSpace:
        height, width = unet_config.sides(pipeline.denoiser.config)
        options = {
            'channels': self.value(pipeline, 'in_channels') - _LOW_IMAGE_CHANNELS * self.is_super_resolution,
            'side': height if height == width else None,
            'halvings': len(self.value(pipeline, 'block_out_channels')) - 1,
        }
        if 'vae' not in self.networks:
            return PixelSpace(**options)
        network = pipeline.components.get('vae')
        if network is None:  # it was not read: enough for what asks about channels only
            return LatentSpace(scaling_factor=1.0, scale=1, **options)
        scaling_factor, scale = vae.scaling_factor(network.config), vae.size_divisor(network.config)
        return LatentSpace(vae=network, scaling_factor=scaling_factor, scale=scale, **options)

    def bucket_multiple(self, pipeline: Pipeline) -> int:
        return pipeline.size_divisor if pipeline.space.bounded else _LATENT_BUCKETS

    def enlarged_size(self, pipeline: Pipeline, size: int) -> int:
        return pipeline.size if self.fixed_size else size * pipeline.space.scale

    def prompt_encoder(
        self,
        pipeline: Pipeline,
        *,
        size: int,
        clip_skip: int = 0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> PromptEncoder:
        return self.prompts.of(pipeline, size=size, clip_skip=clip_skip, tokenizers=tokenizers)

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        told = dict(conditioning)
        low = told.pop('low_image', None)
        if 'noise_level' in told:
            told['class_labels'] = told.pop('noise_level')
        return apply(params, x_t if low is None else jnp.concatenate([x_t, low], axis=-1), t, **told)

    def value(self, pipeline: Pipeline, key: str) -> Any:
        """Returns an entry of the UNet's config.json, or diffusers' default."""
        return pipeline.denoiser.config.get(key, unet_config.DEFAULTS[key])
