"""Pipeline folders in diffusers' layout: read from a folder, from the hub or from the package, and written.

    model_index.json                          class name and components
    unet/                                     config.json, diffusion_pytorch_model.safetensors
    text_encoder/                             config.json, model.safetensors
    tokenizer/  scheduler/  image_noising_scheduler/ (super-resolution only)
    super_resolution/                         our addition: the second stage, a pipeline folder of its own

Supported are DeepFloyd IF's two pipelines. What this package writes, PyTorch's diffusers opens unchanged, and back.
Safety checker and watermarker are not read, and written as absent. Names of models are resolved in hub.py.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.weights import aliases, files, hub, mapping
from dreambooth_jax.weights.errors import WeightsError

BASE_CLASS, SUPER_RESOLUTION_CLASS = CLASS_NAMES = ('IFPipeline', 'IFSuperResolutionPipeline')
SUPER_RESOLUTION = hub.SUPER_RESOLUTION  # folder of the second stage inside the first
DIFFUSERS_VERSION = '0.42.1'  # whose layout is written and tested


class Kind(NamedTuple):
    """How one component with weights is stored."""

    constructor: Callable[..., nnx.Module]
    library: str
    class_name: str
    stem: str  # of the weights' file
    aliases: tuple
    ignored: tuple


NETWORKS = {
    'unet': Kind(UNet2DConditionModel, 'diffusers', 'UNet2DConditionModel', 'diffusion_pytorch_model', (), ()),
    'text_encoder': Kind(
        T5EncoderModel, 'transformers', 'T5EncoderModel', 'model', aliases.T5_ALIASES, aliases.T5_IGNORED),
}  # fmt: skip
COMPONENTS = tuple(NETWORKS)


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a pipeline.

    Attributes:
      config: the contents of its config.json.
      apply: pure function of (params, *inputs), see functional.split.
      params: {dotted path: f32 array}.
    """

    config: Mapping[str, Any]
    apply: Callable[..., Any]
    params: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """One stage of a text-to-image model, as a folder holds it.

    Attributes:
      class_name: one of CLASS_NAMES.
      unet, text_encoder: None if the folder has none or it was not asked for.
      tokenizer_folder: what text.tokenize.Tokenizer.load opens; None if the folder has none.
      scheduler: contents of scheduler_config.json. image_noising_scheduler: the same, of the low picture's noise; only
        super-resolution has one.
      folder: where it was read; None if it was made otherwise.
    """

    class_name: str
    unet: Network | None
    text_encoder: Network | None
    tokenizer_folder: Path | None
    scheduler: Mapping[str, Any]
    image_noising_scheduler: Mapping[str, Any] | None = None
    folder: Path | None = None

    @property
    def super_resolution_folder(self) -> Path | None:
        """The folder of the second stage that came with this one, if one did."""
        inside = self.folder / SUPER_RESOLUTION if self.folder else None
        return inside if inside and (inside / 'model_index.json').is_file() else None


def abstract_network(component: str, config: Mapping[str, Any], dtype=jnp.float32) -> nnx.Module:
    """The network of a configuration without values (nnx.eval_shape).

    Args:
      component: one of COMPONENTS. dtype: of the compute; parameters are f32.
    Raises: ValueError, one sentence, if the configuration is not supported.
    """
    constructor = NETWORKS[component].constructor
    return nnx.eval_shape(lambda: constructor(config, dtype=dtype, rngs=functional.Keys(0)))


