"""The parts of a text-to-image pipeline: its family, its networks, its tokenizers and its noise schedules.

A family is a class of pipelines, such as Stable Diffusion. Here it is only what the parts of a pipeline are called
(Layout), which is all that reading and writing files need; the families themselves are in families/. kinds.py says how
the networks of each class are built and stored. folders.py reads and writes folders.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.diffusion import schedules
from dreambooth_jax.models import functional
from dreambooth_jax.models.lora import adaptable
from dreambooth_jax.models.quantised import flat, keeping, quantise_layers
from dreambooth_jax.weights import mapping
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.lora_original import OriginalLayers
from dreambooth_jax.weights.original_transformer import OriginalTransformer

SUPER_RESOLUTION = 'super_resolution'  # folder of the second stage inside the folder of the first
DIFFUSERS_VERSION = '0.42.1'  # the version whose layout is written and tested


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What a folder of one class of pipelines holds.

    Attributes:
      class_name: the pipeline class of diffusers, which model_index.json names.
      title: its common name.
      networks: the components with weights that it needs.
      denoiser: which of them denoises.
      tokenizers: {text encoder: name of its tokenizer's folder}, in the order in which their states are joined.
      is_super_resolution: whether it enlarges a low-resolution image (a second stage); otherwise it starts from noise.
      noising: folder of the schedule of the noise on the low-resolution image, or None.
      optional: the text encoders among them without which it also works.
      never_trained: the text encoders that stay as they are when others of the same model train.
      reading: {component: entries that are added to its configuration in memory, because its file does not say how this
        family reads it, such as which states of a language model}.
      options: further entries of model_index.json that have an effect, with diffusers' defaults.
      absent: components that are written as absent.
      also_saved_as: other pipeline classes that hold the same networks and are read as this one.
      originals: the layouts of its single files (original_facts.OriginalLayout), in the order in which they are tried.
      read_schedule: reads its scheduler_config.json; ValueError, one sentence, if it is not supported.
      architecture: its id in the model metadata standard (modelspec.py) if it has no such layout.
      sampling: how its makers generate with it, as settings of config.samples; {}: as these are by default.
      lora_layers: how LoRA files of its makers name the layers of its denoiser; None: as lora_names.py says.
      original_transformer: how files of its denoiser alone name the tensors (transformer_file.py); None: no such files.
    """

    class_name: str
    title: str
    networks: tuple[str, ...]
    denoiser: str
    tokenizers: Mapping[str, str]
    is_super_resolution: bool = False
    noising: str | None = None
    optional: tuple[str, ...] = ()
    never_trained: tuple[str, ...] = ()
    reading: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] = ()
    also_saved_as: tuple[str, ...] = ()
    originals: tuple[Any, ...] = ()
    read_schedule: Callable[[Mapping[str, Any]], Any] = schedules.from_config
    architecture: str | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lora_layers: OriginalLayers | None = None
    original_transformer: OriginalTransformer | None = None

    def usual_sampling(self, pipeline: 'Pipeline') -> Mapping[str, Any]:
        """Returns how the makers of this model generate with it, as settings of config.samples."""
        return self.sampling

    def frozen(self, component: str, frozen_dtype: str | None) -> str | None:
        """Returns how the kernels of a component are quantised if those of the model are: an autoencoder's are not."""
        return frozen_dtype if component == self.denoiser or component in self.tokenizers else None


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a pipeline.

    Attributes:
      config: contents of its config.json.
      apply: pure function of (params, *inputs, method='__call__'); see functional.split. It takes adapters beside the
        parameters too (lora.adaptable).
      params: {dotted path: array}, f32 or as functional.held keeps them, and codes and scales instead of the kernels
        that are quantised.
      dtype: the dtype that it computes in.
      frozen_dtype: how its kernels are quantised (models/quantised.py); None: they are not.
    """

    config: Mapping[str, Any]
    apply: Callable[..., Any]
    params: Mapping[str, Any]
    dtype: Any = jnp.float32
    frozen_dtype: str | None = None


def hash_networks(networks: Mapping[str, Network]) -> str:
    """Returns the sha256 of the names, shapes and f32 values of networks, {component: network}, in their order."""
    found = hashlib.sha256()
    for component, network in networks.items():
        for name in sorted(network.params):
            value = np.ascontiguousarray(network.params[name], np.float32)
            found.update(f'{component}.{name} {value.shape}'.encode())
            found.update(value.data)
    return found.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One stage of a text-to-image model, as a folder holds it.

    Attributes:
      family: what it consists of and, if families/ knows it, everything else that only its family knows.
      scheduler: contents of scheduler_config.json.
      components: {name: network} of the networks that were read, in the order of family.networks.
      tokenizers: {text encoder: folder for text.tokenize.Tokenizer.load} of the tokenizers that there are.
      added_tokens: tokens of textual inversions, which the text encoders know in addition to those in the folders.
      image_noising_scheduler: schedule of the noise on the low-resolution image; only for super-resolution stages.
      options: the entries of model_index.json that Layout.options names; missing ones have diffusers' defaults.
      folder: the folder or the single file that it was read from; None if it was not read.
      denoiser_file: the file of the denoiser alone that was read in place of the folder's; None: there is none.
    """

    family: Layout
    scheduler: Mapping[str, Any]
    components: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    tokenizers: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    added_tokens: tuple[str, ...] = ()
    image_noising_scheduler: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    denoiser_file: Path | None = None

    @property
    def class_name(self) -> str:
        """The pipeline class of diffusers."""
        return self.family.class_name

    @property
    def name(self) -> str:
        """The name of the pipeline for an error: its folder or file, or else its class."""
        return str(self.folder or f'this {self.class_name}')

    @property
    def denoiser(self) -> Network | None:
        """The network that denoises; None if it was not read."""
        return self.components.get(self.family.denoiser)

    @property
    def text_encoders(self) -> dict[str, Network]:
        """{component: network} of the text encoders that were read, in the order in which their states are joined."""
        return {name: self.components[name] for name in self.family.tokenizers if name in self.components}

    @functools.cached_property
    def space(self) -> Any:
        """What the denoiser works on, pixels or latents (families/image_space.py)."""
        return self.family.space(self)

    @property
    def native_size(self) -> int | None:
        """Side in pixels of the square images that the model is made for; None if it does not say or has no square."""
        return None if self.space.side is None else self.space.side * self.space.scale

    @property
    def size(self) -> int:
        """`native_size`, which must be known.

        Raises:
          WeightsError: one sentence, if the model does not say it.
        """
        if self.native_size is None:
            found = self.denoiser.config.get('sample_size')
            says = f'are no squares (its sample_size is {found})' if found else 'have a size that it does not say'
            settings = 'config.data.resolution (sample: --resolution)'
            do = (
                f'set {settings}'
                if not self.family.is_super_resolution
                else "write sample_size into its UNet's config.json"
            )
            raise WeightsError(f'the images that {self.name} was made for {says}; {do}.')
        return self.native_size

    @property
    def size_divisor(self) -> int:
        """The height and width of images must be multiples of this many pixels, so that the denoiser can halve them."""
        return self.space.scale * 2**self.space.halvings

    @property
    def super_resolution_folder(self) -> Path | None:
        """The folder of the second stage inside the folder of this one; None if there is none."""
        inside = self.folder / SUPER_RESOLUTION if self.folder else None
        return inside if inside and (inside / 'model_index.json').is_file() else None

    @functools.cached_property
    def weights_hash(self) -> str:
        """sha256 of the names, shapes and f32 values of all networks; it takes about a second for 1 to 2 GB."""
        parts = {name: self.components[name] for name in self.family.networks if name in self.components}
        return hash_networks(parts)

    def option(self, name: str) -> Any:
        """Returns an entry of model_index.json, or diffusers' default."""
        return self.options.get(name, self.family.options[name])

    def with_components(self, **networks: Network | None) -> 'Pipeline':
        """Returns the pipeline with other networks, {component: network}; None takes a network out."""
        merged = {**self.components, **networks}
        ordered = {name: merged[name] for name in self.family.networks if merged.get(name) is not None}
        return dataclasses.replace(self, components=ordered)


