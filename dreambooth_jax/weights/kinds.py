"""The classes of networks that a pipeline may hold: how each is built and how diffusers or transformers stores it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from dreambooth_jax.models import clip, flux, flux2, qwen3, sd3, t5, unet_config, vae, vae_flux2, z_image
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.flux import FluxTransformer2DModel
from dreambooth_jax.models.flux2 import Flux2Transformer2DModel
from dreambooth_jax.models.qwen3 import Qwen3Model
from dreambooth_jax.models.sd3 import SD3Transformer2DModel
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.models.vae import AutoencoderKL
from dreambooth_jax.models.vae_flux2 import AutoencoderKLFlux2
from dreambooth_jax.models.z_image import ZImageTransformer2DModel
from dreambooth_jax.weights import aliases


class Kind(NamedTuple):
    """How networks of one class are built and stored; `resolve` checks and completes their config.json.

    Of a network whose configuration in memory has the entry `partial_by`, only what its pipeline uses is built and read
    (`is_partial`).
    """

    constructor: Callable[..., nnx.Module]
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]]
    library: str
    class_name: str
    model_type: str | None  # in transformers' config.json; None for diffusers
    stem: str  # name of the weights file without its suffix
    aliases: tuple
    ignored: tuple
    partial_by: str | None = None


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
        Kind(
            AutoencoderKLFlux2,
            vae_flux2.resolve,
            'diffusers',
            'AutoencoderKLFlux2',
            None,
            _DIFFUSERS,
            aliases.VAE_ALIASES,
            aliases.FLUX2_VAE_IGNORED,
        ),
        *(
            Kind(network, module.resolve, 'diffusers', network.__name__, None, _DIFFUSERS, (), ())
            for module, network in (
                (flux2, Flux2Transformer2DModel),
                (z_image, ZImageTransformer2DModel),
                (flux, FluxTransformer2DModel),
                (sd3, SD3Transformer2DModel),
            )
        ),
        # The same network; only the second kind of file also holds the head, which is not read.
        *(
            Kind(
                lambda config, **options: Qwen3Model(config, states=qwen3.states_read(config), **options),
                qwen3.resolve,
                'transformers',
                class_name,
                'qwen3',
                _TRANSFORMERS,
                aliases.QWEN3_ALIASES,
                aliases.QWEN3_IGNORED,
                partial_by=qwen3.STATES_READ,
            )
            for class_name in ('Qwen3Model', 'Qwen3ForCausalLM')
        ),
    )
}
# Components whose class follows from their name; the class of a text encoder is read from its configuration.
# The first one is meant where the configuration does not name its class.
_OF_COMPONENT = {
    'unet': ('UNet2DConditionModel',),
    'transformer': (
        'Flux2Transformer2DModel',
        'ZImageTransformer2DModel',
        'FluxTransformer2DModel',
        'SD3Transformer2DModel',
    ),
    'vae': ('AutoencoderKL', 'AutoencoderKLFlux2'),
}
_WITH_CLIP = ('clip', 'clip_text_model')


def kind_of(component: str, config: Mapping[str, Any]) -> Kind:
    """Finds out which class of networks a component's config.json describes.

    Args:
      component: name of the component, such as 'unet' or 'text_encoder'.
      config: contents of the file.

    Raises:
      ValueError: one sentence, if the class is not supported for this component, such as a text encoder that is neither
        a T5 nor a CLIP, or if the weights are quantised.
    """
    if config.get('quantization_config') is not None:
        raise ValueError('quantization_config is there, but quantised weights cannot be trained; give plain ones')
    class_name = config.get('_class_name')
    if component in _OF_COMPONENT:
        allowed = _OF_COMPONENT[component]
        if class_name not in (None, *allowed):
            raise ValueError(f'_class_name is {class_name!r} but must be {" or ".join(map(repr, allowed))}')
        return KINDS[class_name or allowed[0]]
    model_type = config.get('model_type', 't5')
    if model_type == 't5':
        return KINDS['T5EncoderModel']
    if model_type not in (*_WITH_CLIP, 'qwen3'):
        raise ValueError(f"model_type is {model_type!r} but must be one of ('t5', 'clip_text_model', 'qwen3')")
    architectures = config.get('architectures') or ()
    if not isinstance(architectures, list | tuple):
        raise ValueError(f'architectures is {architectures!r} but must be a list of class names')
    if model_type == 'qwen3':
        return KINDS['Qwen3Model' if 'Qwen3Model' in architectures else 'Qwen3ForCausalLM']
    projected = 'CLIPTextModelWithProjection' in architectures
    return KINDS['CLIPTextModelWithProjection' if projected else 'CLIPTextModel']


def is_partial(component: str, config: Mapping[str, Any]) -> bool:
    """Whether of a component with this configuration only what its pipeline uses is built and read.

    Such a network cannot train, and it is written by copying the files from which it was read.
    """
    return kind_of(component, config).partial_by in config
