"""What a text-to-image pipeline is made of: its family, its networks, its tokenizers and its noise schedules.

A family is a class of diffusers' pipelines; FAMILIES says for each what it must hold and under which names a folder
keeps it. How folders and files are read and written: folders.py.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import clip, functional, t5, unet_config, vae
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.models.vae import AutoencoderKL
from dreambooth_jax.weights import aliases, mapping
from dreambooth_jax.weights.errors import WeightsError

SUPER_RESOLUTION = 'super_resolution'  # folder of the second stage inside the first
DIFFUSERS_VERSION = '0.42.1'  # whose layout is written and tested


class Family(NamedTuple):
    """A class of pipelines.

    Attributes:
      title: what people call it.
      is_super_resolution: whether it generates from a low-resolution image (a second stage) or from noise alone.
      networks: components with weights that it needs. tokenizers: its tokenizer folders.
      noising: folder of the schedule of the low image's noise, or None.
      options: other entries of model_index.json that matter, with diffusers' defaults.
      absent: components that are written as absent.
    """

    title: str
    is_super_resolution: bool
    networks: tuple[str, ...]
    tokenizers: tuple[str, ...]
    noising: str | None
    options: Mapping[str, Any]
    absent: tuple[str, ...]


_CHECKER = ('safety_checker', 'feature_extractor')
_IF = {
    'networks': ('unet', 'text_encoder'),
    'tokenizers': ('tokenizer',),
    'options': {'requires_safety_checker': False},
    'absent': (*_CHECKER, 'watermarker'),
}
FAMILIES = {
    'IFPipeline': Family(title='DeepFloyd IF', is_super_resolution=False, noising=None, **_IF),
    'IFSuperResolutionPipeline': Family(
        title="DeepFloyd IF's second stage", is_super_resolution=True, noising='image_noising_scheduler', **_IF
    ),
    'StableDiffusionPipeline': Family(
        title='Stable Diffusion',
        is_super_resolution=False,
        networks=('unet', 'vae', 'text_encoder'),
        tokenizers=('tokenizer',),
        noising=None,
        options={'requires_safety_checker': False},
        absent=(*_CHECKER, 'image_encoder'),
    ),
    'StableDiffusionXLPipeline': Family(
        title='Stable Diffusion XL',
        is_super_resolution=False,
        networks=('unet', 'vae', 'text_encoder', 'text_encoder_2'),
        tokenizers=('tokenizer', 'tokenizer_2'),
        noising=None,
        options={'force_zeros_for_empty_prompt': True},
        absent=('image_encoder', 'feature_extractor'),
    ),
    'StableDiffusionUpscalePipeline': Family(
        title='the Stable Diffusion x4 upscaler',
        is_super_resolution=True,
        networks=('unet', 'vae', 'text_encoder'),
        tokenizers=('tokenizer',),
        noising='low_res_scheduler',
        options={'max_noise_level': 350},
        absent=(*_CHECKER, 'watermarker'),
    ),
}
CLASS_NAMES = tuple(FAMILIES)
COMPONENTS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
TEXT_ENCODERS = ('text_encoder', 'text_encoder_2')
TOKENIZERS = ('tokenizer', 'tokenizer_2')


class Kind(NamedTuple):
    """How one kind of network is built and stored; `resolve` checks its config.json and completes it."""

    constructor: Callable[..., nnx.Module]
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]]
    library: str
    class_name: str
    model_type: str | None  # as transformers' config.json names it
    stem: str  # of the weights' file
    aliases: tuple
    ignored: tuple


_DIFFUSERS, _TRANSFORMERS = 'diffusion_pytorch_model', 'model'
_CLIP = (_TRANSFORMERS, aliases.CLIP_ALIASES, aliases.CLIP_IGNORED)
KINDS = {
    kind.class_name: kind
    for kind in (
        Kind(UNet2DConditionModel, unet_config.resolve, 'diffusers', 'UNet2DConditionModel', None, _DIFFUSERS, (), ()),
        Kind(AutoencoderKL, vae.resolve, 'diffusers', 'AutoencoderKL', None, _DIFFUSERS, aliases.VAE_ALIASES, ()),
        Kind(
            T5EncoderModel,
            t5.resolve,
            'transformers',
            'T5EncoderModel',
            't5',
            _TRANSFORMERS,
            aliases.T5_ALIASES,
            aliases.T5_IGNORED,
        ),
        Kind(CLIPTextModel, clip.resolve, 'transformers', 'CLIPTextModel', 'clip_text_model', *_CLIP),
        Kind(
            lambda *args, **options: CLIPTextModel(*args, projection=True, **options),
            clip.resolve,
            'transformers',
            'CLIPTextModelWithProjection',
            'clip_text_model',
            *_CLIP,
        ),
    )
}
_OF_COMPONENT = {'unet': 'UNet2DConditionModel', 'vae': 'AutoencoderKL'}
_WITH_CLIP = ('clip', 'clip_text_model')


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a pipeline.

    Attributes:
      config: the contents of its config.json.
      apply: pure function of (params, *inputs, method='__call__'), see functional.split.
      params: {dotted path: f32 array}.
    """

    config: Mapping[str, Any]
    apply: Callable[..., Any]
    params: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One stage of a text-to-image model, as a folder holds it.

    Attributes:
      class_name: one of CLASS_NAMES.
      scheduler: contents of scheduler_config.json.
      unet, vae, text_encoder, text_encoder_2: None if there is none or it was not asked for.
      tokenizer_folder, tokenizer_2_folder: what text.tokenize.Tokenizer.load opens; None if there is none.
      added_tokens: tokens that the text encoders know beyond those of the tokenizers' folders (textual inversion).
      image_noising_scheduler: the schedule of the low image's noise; only families that enlarge have one.
      options: the entries of model_index.json that the family knows (Family.options); missing ones are diffusers'.
      folder: the folder, or the single file, that it was read from; None if it was made otherwise.
    """

    class_name: str
    scheduler: Mapping[str, Any]
    unet: Network | None = None
    vae: Network | None = None
    text_encoder: Network | None = None
    text_encoder_2: Network | None = None
    tokenizer_folder: Path | None = None
    tokenizer_2_folder: Path | None = None
    added_tokens: tuple[str, ...] = ()
    image_noising_scheduler: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None

    @property
    def family(self) -> Family:
        """What pipelines of this class are made of."""
        return FAMILIES[self.class_name]

    @property
    def name(self) -> str:
        """For errors: its folder or file, or its class."""
        return str(self.folder or f'this {self.class_name}')

    @property
    def text_encoders(self) -> dict[str, Network]:
        """Those that it has, in the order in which their states are joined."""
        found = {component: getattr(self, component) for component in TEXT_ENCODERS}
        return {component: network for component, network in found.items() if network is not None}

    @property
    def tokenizer_folders(self) -> dict[str, Path]:
        """Text encoder -> tokenizer folder."""
        found = zip(TEXT_ENCODERS, (self.tokenizer_folder, self.tokenizer_2_folder), strict=True)
        return {component: folder for component, folder in found if folder is not None}

    @property
    def is_latent(self) -> bool:
        """Whether the UNet works on the latents of a VAE rather than on pixels."""
        return 'vae' in self.family.networks

    @property
    def latent_scale(self) -> int:
        """Side of an image / side of what the UNet works on: 8 for Stable Diffusion, 4 for its upscaler, 1 on pixels.

        Source: vae_scale_factor of diffusers' pipelines.
        """
        return vae.size_divisor(self.vae.config) if self.vae else 1

    @property
    def native_size(self) -> int | None:
        """Side of the square images that it was made for, in pixels; None if it does not say, or no square."""
        height, width = unet_config.sides(self.unet.config)
        return None if height is None or height != width else height * self.latent_scale

    @property
    def size(self) -> int:
        """`native_size` of a model that says it.

        Raises: WeightsError, one sentence, for another.
        """
        if self.native_size is None:
            found = self.unet_value('sample_size')
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
        """What the sides of its images must be multiples of, in pixels: the UNet halves them so often."""
        return self.latent_scale * 2 ** (len(self.unet_value('block_out_channels')) - 1)

    @property
    def super_resolution_folder(self) -> Path | None:
        """The folder of the second stage that came with this one, if one did."""
        inside = self.folder / SUPER_RESOLUTION if self.folder else None
        return inside if inside and (inside / 'model_index.json').is_file() else None

    @functools.cached_property
    def weights_hash(self) -> str:
        """sha256 of its networks: names, shapes and f32 values, in the names' order; a second for each GB or two."""
        found = hashlib.sha256()
        for component in COMPONENTS:
            network = getattr(self, component)
            for name in sorted(network.params) if network else ():
                value = np.ascontiguousarray(network.params[name], np.float32)
                found.update(f'{component}.{name} {value.shape}'.encode())
                found.update(value.data)
        return found.hexdigest()

    def unet_value(self, key: str) -> Any:
        """An entry of the UNet's config.json, or diffusers' default."""
        return self.unet.config.get(key, unet_config.DEFAULTS[key])

    def option(self, name: str) -> Any:
        """An entry of model_index.json, or diffusers' default."""
        return self.options.get(name, self.family.options[name])