def abstract_network(
    component: str, config: Mapping[str, Any], dtype=jnp.float32, frozen_dtype: str | None = None, **options
) -> nnx.Module:
    """Builds the network of a configuration without values (nnx.eval_shape).

    The result is cached and shared, so it must not be changed.

    Args:
      component: name of the component.
      config: contents of its config.json.
      dtype: compute dtype; parameters are f32.
      frozen_dtype: as in Network.
      **options: further arguments of the constructor.

    Raises:
      ValueError: one sentence, if the configuration or frozen_dtype is not supported.
    """
    return _abstract_network(component, json.dumps(config, sort_keys=True), jnp.dtype(dtype), frozen_dtype, **options)


# Building a UNet takes seconds, and it is needed for reading, training, writing and comparing.
@functools.lru_cache(maxsize=32)
def _abstract_network(component: str, config: str, dtype, frozen_dtype, **options) -> nnx.Module:
    config = json.loads(config)
    constructor = kind_of(component, config).constructor

    def construct():
        model = constructor(config, dtype=dtype, rngs=functional.Keys(0), **options)
        return model if frozen_dtype is None else quantise_layers(model, frozen_dtype)

    return nnx.eval_shape(construct)


def apply_of(
    component: str, config: Mapping[str, Any], dtype=jnp.float32, frozen_dtype: str | None = None
) -> Callable[..., Any]:
    """Returns the pure function of a network (Network.apply); arguments and errors are those of abstract_network."""
    return _apply_of(component, json.dumps(config, sort_keys=True), jnp.dtype(dtype), frozen_dtype)


