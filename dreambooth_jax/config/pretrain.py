"""The settings of pretrain, the program that trains Storybook's networks from scratch.

dreambooth.py says how settings are defined and used; training.py holds those that both programs have in common.
"""

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
    """Pretraining of one stage of a Storybook model.

    A run trains one stage alone, so the settings of optimizer and objective belong to this group itself.
    """

    # Seed of the initial weights, the painted scenes, timesteps and noise.
    seed: int = setting(0, '>= 0')
    # The stage that is trained. A model on latents has an autoencoder, which comes first and then stays as it is.
    stage: Literal['autoencoder', 'base', 'super_resolution'] = 'base'
    # Optimizer steps.
    steps: int = setting(30_000, '> 0')
    # Examples per step, on all devices together.
    batch_size: int = setting(64, '> 0')
    learning_rate: float = setting(3e-4, '> 0')
    # The next four have the meaning that training.py describes; their defaults are those that pretraining needs.
    schedule: LearningRateSchedule = 'cosine'
    warmup_steps: int = setting(500, '>= 0')
    ema_decay: float | None = setting(0.999, 'in (0, 1)')
    prompt_dropout: float = setting(0.1, 'in [0, 1]')
    # Share of captions that get a meaningless rare token before the noun. The model thereby learns that such a token
    # means nothing, so an identifier is neutral to it instead of unseen.
    rare_token_rate: float = setting(0.05, 'in [0, 1]')
    # Images painted for one pool. A pool is on the device while the next one is painted.
    pool_size: int = setting(4096, '> 0')
    # How many times a pool is trained on before the next one replaces it.
    passes: int = setting(2, '> 0')
    # Host processes that paint. 0: the program paints in its own process.
    painters: int = setting(1, '>= 0')
    # Super-resolution and autoencoder only: side of the random crops that are trained on, in pixels of the
    # high-resolution image. None: whole images.
    crop: int | None = setting(None, '> 0')
    # Super-resolution only: side of the high-resolution image divided by the side of the low-resolution image.
    factor: int = setting(4, '> 1')
    # Super-resolution only: lowest and highest noise augmentation of the low-resolution image, in timesteps of
    # image_noising_scheduler, both included. Pretraining covers every level that fine-tuning and sampling may use.
    noise_level: tuple[Timestep, Timestep] = setting((0, 350), f'in [0, {LAST_TIMESTEP}]')
    # Autoencoder only: weights of the divergence of latents from the standard normal distribution and of the
    # differences between neighbouring pixels, beside that of the pixels themselves, which is 1.
    kl_weight: float = setting(1e-4, '>= 0')
    edge_weight: float = setting(1.0, '>= 0')
    # Pipeline folder whose weights training starts from. None: it starts from random weights.
    init: str | None = path_setting(None)
    # Super-resolution only: pipeline folder of the base stage, whose text encoder (frozen) and tokenizer are used.
    base: str | None = path_setting(None)
    # Architectures of the networks, as in the config.json of diffusers or transformers. A cascade on pixels has a unet,
    # a rectified flow on latents a transformer and a vae. The sample_size of a unet or a vae is the side of the images.
    unet: dict = dataclasses.field(default_factory=dict)
    transformer: dict = dataclasses.field(default_factory=dict)
    vae: dict = dataclasses.field(default_factory=dict)
    # Not for super-resolution, which takes that of its base. A T5 trains with the base stage; a language model, of
    # which only a part is read, stays as it starts.
    text_encoder: dict = dataclasses.field(default_factory=dict)
    # Noise schedule, as in diffusers' scheduler_config.json.
    scheduler: dict = dataclasses.field(default_factory=dict)
    # Super-resolution only: schedule of the noise that is added to the low-resolution image, in the same form.
    image_noising_scheduler: dict = dataclasses.field(default_factory=dict)
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()

    def check(self, path: str) -> None:
        super().check(path)
        self.check_learning_rate(self.learning_rate, f'{path}.learning_rate')
        check_noise_level(self.noise_level, path)
        if self.init is None and not (self.unet or self.transformer):
            raise ConfigError(f'{path}.unet must describe the network unless {path}.init names a folder that has one')
        if self.stage == 'base' and self.crop is not None:
            raise ConfigError(f"{path}.crop is {self.crop} but the stage 'base' trains on whole images; leave it None")
        if self.stage != 'super_resolution':
            if self.init is None and not self.text_encoder:
                raise ConfigError(f'{path}.text_encoder must describe the text encoder of the model')
            if self.base is not None:
                raise ConfigError(f"{path}.base is {self.base!r} but only stage 'super_resolution' builds on a base")
        else:
            if self.base is None:
                raise ConfigError(f"{path}.base must name the base stage's folder: its text encoder is used")
            if self.text_encoder:
                raise ConfigError(f'{path}.text_encoder must stay empty: it comes from {path}.base, {self.base!r}')
