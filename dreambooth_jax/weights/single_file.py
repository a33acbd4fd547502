"""Reads and writes a whole model as one .safetensors file of the original layout.

AUTOMATIC1111, ComfyUI and diffusers read such files. The file holds the weights of the UNet, the VAE and the text
encoders (original_layout.py). Its header says what the model is (modelspec.py). It holds no configurations, which are
derived (original_configs.py), and no tokenizer (tokenizer_folders.py).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.models import clip, unet_config, vae
from dreambooth_jax.weights import (
    files,
    guard,
    lora_files,
    modelspec,
    original_configs,
    original_layout,
    original_names,
    tokenizer_folders,
    transformer_file,
)
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.original_facts import EPSILON, V_PREDICTION, OriginalLayout, Shapes, layouts_of
from dreambooth_jax.weights.original_transformer import own_names
from dreambooth_jax.weights.pipeline import (
    Layout,
    Pipeline,
    abstract_network,
    filled_network,
    network_tensors,
)


class SingleFile(NamedTuple):
    """The contents of a single file.

    Attributes:
      layout: the generation of the model, one of the layouts that were given.
      configs: {name: contents of that JSON file of a pipeline folder}; see original_configs.derive.
      components: {component: {name in a checkpoint of diffusers or transformers: f32 array}}.
      metadata: {key: text} of the header.
    """

    layout: OriginalLayout
    configs: dict[str, dict[str, Any]]
    components: dict[str, dict[str, np.ndarray]]
    metadata: dict[str, str]


def read_pipeline(
    path: str | os.PathLike,
    *,
    families: Sequence[Layout],
    dtype=jnp.float32,
    components: Sequence[str] | None = None,
    prediction_type: str | None = None,
    tokenizer_dir: str | os.PathLike | None = None,
    frozen_dtype: str | None = None,
) -> Pipeline:
    """Reads a whole model, or some of its networks, as folders.read_pipeline reads a folder.

    Args:
      path: the file.
      families: those that may be found.
      dtype: compute dtype of the networks; parameters are held as functional.held says.
      components: the networks to read; None: all.
      prediction_type: as in read_single_file.
      tokenizer_dir: folder that holds tokenizer/; see `given` of tokenizer_folders.find.
      frozen_dtype: as in folders.read_pipeline.

    Raises:
      WeightsError: as read_single_file does, or if there is no tokenizer.
      TokenizerError: if it is unreadable.
    """
    path = Path(path)
    options = {'prediction_type': prediction_type, 'components': components, 'views': True}
    found = read_single_file(path, families=families, **options)
    index = found.configs['model_index']
    family = _family_of(index, families)
    networks = {}
    for component, tensors in found.components.items():
        config = found.configs[component]
        try:
            model = abstract_network(component, config, dtype)
        except ValueError as error:
            raise WeightsError(f'the {component} of {path} is not supported: {str(error).rstrip(".")}.') from None
        frozen = family.frozen(component, frozen_dtype)
        networks[component] = filled_network(model, component, config, tensors, str(path), dtype, frozen)
    tokenizers = tokenizer_folders.find(path, found.layout, tokenizer_dir)
    return Pipeline(
        family=family,
        components=networks,
        tokenizers={component: tokenizers[name] for component, name in family.tokenizers.items()},
        scheduler=found.configs['scheduler'],
        image_noising_scheduler=found.configs[family.noising] if family.noising else None,
        options={name: index[name] for name in family.options if name in index},
        folder=path,
    )


def _family_of(index: Mapping[str, Any], families: Sequence[Layout]) -> Layout:
    return next(family for family in families if family.class_name == index['_class_name'])


def write_pipeline(
    pipeline: Pipeline, path: str | os.PathLike, *, dtype: str = 'float32', metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes the networks of a pipeline to one file.

    Args:
      pipeline: a pipeline with all its networks.
      path: as in write_single_file.
      dtype: as in write_single_file.
      metadata: as in write_single_file.

    Returns:
      The path of the file.

    Raises:
      WeightsError: as write_single_file does, and if the pipeline is incomplete or its family has no such layout.
    """
    networks = pipeline.components
    missing = [component for component in pipeline.family.networks if component not in networks]
    if missing or not pipeline.family.originals:
        what = f'has no {missing[0]}' if missing else f'is an {pipeline.class_name}'
        raise WeightsError(
            f'{pipeline.name} {what}, but a single file holds a whole Stable Diffusion model; write a pipeline folder.'
        )
    configs = {component: network.config for component, network in networks.items()}
    tensors = {component: network_tensors(component, network) for component, network in networks.items()}
    configs['scheduler'] = pipeline.scheduler
    layouts = pipeline.family.originals
    return write_single_file(path, tensors, configs, layouts=layouts, dtype=dtype, metadata=metadata)


