"""Checks, before any tensor is read, whether this package can train a model and generate with it.

The checks use what the model says about itself: model_index.json and the configurations of networks and schedules, read
from a folder or derived from a single file. So every program reports the same sentence, and none fails later with an
error from inside a library. The values of a single configuration are checked where the network is defined (models/);
this module checks what the parts must have in common.

Source: diffusers 0.42.1 pipelines/auto_pipeline.py (which classes hold the weights of the plain pipeline) and
pipelines/stable_diffusion/pipeline_stable_diffusion.py (what its constructor corrects).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.models import unet_config
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import CLASS_NAMES, FAMILIES, KINDS, TEXT_ENCODERS, Pipeline, kind_of

IMAGE_CHANNELS = 3
_XL = 'StableDiffusionXLPipeline'
_TIME_IDS = 6  # numbers that SDXL is given with an image: original height and width, crop top and left, target size


# Classes whose networks are those of a plain pipeline. They are other ways to generate with the same networks, or have
# a UNet with more input channels, which check_channels refuses. A ControlNet stored beside these networks is not read.
_CONTROLS = ('ControlNet', 'ControlNetPAG', 'PAG')
_TASKS = ('', 'Img2Img', 'Inpaint')
PLAIN_CLASSES = {
    **{name: name for name in CLASS_NAMES},
    **{
        f'{family}{control}{task}Pipeline': f'{family}Pipeline'
        for family in ('StableDiffusion', 'StableDiffusionXL')
        for control in ('', *_CONTROLS)
        for task in _TASKS
    },
    **{f'StableDiffusionXLControlNetUnion{task}Pipeline': _XL for task in _TASKS},
    **dict.fromkeys(
        (
            'LatentConsistencyModelPipeline',
            'LatentConsistencyModelImg2ImgPipeline',
            'StableDiffusionDepth2ImgPipeline',
            'StableDiffusionInpaintPipelineLegacy',
            'StableDiffusionInstructPix2PixPipeline',
            'StableDiffusionPipelineSafe',
        ),
        'StableDiffusionPipeline',
    ),
    'StableDiffusionXLInstructPix2PixPipeline': _XL,
    'IFImg2ImgPipeline': 'IFPipeline',
    'IFInpaintingPipeline': 'IFPipeline',
    'IFImg2ImgSuperResolutionPipeline': 'IFSuperResolutionPipeline',
    'IFInpaintingSuperResolutionPipeline': 'IFSuperResolutionPipeline',
}


def checked_index(index: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checks the class and the entries of a model_index.json.

    Args:
      index: contents of the file.
      source: name of the file for an error.
    Returns: the same contents, where `_class_name` is the plain class that has these networks.
    Raises: WeightsError, one sentence, if the pipeline is of another kind or an entry is malformed.
    """
    name = index.get('_class_name')
    if not isinstance(name, str) or name not in PLAIN_CLASSES:
        raise WeightsError(
            f'{source}: _class_name is {name!r}; this package reads {" and ".join(CLASS_NAMES)}, and what diffusers '
            f'saves under other names of the same networks, such as StableDiffusionXLImg2ImgPipeline: give a model of '
            f'these, such as storybook.'
        )
    # Malformed entries would otherwise fail later, without naming this file.
    class_name = PLAIN_CLASSES[name]
    family = FAMILIES[class_name]
    for component in (*family.networks, *family.tokenizers):
        entry = index.get(component)
        is_pair = isinstance(entry, list | tuple) and len(entry) == 2
        if entry is not None and not (is_pair and all(part is None or isinstance(part, str) for part in entry)):
            raise WeightsError(
                f'{source}: {component} is {entry!r} but must be [library, class], or [null, null] where there is '
                f'none; download it again.'
            )
        if component in family.networks and holds(index, component) and entry[1] not in KINDS:
            raise WeightsError(
                f'{source}: {component} is a {entry[1]}, but {", ".join(KINDS)} are supported; give the plain model.'
            )
    for option, default in family.options.items():
        value = index.get(option, default)
        if type(value) is not type(default) or value < 0:
            allowed = 'true or false' if isinstance(default, bool) else 'a number of at least 0'
            raise WeightsError(f'{source}: {option} is {value!r} but must be {allowed}; download it again.')
    # The plain class of the refiner is that of the base model; only its missing text encoder tells them apart.
    if class_name == _XL and holds(index, 'text_encoder_2') and not holds(index, 'text_encoder'):
        raise WeightsError(
            f'{source} names no text_encoder, as that of the SDXL refiner, which only finishes images; give the SDXL '
            f'base model.'
        )
    return {**index, '_class_name': class_name}


