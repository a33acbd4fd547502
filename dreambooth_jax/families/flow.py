"""What all families have in common that follow a rectified flow with a transformer, such as FLUX.1 and Z-Image.

A family of this kind is an instance of a subclass of FlowFamily, which says what differs: the checks, the space of
images and how the transformer is asked. The seam that the rest of the package sees is families/family.py.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow
from dreambooth_jax.families import distilled, unet_checks
from dreambooth_jax.families.image_space import ImageSpace, LatentSpace
from dreambooth_jax.families.prompts import PromptEncoder
from dreambooth_jax.models import vae
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Layout, Pipeline

Configs = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlowFamily(Layout, abc.ABC):
    """A base stage that follows a rectified flow; see family.Family for what the methods return.

    Attributes:
      transformer, vae: their classes in diffusers.
      prompts: the way in which it reads prompts.
      reads_with: {text encoder: its kind, 'Qwen3', 'CLIP' or 'T5'}.
      shares_text, fixed_size, crop, lora_targets: as in family.Family.
    """

    networks: tuple[str, ...] = ('transformer', 'vae', 'text_encoder')
    denoiser: str = 'transformer'
    tokenizers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {'text_encoder': 'tokenizer'})
    transformer: str
    vae: str
    prompts: type[PromptEncoder]
    reads_with: Mapping[str, str] = dataclasses.field(default_factory=lambda: {'text_encoder': 'Qwen3'})
    lora_targets: tuple[str, ...]
    shares_text: bool = False
    fixed_size: bool = False
    crop: int | None = None

    def check_parts(self, components: Sequence[str], source: str) -> None:
        """Any part may be missing; whoever needs it says so."""

    def check(self, configs: Configs, source: str) -> None:
        full = {component: kind_of(component, config).resolve(config) for component, config in configs.items()}
        for component, kind in self.reads_with.items():
            known = {name: config for name, config in full.items() if name == component}
            unet_checks.check_text_encoders(known, self.title, kind, source)
        for component, wanted in (('vae', self.vae), ('transformer', self.transformer)):
            if component in full:
                unet_checks.check_class(component, configs[component], wanted, self.title, source)
        if 'vae' in full:
            unet_checks.check_channels_of_images(full['vae'], source)
        if 'transformer' in full:
            self.check_transformer(full, source)

    @abc.abstractmethod
    def check_transformer(self, full: Configs, source: str) -> None:
        """Raises WeightsError, one sentence, if the transformer is a variant or does not fit the other networks.

        Args:
          full: {component: its resolved configuration}; holds 'transformer', and the others if they are known.
          source: name of the model for an error.
        """

    def can_share_text(self, second: Pipeline, base: Pipeline) -> bool:
        return False

    def check_shared_text(self, second: Pipeline, base: Pipeline) -> None:
        raise WeightsError(f'{second.name} does not share text states with {base.name}; give its own text encoder.')

    def is_distilled(self, pipeline: Pipeline) -> bool:
        return distilled.by_name(pipeline)

    def embeds_guidance(self, pipeline: Pipeline) -> bool:
        return False

    def process(self, pipeline: Pipeline) -> RectifiedFlow:
        try:
            return self.read_schedule(pipeline.scheduler)
        except ValueError as error:
            raise WeightsError(f'the scheduler of {pipeline.name} is not supported: {error}') from None

    def noising_process(self, pipeline: Pipeline) -> RectifiedFlow:
        raise WeightsError(f'{pipeline.name} enlarges no images and has no process for that.')

    def highest_noise_level(self, pipeline: Pipeline) -> int:
        raise WeightsError(f'{pipeline.name} enlarges no images and has no noise levels.')

    @abc.abstractmethod
    def space(self, pipeline: Pipeline) -> ImageSpace:
        """As in family.Family."""

    def bucket_multiple(self, pipeline: Pipeline) -> int:
        return pipeline.size_divisor

    def enlarged_size(self, pipeline: Pipeline, size: int) -> int:
        return size

    def prompt_encoder(
        self,
        pipeline: Pipeline,
        *,
        size: int,
        clip_skip: int = 0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> PromptEncoder:
        return self.prompts.of(pipeline, size=size, clip_skip=clip_skip, tokenizers=tokenizers)

    @abc.abstractmethod
    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        """As in family.Family."""


def latents_of(pipeline: Pipeline, space: type[LatentSpace], *, channels: int, side: int) -> LatentSpace:
    """Returns the latents of a pipeline's AutoencoderKL, for a transformer that makes a token of 2 x 2 of them.

    Args:
      space: the class of the result.
      channels: of the latents, if the VAE was not read.
      side: of the latents of the square images that the model is made for.
    """
    network = pipeline.components.get('vae')
    if network is None:  # it was not read: enough for what asks about channels only
        return space(channels=channels, scaling_factor=1.0, scale=1, side=side, halvings=1)
    return space(
        vae=network,
        channels=vae.resolve(network.config)['latent_channels'],
        scaling_factor=vae.scaling_factor(network.config),
        shift_factor=vae.shift_factor(network.config),
        scale=vae.size_divisor(network.config),
        side=side,
        halvings=1,
    )


class Fit(NamedTuple):
    """What a transformer and another network have in common: `key` of the first is `times` the key `theirs` of it.

    `what` names what the other network makes, for an error.
    """

    component: str
    key: str
    times: int
    theirs: str
    what: str


def check_fits(full: Configs, fits: Sequence[Fit], source: str) -> None:
    """Checks that the transformer takes what the other networks make, as far as these are known.

    Raises:
      WeightsError: one sentence.
    """
    for component, key, times, theirs, what in fits:
        found = full['transformer'][key]
        if component in full and found != times * full[component][theirs]:
            raise WeightsError(
                f'the transformer of {source} has {key} {found}, but the {what} of its {component} have '
                f'{times * full[component][theirs]} channels; give the parts of one model.'
            )
