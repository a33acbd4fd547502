"""The pipeline that pretraining starts from: an existing one, or new networks that the settings describe."""

import dataclasses
from pathlib import Path

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.families.family import FIRST_STAGES, SECOND_STAGES
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.models import functional
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.training import dtypes
from dreambooth_jax.weights import folders, guard
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Layout, Network, Pipeline

START = 'start'  # the random networks that a run starts from if some are read only in part


def family_of(config: PretrainConfig) -> Layout:
    """Returns the family of the stage that the settings train."""
    if config.stage == 'super_resolution':
        return next(iter(SECOND_STAGES))
    return next((family for family in FIRST_STAGES if getattr(config, family.denoiser)), FIRST_STAGES[0])


def start_pipeline(config: PretrainConfig, workdir: Path) -> Pipeline:
    """Returns the pipeline of config.init, or a new one; a second stage gets the text encoder of config.base.

    Args:
      workdir: the run's folder. The tokenizer/ of a new model is written there. If the family reads a network only in
        part, the new model is written to start/ there, because the rest of that network is needed for the result.

    Raises:
      WeightsError: if a model cannot be read, or networks or schedules do not fit.
      ConfigError: if a model is of another kind or incomplete, or a network is not described.
    """
    dtype, wanted = dtypes.compute_dtype(config.parallel), family_of(config)
    base = None
    if config.base is not None:
        # In float32: it is frozen and encodes every pool only once, so precision costs little.
        base = read_pipeline(config.base, components=tuple(wanted.tokenizers))
        complete = base.text_encoders.keys() == base.tokenizers.keys() == wanted.tokenizers.keys()
        if base.family is not SECOND_STAGES[wanted] or not complete:
            raise ConfigError(_wrong('base', config.base, base, SECOND_STAGES[wanted]))
    if config.init is not None:
        start = read_pipeline(config.init, dtype=dtype)
        if start.family is not wanted or start.denoiser is None:
            raise ConfigError(_wrong('init', config.init, start, wanted))
        if base is None:
            return start
        return dataclasses.replace(start.with_components(**base.text_encoders), tokenizers=base.tokenizers)
    started = workdir / START
    if wanted.reading and (started / 'model_index.json').is_file():
        return read_pipeline(started, dtype=dtype)
    fresh = _fresh_pipeline(config, wanted, base, workdir, dtype)
    if not wanted.reading:
        return fresh
    folders.write_pipeline(fresh, started)
    return read_pipeline(started, dtype=dtype)


def _fresh_pipeline(config: PretrainConfig, wanted: Layout, base: Pipeline | None, workdir: Path, dtype) -> Pipeline:
    described = {name: getattr(config, name) for name in wanted.networks}
    if base is not None:
        described |= {name: network.config for name, network in base.text_encoders.items()}
    for name, architecture in described.items():
        if not architecture:
            raise ConfigError(f'config.{name} must describe the {name} of a {wanted.class_name}')
    guard.check_networks(wanted, described, "this run's settings")
    guard.check_schedule(config.scheduler, 'config.scheduler', wanted.read_schedule)

    def fresh(name, stream):
        def construct(rngs):
            return kind_of(name, described[name]).constructor(described[name], dtype=dtype, rngs=rngs)

        return Network(described[name], *functional.init(construct, len(described) * config.seed + stream), dtype)

    texts = {} if base is None else base.text_encoders
    made = {name: texts[name] if name in texts else fresh(name, stream) for stream, name in enumerate(described)}
    if base is None:
        ((text_encoder, folder),) = wanted.tokenizers.items()
        vocabulary.WRITERS[kind_of(text_encoder, described[text_encoder]).model_type](workdir / folder)
        tokenizers = {text_encoder: workdir / folder}
        return Pipeline(family=wanted, scheduler=config.scheduler, components=made, tokenizers=tokenizers)
    guard.check_schedule(config.image_noising_scheduler, 'config.image_noising_scheduler')
    return Pipeline(
        family=wanted,
        scheduler=config.scheduler,
        components=made,
        tokenizers=base.tokenizers,
        image_noising_scheduler=config.image_noising_scheduler,
    )


def _wrong(setting: str, name: str, found: Pipeline, wanted: Layout) -> str:
    what = f'a {found.class_name}' if found.family is not wanted else 'incomplete'
    return (
        f'config.{setting} is {name!r}, which is {what}, but a complete {wanted.class_name} is needed; give a folder '
        f'of one'
    )
