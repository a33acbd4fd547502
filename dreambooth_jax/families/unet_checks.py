"""Checks whether the networks of a pipeline with a UNet are those that its family needs and fit each other.

They read configurations only, so that a wrong model is refused before any of its tensors is read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from dreambooth_jax.models import unet_config
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.guard import check_channels
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Layout, Pipeline

IMAGE_CHANNELS = 3
_TIME_IDS = 6  # numbers that SDXL is given with an image: original height and width, crop top and left, target size

Configs = Mapping[str, Mapping[str, Any]]


def check_text_encoders(full: Configs, title: str, wanted: str, source: str) -> None:
    """Checks that prompts are read with the kind of text encoder that the family reads them with.

    Args:
      full: {component: its resolved configuration}.
      title: name of the family.
      wanted: 'T5' or 'CLIP'.
      source: name of the model for an error.

    Raises:
      WeightsError: one sentence.
    """
    for component, config in full.items():
        if not component.startswith('text_encoder'):
            continue
        found = 'T5' if 'd_model' in config else 'Qwen3' if config.get('model_type') == 'qwen3' else 'CLIP'
        if found != wanted:
            raise WeightsError(
                f'the {component} of {source} is a {found}, but {title} reads prompts with a {wanted}; give the parts '
                f'of one model.'
            )


def check_class(component: str, config: Mapping[str, Any], wanted: str, title: str, source: str) -> None:
    """Checks that a network is of the class that a family needs.

    Args:
      config: contents of its config.json.
      wanted: the class in diffusers or transformers.
      title: name of the family.
      source: name of the model for an error.

    Raises:
      WeightsError: one sentence.
    """
    if (found := kind_of(component, config).class_name) != wanted:
        raise WeightsError(
            f'the {component} of {source} is of the class {found}, but {title} needs {wanted}; give the '
            f'parts of one model.'
        )


def check_vae(vae: Mapping[str, Any], source: str) -> None:
    """Checks that a VAE with this resolved configuration encodes and decodes images for a UNet.

    Raises:
      WeightsError: one sentence.
    """
    check_channels_of_images(vae, source)
    if vae.get('shift_factor'):
        raise WeightsError(
            f'the VAE of {source} has shift_factor {vae["shift_factor"]}, but the latents of a UNet are not shifted; '
            f'give the plain model.'
        )


def check_channels_of_images(vae: Mapping[str, Any], source: str) -> None:
    """Checks that a VAE with this resolved configuration encodes and decodes images.

    Raises:
      WeightsError: one sentence.
    """
    for key in ('in_channels', 'out_channels'):
        if vae[key] != IMAGE_CHANNELS:
            raise WeightsError(
                f'the VAE of {source} has {key} {vae[key]}, but images have {IMAGE_CHANNELS}; give the plain model.'
            )


def check_unet(family: Layout, full: Configs, source: str) -> None:
    """Checks what a UNet takes and answers with: channels, noise level and sizes of the image.

    Args:
      family: a families.unet.UNetFamily.
      full: {component: its resolved configuration}; holds 'unet', and 'vae' if that is known.
      source: name of the model for an error.

    Raises:
      WeightsError: one sentence.
    """
    unet = full['unet']
    low = IMAGE_CHANNELS if family.is_super_resolution else 0
    if 'vae' in family.networks:
        denoised = full['vae']['latent_channels'] if 'vae' in full else unet['out_channels']
        if unet['out_channels'] != denoised:
            raise WeightsError(
                f'the UNet of {source} predicts {unet["out_channels"]} channels but the latents of its VAE have '
                f'{denoised}; give the parts of one model.'
            )
    else:
        denoised = IMAGE_CHANNELS
        if unet['out_channels'] not in (denoised, 2 * denoised):
            raise WeightsError(
                f'the UNet of {source} predicts {unet["out_channels"]} channels, but {denoised} are supported, or '
                f'{2 * denoised} with a learned variance; give the plain model.'
            )
    check_channels(source, family.title, unet['in_channels'], denoised + low)
    # The UNet takes more than the image and the text: in a second stage the noise level of the low-resolution image,
    # as a time embedding or (upscaler only) from a table, and in SDXL the sizes of the image.
    label = unet['class_embed_type'] or (None if unet['num_class_embeds'] is None else 'table')
    keys = []
    if label not in family.noise_labels:
        keys = ['class_embed_type', 'num_class_embeds']
    elif (unet['addition_embed_type'] == 'text_time') != family.takes_sizes:
        keys = ['addition_embed_type']
    if keys:
        found = ' and '.join(f'{key} {unet[key]!r}' for key in keys)
        raise WeightsError(
            f'the UNet of {source} has {found}, which is no UNet of {family.title}; give the plain model.'
        )


def check_text_width(family: Layout, configs: Configs, source: str) -> None:
    """Checks that a UNet reads text states of the width that its text encoders write, if all of them are known.

    Args:
      configs: {component: contents of its config.json}; holds 'unet'.

    Raises:
      WeightsError: one sentence.
    """
    if not all(component in configs for component in family.tokenizers):
        return
    reads, written = widths_read(configs['unet']), width_written(configs[name] for name in family.tokenizers)
    if reads != {written}:
        raise WeightsError(
            f'the UNet of {source} reads text embeddings of width {_listed(reads)} but '
            f'its text encoder writes {written}; give the parts of one model.'
        )


def check_pooled(last: str, full: Configs, configs: Configs, source: str) -> None:
    """Checks that a UNet takes pooled text states of the width that the text encoder `last` writes, and image sizes.

    Args:
      last: name of the text encoder whose pooled state the UNet takes.
      full: {component: its resolved configuration}.
      configs: {component: contents of its config.json}.

    Raises:
      WeightsError: one sentence.
    """
    unet = full['unet']
    projected = kind_of(last, configs[last]).class_name == 'CLIPTextModelWithProjection'
    pooled = full[last]['projection_dim' if projected else 'hidden_size']
    key = 'projection_class_embeddings_input_dim'
    told = pooled + _TIME_IDS * unet['addition_time_embed_dim']
    if unet[key] != told:
        raise WeightsError(
            f'the UNet of {source} has {key} {unet[key]}, but its {last} and {_TIME_IDS} numbers of '
            f'{unet["addition_time_embed_dim"]} features make {told}; give the parts of one model.'
        )


def shares_text(second: Pipeline, base: Pipeline) -> bool:
    """Whether a second stage that was read without text encoders can use the text states of the base stage."""
    return bool(base.text_encoders) and widths_read(second.denoiser.config) == {_width_of(base)}


def check_shared_text(second: Pipeline, base: Pipeline) -> None:
    """Checks that a second stage can use the text states of the base stage.

    Raises:
      WeightsError: one sentence, if their widths differ.
    """
    reads, written = widths_read(second.denoiser.config), _width_of(base)
    if reads != {written}:
        raise WeightsError(
            f'{second.name} reads text embeddings of width {_listed(reads)} but the text encoder of {base.name} '
            f'writes {written}; give the second stage that belongs to this model.'
        )


def widths_read(unet: Mapping[str, Any]) -> set[int]:
    """Widths of the text states that a UNet with this config.json takes; more than one only if its blocks disagree."""
    full = unet_config.resolve(unet)
    return {full['encoder_hid_dim']} if full['encoder_hid_dim'] is not None else set(full['cross_attention_dim'])


def width_written(text_encoders: Iterable[Mapping[str, Any]]) -> int:
    """Width of the joined states of text encoders with these config.json: the sum of their widths."""
    full = [kind_of('text_encoder', config).resolve(config) for config in text_encoders]
    return sum(config['d_model'] if 'd_model' in config else config['hidden_size'] for config in full)


def _width_of(pipeline: Pipeline) -> int:
    return width_written(network.config for network in pipeline.text_encoders.values())


def _listed(widths: Iterable[int]) -> str:
    return ' and '.join(map(str, sorted(widths)))
