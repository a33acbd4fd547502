"""Reads and writes pipeline folders in the layout of diffusers.

    model_index.json                          class name and components
    unet/  vae/                               config.json, diffusion_pytorch_model.safetensors
    text_encoder/  text_encoder_2/            config.json, model.safetensors
    tokenizer/  tokenizer_2/  scheduler/
    image_noising_scheduler/ or low_res_scheduler/      noise of the low-resolution image (super-resolution stages only)
    super_resolution/                         our addition: the second stage, which is a pipeline folder itself

A folder is read from this machine, from the hub or from the installed package; hub.py finds it by the model's name. The
families that may be found there are given by the caller, and guard.py refuses all other models. PyTorch's diffusers
opens the folders that this package writes, and this package opens those of diffusers. A safety checker or watermarker
is not read, and is written as absent.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from dreambooth_jax.system import disk
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights import files, guard, hub, single_file, transformer_file
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import is_partial, kind_of
from dreambooth_jax.weights.pipeline import (
    DIFFUSERS_VERSION,
    SUPER_RESOLUTION,
    Layout,
    Network,
    Pipeline,
    abstract_network,
    filled_network,
    network_tensors,
)

_SCHEDULER_FILE = 'scheduler_config.json'


class OwnFiles(NamedTuple):
    """What is given beside the name of a model, in the place of a part of it that is missing or not wanted.

    Attributes:
      tokenizer_dir: only for a single file, which holds no tokenizer; see tokenizer_folders.py.
      transformer_file: only for a folder or a hub id: a .safetensors file of the transformer alone, whose weights are
        read instead of the model's own, which are not downloaded; see transformer_file.py.
    """

    tokenizer_dir: str | os.PathLike | None = None
    transformer_file: str | os.PathLike | None = None


def read_pipeline(
    name: str | os.PathLike,
    *,
    families: Sequence[Layout],
    dtype=jnp.float32,
    components: Sequence[str] | None = None,
    prediction_type: str | None = None,
    revision: str | None = None,
    frozen_dtype: str | None = None,
    **own_files: str | os.PathLike | None,
) -> Pipeline:
    """Reads one stage of a model.

    Args:
      name: 'storybook', a pipeline folder, the folder of a training run (its model/ is read), a .safetensors file of a
        whole model (single_file.py), or a hub id 'owner/model'. A hub model is downloaded once, and only the JSON,
        tokenizer and safetensors files of the wanted components.
      families: those that may be found.
      dtype: compute dtype of the networks. Parameters are held as functional.held says, whatever that is.
      components: the networks to read; None: all. The other networks are not downloaded and are left out.
      prediction_type: 'epsilon' or 'v_prediction'; it overrides what the model says. SD 2.x files may not say it.
      revision: branch, tag or commit of a hub model; None means its main branch.
      frozen_dtype: 'int8' or 'nf4': how the kernels of denoiser and text encoders are quantised, which are then read
        tensor by tensor, whatever dtype the files store; None: they are not.
      **own_files: those of OwnFiles.

    Raises:
      WeightsError: one sentence, followed by one line for each tensor that does not fit.
    """
    own = OwnFiles(**own_files)
    known = _networks(families)
    components = known if components is None else tuple(components)
    unknown = [component for component in components if component not in known]
    if unknown:
        raise WeightsError(f'components holds {unknown[0]!r}; it may hold {known}.')
    elsewhere = _checked_elsewhere(name, families, own.transformer_file, revision)
    options = {'revision': revision, 'without_weights': [part for part in elsewhere if part in components]}
    found = hub.find(name, folders=common_folders(families) + components, **options)
    if found.is_file():
        options = {'families': families, 'prediction_type': prediction_type, 'tokenizer_dir': own.tokenizer_dir}
        options |= {'components': components, 'frozen_dtype': frozen_dtype}
        return single_file.read_pipeline(found, dtype=dtype, **options)
    if own.tokenizer_dir is not None:
        raise WeightsError(
            f'tokenizer_dir is {str(own.tokenizer_dir)!r} but {found} is a folder, which holds its own; leave it out.'
        )
    pipeline = _read_folder(found, families, dtype, components, frozen_dtype, own.transformer_file)
    if prediction_type is None:
        return pipeline
    return dataclasses.replace(pipeline, scheduler={**pipeline.scheduler, 'prediction_type': prediction_type})


def _checked_elsewhere(
    name: str | os.PathLike, families: Sequence[Layout], path: str | os.PathLike | None, revision: str | None
) -> tuple[str, ...]:
    """Returns the component whose weights are in a file of their own, if there is one, as `path` says.

    Raises:
      WeightsError: one sentence, if the model cannot have such a file, or the file is not there.
    """
    if path is None:
        return ()
    found = hub.find(name, folders=(), revision=revision)  # nothing but the model_index.json of a hub model yet
    if found.is_file():
        raise WeightsError(
            f'transformer_file is {str(path)!r} but {found} is a file of a whole model, which holds its own; leave it '
            f'out {transformer_file.SETTING}.'
        )
    index = found / 'model_index.json'
    _, family = guard.checked_index(_read_json(index), str(index), families)
    transformer_file.check(path, family, str(found))
    return (family.denoiser,)


def _networks(families: Sequence[Layout]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(component for family in families for component in family.networks))


def common_folders(families: Sequence[Layout]) -> tuple[str, ...]:
    """Returns the folders besides those of networks that a model of these families may have."""
    tokenizers = [name for family in families for name in family.tokenizers.values()]
    schedules = ['scheduler', *(family.noising for family in families if family.noising)]
    return tuple(dict.fromkeys(tokenizers + schedules))


def read_second_stage(
    name: str | os.PathLike,
    base: Pipeline,
    *,
    families: Sequence[Layout],
    dtype=jnp.float32,
    revision: str | None = None,
    frozen_dtype: str | None = None,
) -> Pipeline:
    """Reads a super-resolution stage that enlarges the images that `base` generates.

    Its text encoders are not read if it uses the text states of the base stage (Family.can_share_text).

    Args:
      name: the model, as in read_pipeline.
      base: the base stage with all its networks.
      families: those that may be found.
      dtype: compute dtype, as in read_pipeline.
      revision: as in read_pipeline.
      frozen_dtype: as in read_pipeline.

    Raises:
      WeightsError: as read_pipeline does.
    """
    options = {'families': families, 'dtype': dtype, 'revision': revision, 'frozen_dtype': frozen_dtype}
    texts = [component for family in families for component in family.tokenizers]
    others = [component for component in _networks(families) if component not in texts]
    second = read_pipeline(name, components=others, **options)
    if second.denoiser is None or second.family.can_share_text(second, base):
        return dataclasses.replace(second, tokenizers={})
    text = read_pipeline(name, components=list(dict.fromkeys(texts)), **options)
    return second.with_components(**text.text_encoders)


def _read_folder(
    folder: Path,
    families: Sequence[Layout],
    dtype,
    components: Sequence[str],
    frozen_dtype: str | None,
    denoiser_file: str | os.PathLike | None,
) -> Pipeline:
    index, family = guard.checked_index(
        _read_json(folder / 'model_index.json'), str(folder / 'model_index.json'), families
    )
    # Configurations and schedules are checked before any weights are read, so that errors appear at once.
    asked = [component for component in family.networks if component in components and guard.holds(index, component)]
    configs = {
        component: {
            **_read_config(folder / component, component, index[component][1]),
            **family.reading.get(component, {}),
        }
        for component in asked
    }
    guard.check_networks(family, configs, str(folder))
    names = {'scheduler': 'scheduler'} | ({'image_noising_scheduler': family.noising} if family.noising else {})
    schedules = {entry: _read_json(folder / name / _SCHEDULER_FILE) for entry, name in names.items()}
    if family.denoiser in asked:
        for entry, name in names.items():
            guard.check_schedule(schedules[entry], str(folder / name / _SCHEDULER_FILE), family.read_schedule)
    tokenizers = {}
    for component, tokenizer in family.tokenizers.items():
        if guard.holds(index, tokenizer):
            if not (folder / tokenizer).is_dir():
                missing = f'{folder / tokenizer} is missing although model_index.json names it'
                raise WeightsError(f'{missing}; complete the folder.')
            tokenizers[component] = folder / tokenizer
    # Weights come last, because reading them takes longest.
    networks = {}
    for component, config in configs.items():
        frozen = family.frozen(component, frozen_dtype)
        if component == family.denoiser and denoiser_file is not None:
            options = {'families': families, 'model': str(folder), 'dtype': dtype, 'frozen_dtype': frozen}
            networks[component] = transformer_file.read_network(denoiser_file, family, config, **options)
        else:
            networks[component] = _read_network(folder / component, component, config, dtype, frozen)
    return Pipeline(
        family=family,
        components=networks,
        tokenizers=tokenizers,
        options={name: index[name] for name in family.options if name in index},
        folder=folder,
        denoiser_file=None if denoiser_file is None else Path(denoiser_file),
        **schedules,
    )


def _read_config(folder: Path, component: str, class_name: str) -> Mapping[str, Any]:
    """Reads the configuration of one network from the network's own folder, such as <pipeline>/unet.

    Args:
      folder: the folder of the network.
      component: name of the network.
      class_name: the class of the network according to model_index.json.

    Raises:
      WeightsError: if the file is missing or damaged, or if the configuration is not supported.
    """
    path = folder / 'config.json'
    config = _read_json(path)
    try:
        config = guard.own_config(component, config, class_name)
        kind = kind_of(component, config)
        kind.resolve(config)
    except ValueError as error:
        raise WeightsError(f'{path} is not supported: {str(error).rstrip(".")}.') from None
    if kind.class_name != class_name:
        raise WeightsError(
            f'{path} describes a {kind.class_name} but model_index.json says {class_name}; complete the folder anew.'
        )
    return config


def _read_network(folder: Path, component: str, config: Mapping[str, Any], dtype, frozen_dtype: str | None) -> Network:
    """Reads the weights of one network.

    Raises:
      WeightsError: if a file is missing or damaged, or if its tensors do not fit the configuration.
    """
    try:
        model = abstract_network(component, config, dtype)
    except ValueError as error:
        raise WeightsError(f'{folder / "config.json"} is not supported: {str(error).rstrip(".")}.') from None
    path = files.find_weights(folder, kind_of(component, config).stem)
    return filled_network(model, component, config, files.view_tensors(path), str(path), dtype, frozen_dtype)


def write_pipeline(
    pipeline: Pipeline,
    folder: str | os.PathLike,
    *,
    super_resolution: Pipeline | None = None,
    dtype: str = 'float32',
    max_shard_bytes: int = files.DEFAULT_SHARD_BYTES,
    card: str | None = None,
) -> Path:
    """Writes a pipeline folder that this package and PyTorch's diffusers can open.

    The folder is first written under a temporary name beside its final path, .NAME.part, and then moved there, so that
    a folder of the final name is always complete. An existing pipeline folder is replaced. The second stage inside it
    is kept unless a new one is given. What a process that was killed has left beside the folder is removed.

    Args:
      pipeline: a pipeline with a denoiser. Text encoders and tokenizers may be missing and are then written as absent.
      folder: the path of the pipeline folder.
      super_resolution: the second stage, which is written into super_resolution/.
      dtype: dtype of the stored weights: 'float32', 'float16' or 'bfloat16'.
      max_shard_bytes: networks larger than this many bytes are split into several files.
      card: text of README.md, the model card; None: there is none.

    Returns:
      The folder.

    Raises:
      WeightsError: if `folder` is a file or a folder that is not a pipeline, if a part does not fit, or if the folder
        cannot be written to the disk. Nothing is replaced then.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_pipeline(folder)):
        raise WeightsError(f'{folder} exists and is no pipeline folder; give a new or empty folder.')
    options = {'dtype': dtype, 'max_shard_bytes': max_shard_bytes}
    temporary = folder.with_name(f'.{folder.name}.part')
    try:
        _recover(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise WeightsError(f'{folder} cannot be made: {disk.reason(error)}.') from None
    # Errors name the final folder instead of the temporary one, which the user does not know.
    with disk.unfinished(temporary):
        try:
            new = temporary / 'new'
            _write_stage(pipeline, new, **options)
            if card is not None:
                (new / 'README.md').write_text(card, 'utf-8')
            if super_resolution is not None:
                _write_stage(super_resolution, new / SUPER_RESOLUTION, **options)
            elif _is_pipeline(folder / SUPER_RESOLUTION):
                shutil.copytree(folder / SUPER_RESOLUTION, new / SUPER_RESOLUTION)
            _put_in_place(new, folder)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(new), str(folder))) from None
        except (OSError, shutil.Error) as error:
            reason = disk.reason(error) or error
            raise WeightsError(f'{folder} could not be written: {reason}; nothing there was replaced.') from None
    return folder