def write_single_file(
    path: str | os.PathLike,
    components: Mapping[str, original_layout.Tensors],
    configs: original_layout.Configs,
    *,
    layouts: Sequence[OriginalLayout],
    dtype: str = 'float32',
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a whole model to one file.

    Args:
      path: '<name>.safetensors'; an existing file is replaced.
      components: {component: {name in a checkpoint of diffusers or transformers: array}} for 'unet', 'vae',
        'text_encoder' and, for SDXL, 'text_encoder_2'.
      configs: {component: contents of its config.json}, and 'scheduler': contents of scheduler_config.json, whose
        prediction_type is written to the metadata.
      layouts: the supported generations of models, in the order in which they are tried.
      dtype: dtype of the stored weights, one of files.STORAGE_DTYPES.
      metadata: additional texts for the header. Its 'modelspec.*' keys override those that are made here, such as the
        title, which is the name of the file.

    Returns:
      The path of the file.

    Raises:
      WeightsError: if the networks' family has no such layout, if they do not fit their configurations, if the metadata
        is malformed, or if the file cannot be written to the disk. Nothing is replaced then.
    """
    path = Path(path)
    if path.suffix != files.SUFFIX:
        raise WeightsError(f'{path} is no name of a single file; it must end in {files.SUFFIX}.')
    if 'scheduler' not in configs:
        raise WeightsError('configs holds no scheduler, which says what the UNet predicts; give its configuration too.')
    layout = original_configs.layout_of(configs, layouts)
    tensors = original_layout.to_original(components, configs, layout)
    scheduler, (height, width) = configs['scheduler'], unet_config.sides(configs['unet'])
    predicts = {'prediction_type': EPSILON, **scheduler}['prediction_type']  # diffusers' default
    if layout.writes_markers:
        zero_snr = {'rescale_betas_zero_snr': False, **scheduler}['rescale_betas_zero_snr']
        markers = [original_names.V_MARKER] if predicts == V_PREDICTION else []
        markers += [original_names.ZERO_SNR_MARKER] if zero_snr else []
        tensors |= {name: np.zeros(0, np.float32) for name in markers}
    header = modelspec.build(
        architecture=layout.architecture(predicts),
        title=path.stem,
        resolution=height * _reduction(configs) if height is not None and height == width else None,
        prediction_type=predicts,
        hash_sha256=modelspec.tensor_hash(tensors, dtype),
    )
    header |= metadata or {}
    modelspec.check(header)
    _check_derived(path, configs, {name: value.shape for name, value in tensors.items()}, layout, predicts)
    files.write_tensors(path, tensors, dtype=dtype, max_shard_bytes=sys.maxsize, metadata=header)
    return path


# Keys of configurations that have no effect on what a network computes, and may differ from the derived ones.
_WITHOUT_EFFECT = {
    'unet': ('sample_size', 'upcast_attention'),
    'vae': ('sample_size', 'force_upcast'),
    'text_encoder': ('model_type', 'initializer_factor', 'projection_dim', 'eos_token_id'),
    'text_encoder_2': ('model_type', 'initializer_factor', 'eos_token_id'),
}
_RESOLVE = {'unet': unet_config.resolve, 'vae': vae.resolve, 'text_encoder': clip.resolve}
_BETAS = ('num_train_timesteps', 'beta_schedule', 'beta_start', 'beta_end', 'trained_betas', 'rescale_betas_zero_snr')
_SCHEDULER_DEFAULTS = {
    'num_train_timesteps': 1000,
    'beta_schedule': 'linear',
    'beta_start': 0.0001,
    'beta_end': 0.02,
    'trained_betas': None,
    'rescale_betas_zero_snr': False,
}


def _check_derived(
    path: Path, configs: original_layout.Configs, shapes, layout: OriginalLayout, prediction_type: str
) -> None:
    """Checks that a reader of the file, which stores no configurations, would derive the same ones.

    Raises:
      WeightsError: one sentence, for the first value that would be derived differently.
    """
    derived = original_configs.derive(shapes, layout, prediction_type=prediction_type, source=str(path))
    if original_names.ZERO_SNR_MARKER in shapes:
        derived['scheduler']['rescale_betas_zero_snr'] = True
    for component in (*original_names.prefixes(layout), 'scheduler'):
        given, read = ({**_SCHEDULER_DEFAULTS, **all_of[component]} for all_of in (configs, derived))
        keys = _BETAS
        if component != 'scheduler':
            resolve = _RESOLVE[component.removesuffix('_2')]
            given, read = (resolve(all_of[component]) for all_of in (configs, derived))
            keys = [key for key in given if key not in _WITHOUT_EFFECT[component]]
        for key in keys:
            ours, theirs = (tuple(one[key]) if isinstance(one[key], list) else one[key] for one in (given, read))
            if ours != theirs:
                raise WeightsError(
                    f'{path} cannot hold this model: the {key} of its {component} is {ours!r}, but a single file does '
                    f'not say so and {layout.title} has {theirs!r}; write a pipeline folder.'
                )


def _reduction(configs: original_layout.Configs) -> int:
    """Side of an image in pixels divided by the side of its latents."""
    return 2 ** (len(configs['vae']['block_out_channels']) - 1)


def read_single_file(
    path: str | os.PathLike,
    *,
    families: Sequence[Layout],
    prediction_type: str | None = None,
    configs: original_layout.Configs | None = None,
    components: Sequence[str] | None = None,
    views: bool = False,
) -> SingleFile:
    """Reads a whole model from one file.

    If a file holds averaged weights beside the trained ones, as the first published files do, the trained ones are
    read, because fine-tuning continues from those.

    Args:
      path: the file.
      families: those that may be found.
      prediction_type: 'epsilon' or 'v_prediction'; it overrides what the file says. It is required for an SD 2.x file
        that does not have the name of a published file and does not say it in its metadata.
      configs: {component: known entries of its configuration}, which override the derived ones.
      components: the networks to read; None: all. Without 'unet', the prediction type need not be known.
      views: whether tensors are views of the file in the stored dtypes (files.view_tensors) instead of f32 arrays.

    Raises:
      WeightsError: one sentence, which may be followed by one line for each wrong tensor: if the file is missing,
        damaged or pickled, is not a whole model of a supported family, or does not say what it predicts.
    """
    path = Path(path)
    given, metadata = files.read_header(path)
    # The header is enough to recognise the model, so an unsuitable file is refused before its tensors are read.
    if lora_files.are_names_of_lora(given):
        raise WeightsError(
            f'{path} holds LoRA adapters, which change a model and are none; give the model that they were trained on, '
            f'and this file to sample as --lora.'
        )
    if of_transformer := transformer_file.families_of(own_names(given), families):
        raise WeightsError(
            f'{path} holds the transformer of {of_transformer[0].title}, but no configuration and no tokenizer; give '
            f'the folder or hub id of such a model, and this file besides {transformer_file.SETTING}.'
        )
    shapes = {original_names.canonical(name): shape for name, shape in given.items()}
    layout = original_configs.detect(shapes, layouts_of(families), source=str(path))
    components = tuple(original_names.prefixes(layout)) if components is None else components
    if prediction_type is None and 'unet' in components:
        prediction_type = _prediction_type(path, layout, shapes, metadata)
    derived = original_configs.derive(
        shapes,
        layout,
        prediction_type=prediction_type,
        resolution=modelspec.resolution(metadata),
        source=str(path),
    )
    if original_names.ZERO_SNR_MARKER in shapes:
        derived['scheduler']['rescale_betas_zero_snr'] = True
    for component, known in (configs or {}).items():
        derived[component] = {**derived.get(component, {}), **known}
    # The derived configurations pass the same checks as those of a pipeline folder.
    prefixes = original_names.prefixes(layout).items()
    networks = {component: derived[component] for component, _ in prefixes}
    guard.check_networks(_family_of(derived['model_index'], families), networks, str(path))
    # Tensors of networks that are not wanted are not read, because they may be several GB.
    others = tuple(prefix for component, prefix in prefixes if component not in components)

    def wanted(name):
        return not original_names.IGNORED.fullmatch(name) and not original_names.canonical(name).startswith(others)

    read = files.view_tensors if views else files.read_tensors
    tensors = {original_names.canonical(name): value for name, value in read(path, wanted).items()}
    found = original_layout.from_original(tensors, derived, layout, source=str(path))
    found = {component: tensors for component, tensors in found.items() if component in components}
    return SingleFile(layout, derived, found, metadata)


def _prediction_type(path: Path, layout: OriginalLayout, shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Returns what the file says it predicts, or its name; None if neither says it and the layout's default applies.

    Raises:
      WeightsError: if neither says it and the layout has no default.
    """
    if original_names.V_MARKER in shapes:
        return V_PREDICTION
    published = layout.published_prediction_types.get(path.name.partition('.')[0])  # also '<name>.fp16'
    said = modelspec.prediction_type(metadata, (layout,)) or published
    if said is None and layout.ask_prediction_type:
        # With a wrong guess, training would silently use the wrong target.
        raise WeightsError(
            f'{path} is a {layout.title} model and does not say what it predicts; give prediction_type (setting '
            f'and flag model_prediction_type), {layout.ask_prediction_type}'
        )
    return said