def holds(index: Mapping[str, Any], component: str) -> bool:
    """Whether a checked model_index.json names a class for this component."""
    return (index.get(component) or (None, None))[1] is not None


def own_config(component: str, config: Mapping[str, Any], class_name: str) -> Mapping[str, Any]:
    """Brings the config.json of a component into the form that a file of that network alone would have.

    Args:
      component: one of pipeline.COMPONENTS.
      config: contents of the file.
      class_name: class of the component according to model_index.json, which overrides the one in the configuration.
    Raises: ValueError, one sentence, if a CLIP's text_config is not an object.
    """
    if component not in TEXT_ENCODERS:
        old = re.match(r'0\.(\d+)\.', str(config.get('_diffusers_version')))
        size = config.get('sample_size')
        if component == 'unet' and old and int(old[1]) < 9 and type(size) is int and size < 64:
            # Stable Diffusion 1.x was first published with 32, half of its true size; diffusers corrects it too.
            return {**config, 'sample_size': 64}
        return config
    if config.get('model_type') == 'clip':
        # The configuration of a whole CLIP contains that of its text encoder; transformers reads this part too.
        inside = config.get('text_config')
        if not isinstance(inside, Mapping):
            raise ValueError(f"text_config is {inside!r} but must be the text encoder's configuration")
        config = {**inside, 'model_type': 'clip_text_model'}
    if class_name == 'T5EncoderModel':
        return config
    return {'model_type': 'clip_text_model', **config, 'architectures': [class_name]}


def check_schedule(config: Mapping[str, Any], source: str) -> None:
    """Checks the contents of a scheduler_config.json.

    Raises: WeightsError, one sentence, if they do not describe a supported noise schedule.
    """
    try:
        schedules.from_config(config)
    except ValueError as error:
        raise WeightsError(f'{source} is not supported: {str(error).rstrip(".")}.') from None


def check_channels(source: str, title: str, channels: int, plain: int) -> None:
    """Checks that a UNet takes only what it has to denoise and, in a second stage, the low-resolution image.

    Args:
      source: name of the model for an error.
      title: name of the model's family for an error.
      channels: input channels of this UNet.
      plain: input channels of a plain UNet of this family.
    Raises: WeightsError, one sentence, if the two numbers differ.
    """
    if channels != plain:
        raise WeightsError(
            f'{source} is a variant of {title} that takes {channels} channels (inpainting, editing or depth), but '
            f'{plain} are supported; give the plain model.'
        )