def kind_of(component: str, config: Mapping[str, Any]) -> Kind:
    """Which network a component's config.json describes.

    Raises: ValueError, one sentence, for a network of another class, or a text encoder that is neither T5 nor CLIP.
    """
    if config.get('quantization_config') is not None:
        raise ValueError('quantization_config is there, but quantised weights cannot be trained; give plain ones')
    class_name = config.get('_class_name')
    if component in _OF_COMPONENT:
        kind = KINDS[_OF_COMPONENT[component]]
        if class_name not in (None, kind.class_name):
            raise ValueError(f'_class_name is {class_name!r} but must be {kind.class_name!r}')
        return kind
    model_type = config.get('model_type', 't5')
    if model_type == 't5':
        return KINDS['T5EncoderModel']
    if model_type not in _WITH_CLIP:
        raise ValueError(f"model_type is {model_type!r} but must be one of ('t5', 'clip_text_model')")
    architectures = config.get('architectures') or ()
    if not isinstance(architectures, list | tuple):
        raise ValueError(f'architectures is {architectures!r} but must be a list of class names')
    projected = 'CLIPTextModelWithProjection' in architectures
    return KINDS['CLIPTextModelWithProjection' if projected else 'CLIPTextModel']


def abstract_network(component: str, config: Mapping[str, Any], dtype=jnp.float32, **options) -> nnx.Module:
    """The network of a configuration without values (nnx.eval_shape); not to be changed, as it is made once.

    Args:
      component: one of COMPONENTS. dtype: of the compute; parameters are f32. options: more for the constructor.
    Raises: ValueError, one sentence, if the configuration is not supported.
    """
    return _abstract_network(component, json.dumps(config, sort_keys=True), jnp.dtype(dtype), **options)