@functools.lru_cache(maxsize=32)
def _apply_of(*network) -> Callable[..., Any]:
    return adaptable(_abstract_network(*network))


def filled_network(
    model: nnx.Module,
    component: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    source: str,
    dtype: Any,
    frozen_dtype: str | None = None,
) -> Network:
    """Fills an abstract network with the tensors of a checkpoint, one after the other.

    Args:
      model: result of abstract_network for the same component, configuration and dtype.
      component: name of the component.
      config: contents of its config.json.
      tensors: {name in a checkpoint of diffusers or transformers: array}.
      dtype: compute dtype of the network.
      source: name of the checkpoint for an error.
      frozen_dtype: as in Network. Every kernel is quantised as soon as it is read.

    Raises:
      WeightsError: with one line for each tensor that does not fit.
    """
    kind = kind_of(component, config)
    options = {'aliases': kind.aliases, 'ignored': kind.ignored, 'source': source}
    if frozen_dtype is None:
        params = mapping.load(model, tensors, **options)
        return Network(config, apply_of(component, config, dtype), params, dtype)
    # The tensors have the names of the plain network; that with quantised kernels tells which these are.
    shapes = functional.split(abstract_network(component, config, dtype, frozen_dtype))[1]
    params = flat(mapping.load(model, tensors, stored=keeping(shapes, frozen_dtype), **options))
    return Network(config, apply_of(component, config, dtype, frozen_dtype), params, dtype, frozen_dtype)


def in_float32(component: str, network: Network) -> Network:
    """Returns the same network computing in float32, for a computation that runs once and gains nothing otherwise."""
    apply = apply_of(component, network.config, frozen_dtype=network.frozen_dtype)
    return dataclasses.replace(network, apply=apply, dtype=jnp.float32)


def network_tensors(component: str, network: Network) -> dict[str, np.ndarray]:
    """Returns a network's parameters with the names and axes of a checkpoint; the inverse of filled_network.

    Raises:
      WeightsError: one sentence, if its kernels are quantised.
    """
    if network.frozen_dtype is not None:
        raise WeightsError(
            f'the kernels of this {component} are quantised to {network.frozen_dtype}, which no checkpoint holds; read '
            f'the model without frozen_dtype to write it.'
        )
    return mapping.export(abstract_network(component, network.config), network.params)