def check_networks(class_name: str, configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Checks that the networks are those that their pipeline needs and that they fit each other.

    Args:
      class_name: one of pipeline.CLASS_NAMES.
      configs: {component: contents of its config.json} for the networks that are known. The others are not checked.
      source: name of the model for an error.
    Raises: WeightsError, one sentence.
    """
    # Each configuration must be valid by itself before the parts can be compared.
    full = {}
    for component, config in configs.items():
        try:
            full[component] = kind_of(component, config).resolve(config)
        except ValueError as error:
            raise WeightsError(f'the {component} of {source} is not supported: {str(error).rstrip(".")}.') from None
    # Pixel families read prompts with a T5 and latent families with CLIPs.
    family = FAMILIES[class_name]
    is_latent = 'vae' in family.networks
    for component in TEXT_ENCODERS:
        if component in full and ('d_model' in full[component]) == is_latent:
            kinds = ('T5', 'CLIP')
            raise WeightsError(
                f'the {component} of {source} is a {kinds[not is_latent]}, but {family.title} reads prompts with a '
                f'{kinds[is_latent]}; give the parts of one model.'
            )
    if 'vae' in full:
        _check_vae(full['vae'], source)
    if 'unet' in full:
        _check_unet(class_name, full, source)
        # The widths can be compared only if all text encoders of the family are known.
        needed = [component for component in family.networks if component in TEXT_ENCODERS]
        if all(component in full for component in needed):
            reads, written = widths_read(configs['unet']), width_written(configs[name] for name in needed)
            if reads != {written}:
                raise WeightsError(
                    f'the UNet of {source} reads text embeddings of width {_listed(reads)} but '
                    f'its text encoder writes {written}; give the parts of one model.'
                )
            if class_name == _XL:
                _check_pooled(full, configs, source)


def shares_text(second: Pipeline, base: Pipeline) -> bool:
    """Whether a second stage that was read without text encoders can use the text states of the base stage.

    This is possible only if both stages work on pixels: the stages of DeepFloyd IF have one text encoder in common, and
    diffusers passes its states from one pipeline to the next.
    """
    if second.is_latent or base.is_latent or not base.text_encoders:
        return False
    return widths_read(second.unet.config) == {_width_of(base)}


def check_second_stage(second: Pipeline, base: Pipeline) -> None:
    """Checks that a second stage can use the text states of the base stage.

    Raises: WeightsError, one sentence, if their widths differ.
    """
    reads, written = widths_read(second.unet.config), _width_of(base)
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
    full = [kind_of(TEXT_ENCODERS[0], config).resolve(config) for config in text_encoders]
    return sum(config['d_model'] if 'd_model' in config else config['hidden_size'] for config in full)


def _width_of(pipeline: Pipeline) -> int:
    return width_written(network.config for network in pipeline.text_encoders.values())


def _listed(widths: Iterable[int]) -> str:
    return ' and '.join(map(str, sorted(widths)))


def _check_vae(vae: Mapping[str, Any], source: str) -> None:
    for key in ('in_channels', 'out_channels'):
        if vae[key] != IMAGE_CHANNELS:
            raise WeightsError(
                f'the VAE of {source} has {key} {vae[key]}, but images have {IMAGE_CHANNELS}; give the plain model.'
            )


def _check_unet(class_name: str, full: Mapping[str, Mapping[str, Any]], source: str) -> None:
    family, unet = FAMILIES[class_name], full['unet']
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
    labels = {'IFSuperResolutionPipeline': ('timestep',), 'StableDiffusionUpscalePipeline': ('table', 'timestep')}
    added = unet['addition_embed_type']
    keys = []
    if label not in labels.get(class_name, (None,)):
        keys = ['class_embed_type', 'num_class_embeds']
    elif (added == 'text_time') != (class_name == _XL):
        keys = ['addition_embed_type']
    if keys:
        found = ' and '.join(f'{key} {unet[key]!r}' for key in keys)
        raise WeightsError(
            f'the UNet of {source} has {found}, which is no UNet of {family.title}; give the plain model.'
        )


def _check_pooled(full: Mapping[str, Any], configs: Mapping[str, Any], source: str) -> None:
    unet, last = full['unet'], TEXT_ENCODERS[-1]
    projected = kind_of(last, configs[last]).class_name == 'CLIPTextModelWithProjection'
    pooled = full[last]['projection_dim' if projected else 'hidden_size']
    key = 'projection_class_embeddings_input_dim'
    told = pooled + _TIME_IDS * unet['addition_time_embed_dim']
    if unet[key] != told:
        raise WeightsError(
            f'the UNet of {source} has {key} {unet[key]}, but its {last} and {_TIME_IDS} numbers of '
            f'{unet["addition_time_embed_dim"]} features make {told}; give the parts of one model.'
        )