# Tracing a UNet takes seconds, and reading, training, writing and comparing each need it.
@functools.lru_cache(maxsize=32)
def _abstract_network(component: str, config: str, dtype, **options) -> nnx.Module:
    config = json.loads(config)
    constructor = kind_of(component, config).constructor
    return nnx.eval_shape(lambda: constructor(config, dtype=dtype, rngs=functional.Keys(0), **options))


def filled_network(
    model: nnx.Module, component: str, config: Mapping[str, Any], tensors: Mapping[str, Any], source: str
) -> Network:
    """An abstract network with the tensors of a checkpoint as its parameters.

    Args:
      model: of abstract_network, for the same component and configuration.
      tensors: {name in diffusers' or transformers' checkpoints: array}. source: what to call them in an error.
    Raises: WeightsError, a line for each tensor that does not fit.
    """
    kind = kind_of(component, config)
    params = mapping.load(model, tensors, aliases=kind.aliases, ignored=kind.ignored, source=source)
    return Network(config, functional.split(model)[0], params)


def in_float32(component: str, network: Network) -> Network:
    """The same network, computing in float32: for what runs once, where another dtype would save nothing."""
    return dataclasses.replace(network, apply=functional.split(abstract_network(component, network.config))[0])


def network_tensors(component: str, network: Network) -> dict[str, np.ndarray]:
    """A network's parameters as checkpoints name and order them: the way back from filled_network."""
    return mapping.export(abstract_network(component, network.config), network.params)
