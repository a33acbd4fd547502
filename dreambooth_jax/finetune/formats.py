"""The formats in which a trained model is written. Everything is read back from the disk and compared after writing.

    diffusers     a pipeline folder, the second stage inside it
    single_file   the original layout of Stable Diffusion; of FLUX.1 and the like, the transformer alone
    lora_peft     the adapters alone, for diffusers and PEFT
    lora_kohya    the adapters alone, for ComfyUI, AUTOMATIC1111, Forge, kohya and OneTrainer; diffusers reads it too
    lora_comfyui  the adapters of a transformer alone, for ComfyUI and diffusers

In the last four formats, the second stage is in a file of its own, x.super_resolution.safetensors. The new word of
textual inversion is in a file of its own too, sks-dog.safetensors, because other programs expect token tables of the
original length. A folder has a model card, README.md; beside a file x.safetensors lies x.md, and its header says the
most of it.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.finetune import model_card, textual_inversion
from dreambooth_jax.finetune.model_card import Export
from dreambooth_jax.finetune.trained import Trained
from dreambooth_jax.generation.cascade import BASE, STAGES, Cascade
from dreambooth_jax.models.lora import B
from dreambooth_jax.system import disk, lock
from dreambooth_jax.text.prompts import identifier_and_class
from dreambooth_jax.weights import (
    files,
    folders,
    lora_files,
    lora_names,
    modelspec,
    original_configs,
    single_file,
    transformer_file,
)
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import is_partial
from dreambooth_jax.weights.lora_files import Adapter
from dreambooth_jax.weights.original_facts import PREDICTION_TYPES, OriginalLayout
from dreambooth_jax.weights.pipeline import Pipeline, network_tensors
from dreambooth_jax.weights.textual_inversion import file_name

SINGLE_FILE = 'single_file'
LOCK = '.export.lock'


def write(trained: Trained, format: str, output: Path, *, dtype: str = 'float32') -> dict[Path, str]:
    """Writes what a run has trained.

    Exports into one folder wait for each other: their temporary files and the file of a new word have the same names.

    Args:
      trained: the run.
      format: one of config.ExportFormat.
      output: a folder for 'diffusers', else a file '<name>.safetensors'.
      dtype: dtype of the stored weights, one of files.STORAGE_DTYPES.

    Returns:
      The folder or the files that were written -> a line of text about each.

    Raises:
      ConfigError: if the run or its model has nothing to write in this format, or `output` has the wrong form.
      WeightsError: if something cannot be written, or differs when it is read back.
    """
    if format == 'diffusers':
        cascade = trained.cascade
        card = model_card.text(export_of(trained, format, output))
        options = {'super_resolution': cascade.super_resolution, 'dtype': dtype, 'card': card}
        with _alone_beside(output):
            folders.write_pipeline(cascade.base, output, **options)
            count = _compare_folder(cascade, output, dtype)
        return {output: f'{output} holds {count} tensors, read back and equal'}
    if output.suffix != files.SUFFIX:
        raise ConfigError(f'--output={output} must be a file {files.SUFFIX} for --format={format}')
    if format == SINGLE_FILE:
        written = _write_single_files
    elif not trained.adapters:
        raise ConfigError(
            f'--format={format} writes LoRA adapters, but {trained.name} has '
            + ('no checkpoint' if trained.config.lora.rank else 'trained whole networks (config.lora.rank is None)')
            + '; export diffusers or single_file'
        )
    else:
        written = _write_adapters
    with _alone_beside(output):
        # The checks come before the first file is written. The writers are generators: they run, and compare, in this
        # loop.
        _check_path_of_word(trained.cascade, output)
        model_card.check_beside(output)
        lines = {
            path: f'{path} holds {count} tensors, read back and equal'
            for path, count in written(trained, format, output, dtype)
        }
        learned = textual_inversion.write_learned(trained.cascade, output.parent, dtype)
        if learned:
            word = trained.cascade.base.added_tokens[0]
            lines[learned] = (
                f'{learned} holds the new word {word}, read back and equal; ComfyUI calls it '
                f'embedding:{learned.stem}, AUTOMATIC1111 {learned.stem}'
            )
        card = model_card.write_beside(export_of(trained, format, output), output)
    return {**lines, card: f'{card} is its model card'}


@contextlib.contextmanager
def _alone_beside(output: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        with disk.named(output):
            held.enter_context(lock.locked(output.parent, '', wait=True, file=LOCK))
        yield


def export_of(trained: Trained, format: str, output: Path | None = None) -> Export:
    """Returns what the model card of an export is about; arguments as for `write`, None: the file has no name yet."""
    return Export(
        config=trained.config,
        cascade=trained.cascade,
        workdir=trained.workdir,
        weights=trained.origins,
        form=format,
        file=None if output is None or format == 'diffusers' else output.name,
    )


def _check_path_of_word(cascade: Cascade, output: Path) -> None:
    """Checks that the file of the new word, if there is one, can be written beside `output`.

    Raises:
      ConfigError: if it has the name of another file of this export, or would replace a file with other content.
    """
    if not cascade.base.added_tokens:
        return
    word = cascade.base.added_tokens[0]
    path = output.parent / file_name(word)
    if path in [_file_of(output, stage) for stage in STAGES]:
        raise ConfigError(f'--output={output} is where the new word {word} goes; choose another name')
    if not path.exists():
        return
    try:
        same = files.read_metadata(path).get('token') == word
    except WeightsError:
        same = False
    if not same:
        raise ConfigError(
            f'{path} is where the new word {word} goes, but holds something else; move it, or choose another folder '
            f'for --output'
        )


def _file_of(output: Path, stage: str) -> Path:
    return output if stage == BASE else output.with_suffix(f'.{stage}{files.SUFFIX}')


def _write_single_files(trained: Trained, format: str, output: Path, dtype: str):
    if trained.config.textual_inversion.token and not trained.cascade.base.added_tokens:
        raise ConfigError(
            f'{trained.name} has learned a new word and has no checkpoints that tell it from the others; '
            f'export diffusers'
        )
    cascade = textual_inversion.without_word(trained.cascade)
    for stage in STAGES:
        pipeline = getattr(cascade, stage)
        if pipeline is None or (stage != BASE and stage not in trained.stages):
            continue
        is_transformer = pipeline.family.original_transformer is not None
        if not (is_transformer or pipeline.family.originals):
            raise ConfigError(
                f'--format={format} cannot hold an {pipeline.class_name}: the layout is that of Stable Diffusion and '
                f'has no place for its networks; export diffusers'
            )
        path = _file_of(output, stage)
        if is_transformer:
            _check_what_a_transformer_leaves_out(trained, format, path)
        write_file, compare = (
            (transformer_file.write, _compare_transformer)
            if is_transformer
            else (single_file.write_pipeline, _compare_single_file)
        )
        write_file(pipeline, path, dtype=dtype, metadata=_metadata(trained, stage, format))
        yield path, compare(pipeline, path, dtype)


def _check_what_a_transformer_leaves_out(trained: Trained, format: str, path: Path) -> None:
    """Warns of what the run has trained besides the denoiser, which is all that such a file holds.

    Raises:
      ConfigError: if the run has not trained the denoiser.
    """
    base = trained.config.base
    if not base.train_denoiser:
        raise ConfigError(
            f'--format={format} writes the {trained.cascade.base.family.denoiser} of this model alone, which '
            f'{trained.name} has not trained (config.base.train_denoiser is False); export diffusers'
        )
    if base.train_text_encoder:
        logging.warning(
            '%s holds the %s alone, but %s has trained the text encoders too (config.base.train_text_encoder), without '
            'which its images are others; export diffusers for the whole model',
            path,
            trained.cascade.base.family.denoiser,
            trained.name,
        )


def _write_adapters(trained: Trained, format: str, output: Path, dtype: str):
    for stage, adapter in trained.adapters.items():
        pipeline, path = getattr(trained.cascade, stage), _file_of(output, stage)
        layout, metadata = _layout(pipeline), _metadata(trained, stage, format)
        originals = pipeline.family.lora_layers
        lora_files.write_lora(path, adapter, format, layout=layout, originals=originals, dtype=dtype, metadata=metadata)
        if format == lora_files.KOHYA:
            _warn_of_dropped_layers(path, adapter)
        yield path, _compare_adapter(pipeline, adapter, path, dtype)


def _warn_of_dropped_layers(path: Path, adapter: Adapter) -> None:
    layers = dict.fromkeys(name.rpartition('.')[0] for params in adapter.params.values() for name in params)
    dropped = [layer for layer in layers if lora_names.UNKNOWN_TO_KOHYA.fullmatch(layer)]
    if dropped:
        logging.warning(
            "%s holds adapters of %s, which kohya's own scripts leave out without a word; ComfyUI, AUTOMATIC1111, "
            'Forge, OneTrainer and diffusers read them',
            path,
            ', '.join(dropped),
        )


def _layout(pipeline: Pipeline) -> OriginalLayout | None:
    """Returns the generation of a pipeline's networks; None if its family has no single files."""
    if not pipeline.family.originals:
        return None
    configs = {component: network.config for component, network in pipeline.components.items()}
    return original_configs.layout_of(configs, pipeline.family.originals)


