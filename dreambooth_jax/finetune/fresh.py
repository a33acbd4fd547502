"""The pipeline that pretraining starts from: another one's, or fresh networks as the settings describe them."""

import dataclasses
from pathlib import Path

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.generation.cascade import compute_dtype
from dreambooth_jax.models import functional, t5, unet
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.weights import folders, guard
from dreambooth_jax.weights.pipeline import Network, Pipeline

CLASSES = {'base': 'IFPipeline', 'super_resolution': 'IFSuperResolutionPipeline'}


def start_pipeline(config: PretrainConfig, workdir: Path) -> Pipeline:
    """The pipeline of config.init, or a fresh one; of the second stage with the text encoder of config.base.

    Args:
      workdir: of the run; a fresh base stage's tokenizer/ is written there.
    Raises: WeightsError, ConfigError for a model of another kind, or networks that do not fit each other.
    """
    dtype, class_name = compute_dtype(config.parallel.dtype), CLASSES[config.stage]

    def fresh(kind, architecture, stream):
        def construct(rngs):
            return kind(architecture, dtype=dtype, rngs=rngs)

        return Network(architecture, *functional.init(construct, 2 * config.seed + stream))

    base = None
    if config.base is not None:
        # In float32: it is frozen, and encodes every pool once.
        base = folders.read_pipeline(config.base, components=('text_encoder',))
        if base.class_name != CLASSES['base'] or base.text_encoder is None or base.tokenizer_folder is None:
            raise ConfigError(_wrong('base', config.base, base, CLASSES['base']))
    if config.init is not None:
        start = folders.read_pipeline(config.init, dtype=dtype)
        if start.class_name != class_name or start.unet is None:
            raise ConfigError(_wrong('init', config.init, start, class_name))
        if base is None:
            return start
        return dataclasses.replace(start, text_encoder=base.text_encoder, tokenizer_folder=base.tokenizer_folder)
    text = config.text_encoder if base is None else base.text_encoder.config
    guard.check_networks(class_name, {'unet': config.unet, 'text_encoder': text}, "this run's settings")
    guard.check_schedule(config.scheduler, 'config.scheduler')
    network = fresh(unet.UNet2DConditionModel, config.unet, 0)
    if base is None:
        vocabulary.write_tokenizer(workdir / 'tokenizer')
        encoder = fresh(t5.T5EncoderModel, config.text_encoder, 1)
        parts = {'text_encoder': encoder, 'tokenizer_folder': workdir / 'tokenizer'}
        return Pipeline(class_name=class_name, scheduler=config.scheduler, unet=network, **parts)
    guard.check_schedule(config.image_noising_scheduler, 'config.image_noising_scheduler')
    return Pipeline(
        class_name=class_name,
        scheduler=config.scheduler,
        unet=network,
        image_noising_scheduler=config.image_noising_scheduler,
        text_encoder=base.text_encoder,
        tokenizer_folder=base.tokenizer_folder,
    )


def _wrong(setting: str, name: str, found: Pipeline, wanted: str) -> str:
    what = f'a {found.class_name}' if found.class_name != wanted else 'incomplete'
    return f'config.{setting} is {name!r}, which is {what}, but a complete {wanted} is needed; give a folder of one'
