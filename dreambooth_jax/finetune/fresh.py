"""The pipeline that pretraining starts from: an existing one, or new networks that the settings describe."""

import dataclasses
from pathlib import Path

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.families import deepfloyd_if
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import compute_dtype
from dreambooth_jax.models import functional, t5, unet
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.weights import guard
from dreambooth_jax.weights.pipeline import Layout, Network, Pipeline

FAMILIES = {'base': deepfloyd_if.BASE, 'super_resolution': deepfloyd_if.SUPER_RESOLUTION}


def start_pipeline(config: PretrainConfig, workdir: Path) -> Pipeline:
    """Returns the pipeline of config.init, or a new one; a second stage gets the text encoder of config.base.

    Args:
      workdir: the run's folder. The tokenizer/ of a new base stage is written there.

    Raises:
      WeightsError: if a model cannot be read, or networks or schedules do not fit.
      ConfigError: if a model is of another kind or incomplete.
    """
    dtype, family = compute_dtype(config.parallel.dtype), FAMILIES[config.stage]

    def fresh(kind, architecture, stream):
        def construct(rngs):
            return kind(architecture, dtype=dtype, rngs=rngs)

        return Network(architecture, *functional.init(construct, 2 * config.seed + stream), dtype)

    base = None
    if config.base is not None:
        # In float32: it is frozen and encodes every pool only once, so precision costs little.
        base = read_pipeline(config.base, components=tuple(family.tokenizers))
        complete = base.text_encoders.keys() == base.tokenizers.keys() == family.tokenizers.keys()
        if base.family is not FAMILIES['base'] or not complete:
            raise ConfigError(_wrong('base', config.base, base, FAMILIES['base']))
    if config.init is not None:
        start = read_pipeline(config.init, dtype=dtype)
        if start.family is not family or start.denoiser is None:
            raise ConfigError(_wrong('init', config.init, start, family))
        if base is None:
            return start
        return dataclasses.replace(start.with_components(**base.text_encoders), tokenizers=base.tokenizers)
    denoiser, (text_encoder,) = family.denoiser, family.tokenizers
    text = config.text_encoder if base is None else base.text_encoders[text_encoder].config
    guard.check_networks(family, {denoiser: config.unet, text_encoder: text}, "this run's settings")
    guard.check_schedule(config.scheduler, 'config.scheduler')
    network = fresh(unet.UNet2DConditionModel, config.unet, 0)
    if base is None:
        vocabulary.write_tokenizer(workdir / 'tokenizer')
        encoder = fresh(t5.T5EncoderModel, config.text_encoder, 1)
        return Pipeline(
            family=family,
            scheduler=config.scheduler,
            components={denoiser: network, text_encoder: encoder},
            tokenizers={text_encoder: workdir / 'tokenizer'},
        )
    guard.check_schedule(config.image_noising_scheduler, 'config.image_noising_scheduler')
    return Pipeline(
        family=family,
        scheduler=config.scheduler,
        components={denoiser: network, **base.text_encoders},
        tokenizers=base.tokenizers,
        image_noising_scheduler=config.image_noising_scheduler,
    )


def _wrong(setting: str, name: str, found: Pipeline, wanted: Layout) -> str:
    what = f'a {found.class_name}' if found.family is not wanted else 'incomplete'
    return (
        f'config.{setting} is {name!r}, which is {what}, but a complete {wanted.class_name} is needed; give a folder '
        f'of one'
    )