def _metadata(trained: Trained, stage: str, format: str) -> dict[str, str]:
    """Returns the metadata that is written into a file (modelspec.py)."""
    pipeline, config, export = getattr(trained.cascade, stage), trained.config, export_of(trained, format)
    predicts = pipeline.family.process(pipeline).prediction_type
    layout = _layout(pipeline)
    architecture = pipeline.family.architecture if layout is None else layout.architecture(predicts)
    prompts = dict.fromkeys(subject.instance_prompt for subject in config.subjects())
    # As in kohya's trainer: whole models and adapters of SDXL name the original implementation, other adapters
    # diffusers.
    of_kohya = layout if format == lora_files.KOHYA else None
    as_diffusers = format != SINGLE_FILE and not (of_kohya and of_kohya.kohya_original_names)
    more = modelspec.kohya_version(of_kohya, predicts) if of_kohya else {}
    return more | modelspec.build(
        architecture=architecture if format == SINGLE_FILE else modelspec.adapter_of(architecture, modelspec.LORA),
        title=f'{trained.name}: {", ".join(prompts)}',
        implementation=modelspec.DIFFUSERS_IMPLEMENTATION if as_diffusers else _implementation(pipeline),
        resolution=trained.cascade.base_size if stage == BASE else trained.cascade.super_resolution_size,
        prediction_type=predicts if predicts in PREDICTION_TYPES else None,
        trigger_phrase=trigger_phrase(config),
        description=model_card.description(export),
        license=export.licence and export.licence.name,
    )


