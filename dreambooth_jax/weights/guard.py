"""Checks, before any tensor is read, whether this package can train a model and generate with it.

The checks use what the model says about itself: model_index.json and the configurations of networks and schedules, read
from a folder or derived from a single file. So every program reports the same sentence, and none fails later with an
error from inside a library. The values of a single configuration are checked where the network is defined (models/),
and what the networks of one pipeline must have in common by its family (families/).

Source: diffusers 0.42.1 pipelines/stable_diffusion/pipeline_stable_diffusion.py (what its constructor corrects).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import KINDS, kind_of
from dreambooth_jax.weights.pipeline import Layout


def checked_index(index: Mapping[str, Any], source: str, families: Sequence[Layout]) -> tuple[dict[str, Any], Layout]:
    """Checks the class and the entries of a model_index.json.

    Args:
      index: contents of the file.
      source: name of the file for an error.
      families: those that may be found.

    Returns:
      The same contents, where `_class_name` is the plain class that has these networks, and its family.

    Raises:
      WeightsError: one sentence, if the pipeline is of another kind or an entry is malformed.
    """
    name = index.get('_class_name')
    of_class = {saved: family for family in families for saved in (family.class_name, *family.also_saved_as)}
    if not isinstance(name, str) or name not in of_class:
        raise WeightsError(
            f'{source}: _class_name is {name!r}; this package reads '
            f'{" and ".join(family.class_name for family in families)}, and what diffusers saves under other names of '
            f'the same networks, such as StableDiffusionXLImg2ImgPipeline: give a model of these, such as storybook.'
        )
    # Malformed entries would otherwise fail later, without naming this file.
    family = of_class[name]
    for component in (*family.networks, *family.tokenizers.values()):
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
    family.check_parts([part for part in family.networks if holds(index, part)], source)
    return {**index, '_class_name': family.class_name}, family


def holds(index: Mapping[str, Any], component: str) -> bool:
    """Whether a checked model_index.json names a class for this component."""
    return (index.get(component) or (None, None))[1] is not None


def own_config(component: str, config: Mapping[str, Any], class_name: str) -> Mapping[str, Any]:
    """Brings the config.json of a component into the form that a file of that network alone would have.

    Args:
      component: name of the component.
      config: contents of the file.
      class_name: class of the component according to model_index.json, which overrides the one in the configuration.

    Raises:
      ValueError: one sentence, if a CLIP's text_config is not an object.
    """
    if not component.startswith('text_encoder'):
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


def check_schedule(config: Mapping[str, Any], source: str, read: Callable = schedules.from_config) -> None:
    """Checks the contents of a scheduler_config.json.

    Args:
      source: name of the file for an error.
      read: Layout.read_schedule of the file's family.

    Raises:
      WeightsError: one sentence, if they do not describe a supported noise schedule.
    """
    try:
        read(config)
    except ValueError as error:
        raise WeightsError(f'{source} is not supported: {str(error).rstrip(".")}.') from None


def check_channels(source: str, title: str, channels: int, plain: int) -> None:
    """Checks that a UNet takes only what it has to denoise and, in a second stage, the low-resolution image.

    Args:
      source: name of the model for an error.
      title: name of the model's family for an error.
      channels: input channels of this UNet.
      plain: input channels of a plain UNet of this family.

    Raises:
      WeightsError: one sentence, if the two numbers differ.
    """
    if channels != plain:
        raise WeightsError(
            f'{source} is a variant of {title} that takes {channels} channels (inpainting, editing or depth), but '
            f'{plain} are supported; give the plain model.'
        )


def check_networks(family: Layout, configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Checks that the networks are those that their pipeline needs and that they fit each other.

    Args:
      family: what the pipeline consists of; its `check` compares the networks.
      configs: {component: contents of its config.json} for the networks that are known. The others are not checked.
      source: name of the model for an error.

    Raises:
      WeightsError: one sentence.
    """
    # Each configuration must be valid by itself before the parts can be compared.
    for component, config in configs.items():
        try:
            kind_of(component, config).resolve(config)
        except ValueError as error:
            raise WeightsError(f'the {component} of {source} is not supported: {str(error).rstrip(".")}.') from None
    family.check(configs, source)
