"""The pipeline that pretraining starts from: an existing one, or new networks that the settings describe."""

import dataclasses
from pathlib import Path

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.families import reading
from dreambooth_jax.generation.cascade import compute_dtype
from dreambooth_jax.models import functional, t5, unet
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.weights import guard
from dreambooth_jax.weights.pipeline import Network, Pipeline

CLASSES = {'base': 'IFPipeline', 'super_resolution': 'IFSuperResolutionPipeline'}


def start_pipeline(config: PretrainConfig, workdir: Path) -> Pipeline:
    """Returns the pipeline of config.init, or a new one; a second stage gets the text encoder of config.base.

    Args:
      workdir: the run's folder. The tokenizer/ of a new base stage is written there.

    Raises:
      WeightsError: if a model cannot be read, or networks or schedules do not fit.
      ConfigError: if a model is of another kind or incomplete.
    """
    dtype, class_name = compute_dtype(config.parallel.dtype), CLASSES[config.stage]

    def fresh(kind, architecture, stream):
        def construct(rngs):
            return kind(architecture, dtype=dtype, rngs=rngs)

        return Network(architecture, *functional.init(construct, 2 * config.seed + stream))

    base = None
    if config.base is not None:
        # In float32: it is frozen and encodes every pool only once, so precision costs little.
        base = reading.read_pipeline(config.base, components=('text_encoder',))
        if base.class_name != CLASSES['base'] or base.text_encoder is None or base.tokenizer_folder is None:
            raise ConfigError(_wrong('base', config.base, base, CLASSES['base']))
    if config.init is not None:
        start = reading.read_pipeline(config.init, dtype=dtype)
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