def read_pipeline(name: str | os.PathLike, *, dtype=jnp.float32, components: Sequence[str] = COMPONENTS) -> Pipeline:
    """Reads one stage of a model.

    Args:
      name: 'storybook', a pipeline folder, a run's folder (its model/ is taken), or a hub id 'owner/model', which is
        downloaded once: only the JSON, tokenizer and safetensors files of what is asked for.
      dtype: compute dtype of the networks; parameters are f32 whatever the files store.
      components: which networks to read, a part of COMPONENTS; the others are None, and are not downloaded either.
    Raises: WeightsError, one sentence (and a line per tensor that does not fit).
    """
    unknown = [component for component in components if component not in COMPONENTS]
    if unknown:
        raise WeightsError(f'components holds {unknown[0]!r}; it may hold {COMPONENTS}.')
    folder = hub.find_folder(name, folders=hub.COMMON_FOLDERS + tuple(components))
    index = _read_index(folder)
    class_name = index['_class_name']

    def network(component):
        if component not in components or not _holds(index, component):
            return None
        return read_network(folder / component, component, dtype=dtype)

    tokenizer_folder = folder / 'tokenizer' if _holds(index, 'tokenizer') else None
    if tokenizer_folder and not tokenizer_folder.is_dir():
        raise WeightsError(f'{tokenizer_folder} is missing although model_index.json names it; complete the folder.')
    noising = None
    if class_name == SUPER_RESOLUTION_CLASS:
        noising = _read_json(folder / 'image_noising_scheduler' / 'scheduler_config.json')
    return Pipeline(
        class_name=class_name,
        scheduler=_read_json(folder / 'scheduler' / 'scheduler_config.json'),
        image_noising_scheduler=noising,
        unet=network('unet'),
        text_encoder=network('text_encoder'),
        tokenizer_folder=tokenizer_folder,
        folder=folder,
    )


def read_network(folder: Path, component: str, *, dtype=jnp.float32) -> Network:
    """Reads one network from its own folder, such as <pipeline>/unet.

    Raises: WeightsError for a missing or damaged file, an unsupported configuration, or tensors that do not fit it.
    """
    kind = NETWORKS[component]
    config = _read_json(folder / 'config.json')
    try:
        model = abstract_network(component, config, dtype)
    except ValueError as error:
        raise WeightsError(f'{folder / "config.json"} is not supported: {str(error).rstrip(".")}.') from None
    path = files.find_weights(folder, kind.stem)
    tensors = files.read_tensors(path)
    params = mapping.load(model, tensors, aliases=kind.aliases, ignored=kind.ignored, source=str(path))
    return Network(config, functional.split(model)[0], params)


