"""Every setting of pretrain, the program that trains Storybook's networks from scratch; see dreambooth.py."""

import dataclasses
from typing import Literal

from dreambooth_jax.config.dreambooth import LAST_TIMESTEP, Timestep, check_noise_level
from dreambooth_jax.config.schema import ConfigError, path_setting, setting
from dreambooth_jax.config.training import (
    CheckpointConfig,
    LearningRateSchedule,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplesConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimizerConfig, ObjectiveConfig):
    """Pretraining of one Storybook stage from scratch; with one stage, optimiser and objective need no group."""

    # Of the weights' start, the painted scenes, times and noise.
    seed: int = setting(0, '>= 0')
    # Which network of the cascade is trained.
    stage: Literal['base', 'super_resolution'] = 'base'
    # Optimiser steps.
    steps: int = setting(30_000, '> 0')
    # Rows per step, on all devices together.
    batch_size: int = setting(64, '> 0')
    learning_rate: float = setting(3e-4, '> 0')
    # As in OptimizerConfig and ObjectiveConfig, with what pretraining needs.
    schedule: LearningRateSchedule = 'cosine'
    warmup_steps: int = setting(500, '>= 0')
    ema_decay: float | None = setting(0.999, 'in (0, 1)')
    prompt_dropout: float = setting(0.1, 'in [0, 1]')
    # Share of captions with a meaningless rare token before the noun, so that an identifier is neutral, not unseen.
    rare_token_rate: float = setting(0.05, 'in [0, 1]')
    # Images painted for one pool, which lives on the device while the next is painted.
    pool_size: int = setting(4096, '> 0')
    # How often a pool is trained on before the next replaces it.
    passes: int = setting(2, '> 0')
    # Host processes that paint. 0: in the program itself.
    painters: int = setting(1, '>= 0')
    # Super-resolution: train on random crops of this side, in pixels. None: whole images.
    crop: int | None = setting(None, '> 0')
    # Super-resolution: side of the high image / side of the low one.
    factor: int = setting(4, '> 1')
    # Super-resolution: lowest and highest noise augmentation, as in SuperResolutionConfig; pretraining sees all of it.
    noise_level: tuple[Timestep, Timestep] = setting((0, 350), f'in [0, {LAST_TIMESTEP}]')
    # Pipeline folder whose weights training starts from. None: from scratch.
    init: str | None = path_setting(None)
    # Super-resolution: pipeline folder of the base stage, whose text encoder and tokenizer are used, frozen.
    base: str | None = path_setting(None)
    # Architecture, as in the config.json of a diffusers UNet2DConditionModel; sample_size is the images' side.
    unet: dict = dataclasses.field(default_factory=dict)
    # Architecture, as in the config.json of a transformers T5EncoderModel; of the base stage alone.
    text_encoder: dict = dataclasses.field(default_factory=dict)
    # Noise schedule, as in diffusers' scheduler_config.json.
    scheduler: dict = dataclasses.field(default_factory=dict)
    # The same for the noise that super-resolution puts on the low image.
    image_noising_scheduler: dict = dataclasses.field(default_factory=dict)
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()

    def check(self, path: str) -> None:
        super().check(path)
        self.check_learning_rate(self.learning_rate, f'{path}.learning_rate')
        check_noise_level(self.noise_level, path)
        if self.init is None and not self.unet:
            raise ConfigError(f'{path}.unet must describe the network unless {path}.init names a folder that has one')
        if self.stage == 'base':
            if self.crop is not None:
                raise ConfigError(f"{path}.crop is {self.crop} but only stage 'super_resolution' trains on crops")
            if self.init is None and not self.text_encoder:
                raise ConfigError(f'{path}.text_encoder must describe the T5 encoder, which the base stage trains')
            if self.base is not None:
                raise ConfigError(f"{path}.base is {self.base!r} but only stage 'super_resolution' builds on a base")
        else:
            if self.base is None:
                raise ConfigError(f"{path}.base must name the base stage's folder: its text encoder is used")
            if self.text_encoder:
                raise ConfigError(f'{path}.text_encoder must stay empty: it comes from {path}.base, {self.base!r}')