def _implementation(pipeline: Pipeline) -> str:
    original = pipeline.family.original_transformer
    return modelspec.ORIGINAL_IMPLEMENTATION if original is None else original.implementation


def trigger_phrase(config: DreamBoothConfig) -> str:
    """Returns the words that bring up a run's subjects, joined by commas.

    For the prompts 'a sks dog' and 'a dog' they are 'sks dog'.
    """
    phrases = []
    for subject in config.subjects():
        try:
            phrases.append(' '.join(identifier_and_class(subject.instance_prompt, subject.class_prompt)))
        except ValueError:  # the prompts do not have that form
            phrases.append(subject.instance_prompt)
    return ', '.join(dict.fromkeys(phrases))


def _compare_folder(cascade: Cascade, output: Path, dtype: str) -> int:
    """Compares a folder with the cascade's weights in `dtype`; returns the number of tensors."""
    count, back = 0, Cascade.load(output)
    for stage in STAGES:
        pipeline, read = (getattr(one, stage) for one in (cascade, back))
        for component, network in pipeline.components.items() if pipeline is not None else ():
            found = read.components[component].params if read and component in read.components else {}
            # The files of a network that is read only in part were copied as they are.
            written = 'float32' if is_partial(component, network.config) else dtype
            count += _compare(output, f'{stage} {component}', _stored(network.params, written), found)
    return count


def _compare_single_file(pipeline: Pipeline, path: Path, dtype: str) -> int:
    """Compares a file with a pipeline. Returns the number of tensors in the file, since a layout may join several."""
    back = single_file.read_single_file(path, families=FAMILIES)
    for component, network in pipeline.components.items():
        tensors = network_tensors(component, network)
        _compare(path, component, _stored(tensors, dtype), back.components[component])
    return len(files.read_header(path).shapes)


def _compare_transformer(pipeline: Pipeline, path: Path, dtype: str) -> int:
    """Compares a file with a pipeline's denoiser; returns the number of tensors in the file."""
    family, network = pipeline.family, pipeline.denoiser
    options = {'families': FAMILIES, 'model': pipeline.name, 'dtype': jnp.float32}
    back = transformer_file.read_network(path, family, network.config, **options)
    _compare(path, family.denoiser, _stored(network.params, dtype), back.params)
    return len(files.read_header(path).shapes)


def _compare_adapter(pipeline: Pipeline, adapter: Adapter, path: Path, dtype: str) -> int:
    networks = {name: pipeline.components[name].params for name in adapter.params}
    back = lora_files.read_lora(path, networks, originals=pipeline.family.lora_layers)
    kind = jnp.finfo(dtype)
    # The file may store alpha / rank as part of B. The values are then rounded after that product instead of before it,
    # so they may differ by rounding.
    same = functools.partial(np.allclose, rtol=2 * float(kind.eps), atol=2 * float(kind.smallest_subnormal))
    count = 0
    for component, params in adapter.params.items():
        given, read = (_scaled(part, one) for part, one in ((params, adapter), (back.params.get(component, {}), back)))
        count += _compare(path, component, given, read, same)
    return count


def _scaled(params: Mapping[str, Any], adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns the adapters with alpha / rank multiplied into B."""
    scale = np.float32(adapter.alpha / adapter.rank)
    return {name: np.asarray(value) * (scale if name.endswith(f'.{B}') else 1) for name, value in params.items()}


def _stored(params: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    return {name: np.asarray(value).astype(jnp.dtype(dtype)).astype(np.float32) for name, value in params.items()}


def _compare(path: Path, what: str, given: Mapping[str, Any], read: Mapping[str, Any], same=np.array_equal) -> int:
    """Compares the tensors that were read with those that were given; returns their number.

    Raises:
      WeightsError: if one is missing, additional or different.
    """
    for name in sorted(given.keys() | read.keys()):
        if not (name in given and name in read and same(given[name], read[name])):
            raise WeightsError(f'{path} does not read back as written: {what} {name} differs.')
    return len(given)