def write_pipeline(
    pipeline: Pipeline,
    folder: str | os.PathLike,
    *,
    super_resolution: Pipeline | None = None,
    dtype: str = 'float32',
    max_shard_bytes: int = files.DEFAULT_SHARD_BYTES,
) -> Path:
    """Writes a pipeline folder that this package and PyTorch's diffusers open.

    It is made beside its place and moved there whole, so a folder of this name is complete or absent. A pipeline
    folder that is there already is replaced; a second stage inside it is kept unless a new one is given.

    Args:
      pipeline: with a unet; text encoder and tokenizer may be None and are then written as absent.
      super_resolution: second stage, written into super_resolution/.
      dtype: of the stored weights, 'float32', 'float16' or 'bfloat16'.
      max_shard_bytes: larger networks are split into files of this size.
    Returns: the folder.
    Raises: WeightsError if `folder` is a file or holds something else, if something does not fit, or if the disk does
      not take it; nothing is replaced then.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_pipeline(folder)):
        raise WeightsError(f'{folder} exists and is no pipeline folder; give a new or empty folder.')
    options = {'dtype': dtype, 'max_shard_bytes': max_shard_bytes}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    except OSError as error:
        raise WeightsError(f'{folder} cannot be made: {error.strerror}.') from None
    try:
        new = temporary / 'new'
        _write_stage(pipeline, new, **options)
        if super_resolution is not None:
            _write_stage(super_resolution, new / SUPER_RESOLUTION, **options)
        elif _is_pipeline(folder / SUPER_RESOLUTION):
            shutil.copytree(folder / SUPER_RESOLUTION, new / SUPER_RESOLUTION)
        if folder.is_dir():
            os.replace(folder, temporary / 'old')
        os.replace(new, folder)
    except OSError as error:
        if not folder.exists() and (temporary / 'old').exists():
            os.replace(temporary / 'old', folder)
        raise WeightsError(f'{folder} could not be written: {error}; nothing there was replaced.') from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_stage(pipeline: Pipeline, folder: Path, *, dtype: str, max_shard_bytes: int) -> None:
    if pipeline.class_name not in CLASS_NAMES:
        raise WeightsError(f'class_name is {pipeline.class_name!r}; it must be one of {CLASS_NAMES}.')
    networks = {component: getattr(pipeline, component) for component in COMPONENTS}
    if networks['unet'] is None:
        raise WeightsError('a pipeline without a unet cannot be written; read it with the component unet.')
    schedulers = {'scheduler': pipeline.scheduler}
    if pipeline.class_name == SUPER_RESOLUTION_CLASS:
        if pipeline.image_noising_scheduler is None:
            raise WeightsError(f'{SUPER_RESOLUTION_CLASS} needs an image_noising_scheduler, but it is None.')
        schedulers['image_noising_scheduler'] = pipeline.image_noising_scheduler

    index: dict[str, Any] = {
        '_class_name': pipeline.class_name,
        '_diffusers_version': DIFFUSERS_VERSION,
        'feature_extractor': [None, None],
        'requires_safety_checker': False,
        'safety_checker': [None, None],
        'watermarker': [None, None],
        'text_encoder': [None, None],
        'tokenizer': [None, None],
    }
    for component, network in networks.items():
        if network is not None:
            kind = NETWORKS[component]
            index[component] = [kind.library, kind.class_name]
            _write_network(network, component, folder / component, dtype=dtype, max_shard_bytes=max_shard_bytes)
    for component, config in schedulers.items():
        config = {'_class_name': 'DDPMScheduler', '_diffusers_version': DIFFUSERS_VERSION, **config}
        index[component] = ['diffusers', config['_class_name']]
        _write_json(folder / component / 'scheduler_config.json', config)
    if pipeline.tokenizer_folder is not None:
        index['tokenizer'] = ['transformers', 'T5Tokenizer']
        (folder / 'tokenizer').mkdir()
        for file in sorted(Path(pipeline.tokenizer_folder).iterdir()):
            if file.is_file() and file.suffix in hub.TOKENIZER_SUFFIXES:
                # Not copy(): files in a hub cache or an installed package may be read-only.
                shutil.copyfile(file, folder / 'tokenizer' / file.name)
    _write_json(folder / 'model_index.json', index)


def _write_network(network: Network, component: str, folder: Path, *, dtype: str, max_shard_bytes: int) -> None:
    kind = NETWORKS[component]
    config = {key: value for key, value in network.config.items() if key not in ('torch_dtype', '_name_or_path')}
    if kind.library == 'transformers':
        config = {'model_type': 't5', **config, 'architectures': [kind.class_name], 'dtype': dtype}
    else:
        config = {**config, '_class_name': kind.class_name, '_diffusers_version': DIFFUSERS_VERSION}
    tensors = mapping.export(abstract_network(component, network.config), network.params)
    _write_json(folder / 'config.json', config)
    path = folder / f'{kind.stem}{files.SUFFIX}'
    files.write_tensors(path, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)


def _is_pipeline(folder: Path) -> bool:
    return (folder / 'model_index.json').is_file()


def _holds(index: Mapping[str, Any], component: str) -> bool:
    entry = index.get(component)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _read_index(folder: Path) -> dict[str, Any]:
    index = _read_json(folder / 'model_index.json')
    name = index.get('_class_name')
    if name not in CLASS_NAMES:
        raise WeightsError(
            f'{folder / "model_index.json"}: _class_name is {name!r}; this package reads {" and ".join(CLASS_NAMES)}: '
            f'give a model of these, such as storybook.'
        )
    return index


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise WeightsError(f'{path} is missing; give a complete pipeline folder in the layout of diffusers.') from None
    except OSError as error:
        raise WeightsError(f'{path} cannot be read: {error.strerror}.') from None
    except ValueError as error:
        raise WeightsError(f'{path} is no readable JSON ({error}); download it again.') from None
    if not isinstance(content, dict):
        raise WeightsError(f'{path} holds a JSON {type(content).__name__} but must hold an object; download it again.')
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', 'utf-8')