def _old(folder: Path) -> Path:
    return folder.with_name(f'.{folder.name}.old')  # not in the temporary folder, which a signal removes


def _recover(folder: Path) -> None:
    """Puts the old folder back if a process was killed between moving it away and putting the new one in its place."""
    if _is_pipeline(_old(folder)) and not folder.exists():
        os.replace(_old(folder), folder)


def _put_in_place(new: Path, folder: Path) -> None:
    old = _old(folder)
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_stage(pipeline: Pipeline, folder: Path, *, dtype: str, max_shard_bytes: int) -> None:
    family = pipeline.family
    if pipeline.denoiser is None:
        raise WeightsError(
            f'a pipeline without a {family.denoiser} cannot be written; read it with the component {family.denoiser}.'
        )
    schedulers = {'scheduler': pipeline.scheduler}
    if family.noising:
        if pipeline.image_noising_scheduler is None:
            raise WeightsError(f'{pipeline.class_name} needs an image_noising_scheduler, but it is None.')
        schedulers[family.noising] = pipeline.image_noising_scheduler

    index: dict[str, Any] = {
        '_class_name': pipeline.class_name,
        '_diffusers_version': DIFFUSERS_VERSION,
        **{component: [None, None] for component in (*family.absent, *family.networks, *family.tokenizers.values())},
        **family.options,
        **pipeline.options,
    }
    if 'requires_safety_checker' in index:
        index['requires_safety_checker'] = False  # the folder holds no safety checker
    for component, network in pipeline.components.items():
        kind = kind_of(component, network.config)
        index[component] = [kind.library, kind.class_name]
        if is_partial(component, network.config):
            _copy_network(pipeline, component, folder / component)
        else:
            _write_network(network, component, folder / component, dtype=dtype, max_shard_bytes=max_shard_bytes)
    for component, config in schedulers.items():
        config = {'_class_name': 'DDPMScheduler', '_diffusers_version': DIFFUSERS_VERSION, **config}
        index[component] = ['diffusers', config['_class_name']]
        _write_json(folder / component / _SCHEDULER_FILE, config)
    for component, tokenizer in family.tokenizers.items():
        source = pipeline.tokenizers.get(component)
        if source is not None:
            index[tokenizer] = ['transformers', _tokenizer_class(Path(source))]
            (folder / tokenizer).mkdir()
            for file in sorted(Path(source).iterdir()):
                if file.is_file() and file.suffix in hub.TOKENIZER_SUFFIXES:
                    # shutil.copy() would also copy the mode; files in a hub cache or a package may be read-only.
                    shutil.copyfile(file, folder / tokenizer / file.name)
            if pipeline.added_tokens:
                Tokenizer.load(source, added=pipeline.added_tokens).save(folder / tokenizer)
    _write_json(folder / 'model_index.json', index)


def _tokenizer_class(folder: Path) -> str:
    # A tokenizer folder without a tokenizer_config.json holds a T5 tokenizer, as Storybook's does.
    name = _read_json(folder / 'tokenizer_config.json').get('tokenizer_class') or 'T5Tokenizer'
    return name.removesuffix('Fast')


def _write_network(network: Network, component: str, folder: Path, *, dtype: str, max_shard_bytes: int) -> None:
    kind = kind_of(component, network.config)
    config = {key: value for key, value in network.config.items() if key not in ('torch_dtype', '_name_or_path')}
    if kind.library == 'transformers':
        config = {'model_type': kind.model_type, **config, 'architectures': [kind.class_name], 'dtype': dtype}
    else:
        config = {**config, '_class_name': kind.class_name, '_diffusers_version': DIFFUSERS_VERSION}
    _write_json(folder / 'config.json', config)
    path, tensors = folder / f'{kind.stem}{files.SUFFIX}', network_tensors(component, network)
    files.write_tensors(path, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)


def _copy_network(pipeline: Pipeline, component: str, folder: Path) -> None:
    if pipeline.folder is None or not (pipeline.folder / component).is_dir():
        raise WeightsError(
            f'the {component} of {pipeline.name} is read only in part, and its files, which would be copied, are not '
            f'there; give a complete pipeline folder.'
        )
    folder.mkdir(parents=True)
    for file in sorted((pipeline.folder / component).iterdir()):
        if file.is_file() and file.suffix in ('.json', files.SUFFIX):
            shutil.copyfile(file, folder / file.name)


def _is_pipeline(folder: Path) -> bool:
    return (folder / 'model_index.json').is_file()


def _read_json(path: Path) -> dict[str, Any]:
    return files.read_json(path, 'a complete pipeline folder in the layout of diffusers')


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', 'utf-8')
