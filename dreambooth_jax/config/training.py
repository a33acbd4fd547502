"""Settings that DreamBooth (dreambooth.py) and the pretraining of Storybook (pretrain.py) have in common."""

import dataclasses
from typing import Literal

from dreambooth_jax.config.schema import Config, ConfigError, setting

Sampler = Literal['ddpm', 'ddim', 'dpmsolver++']
LearningRateSchedule = Literal['constant', 'warmup', 'cosine']
LOWEST_MULTIPLIER = 0.01  # of prodigy's learning rate: below it stands a learning rate that was meant for another kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """The optimiser; both stages share it, each with its own learning rate."""

    # 'adamw': as torch.optim.AdamW computes it. 'adafactor': rows and columns in the place of second moments, no first
    # ones, so next to no memory; the learning rate is not scaled by the size of a weight and means what it means for
    # adamw. 'lion': steps of one size, in the sign's direction; a learning rate 3 to 10 times lower, a decay as much
    # higher, than adamw's. 'prodigy': finds its learning rate; learning_rate is a multiplier of that, best 1.0.
    kind: Literal['adamw', 'adafactor', 'lion', 'prodigy'] = 'adamw'
    # Numbers that adamw's two moments are stored in, 8, 4 or 2 bytes a weight; each step computes in float32.
    # 'int8': with a scale for every row of an array; arrays below 4096 weights stay float32.
    state_dtype: Literal['float32', 'bfloat16', 'int8'] = setting('float32', formerly='moments')
    # Decay of the first and second moment. None: (0.9, 0.999), of lion (0.9, 0.99); adafactor has none.
    betas: tuple[float, float] | None = setting(None, 'in [0, 1)')
    # Decoupled weight decay, times the learning rate.
    weight_decay: float = setting(0.01, '>= 0')
    # Added to the root of the second moment. None: 1e-8; adafactor and lion have none.
    epsilon: float | None = setting(None, '> 0')
    # Largest global norm of the gradient; larger ones are scaled down to it. None: no clipping.
    grad_clip_norm: float | None = setting(1.0, '> 0')
    # Decay per step of the averaged weights, which are then sampled and exported. None: no average. As in diffusers it
    # is reached slowly: step t (from 0) decays by min(ema_decay, (1 + t) / (10 + t)), 0.99 from step 890 on.
    ema_decay: float | None = setting(None, 'in (0, 1)')
    # 'constant'; 'warmup': linear, then constant; 'cosine': linear, then to 0 at the stage's last step.
    schedule: LearningRateSchedule = 'constant'
    # Steps of the linear rise of 'warmup' and 'cosine'.
    warmup_steps: int = setting(0, '>= 0')

    def check(self, path: str) -> None:
        if self.state_dtype != 'float32' and self.kind != 'adamw':
            raise ConfigError(
                f"{path}.state_dtype is {self.state_dtype!r} but only kind 'adamw' has moments to compress; "
                f"{path}.kind is {self.kind!r}, so leave state_dtype at 'float32'"
            )
        for name, without in (('betas', ('adafactor',)), ('epsilon', ('adafactor', 'lion'))):
            if getattr(self, name) is not None and self.kind in without:
                raise ConfigError(
                    f'{path}.{name} is {getattr(self, name)} but {path}.kind {self.kind!r} has none; leave it None'
                )
        if self.schedule == 'constant' and self.warmup_steps:
            raise ConfigError(
                f"{path}.warmup_steps is {self.warmup_steps} but {path}.schedule is 'constant', which has no warm-up; "
                f"set the schedule to 'warmup' or 'cosine'"
            )

    def check_learning_rate(self, learning_rate: float, path: str) -> None:
        """Raises ConfigError if `learning_rate`, the setting of that name, is one that this kind cannot mean."""
        if self.kind == 'prodigy' and learning_rate < LOWEST_MULTIPLIER:
            raise ConfigError(
                f"{path} is {learning_rate} but the optimiser's kind is 'prodigy', which finds the learning rate and "
                f'multiplies it by this; set it to 1.0 (at least {LOWEST_MULTIPLIER})'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """How the denoising error of a row is weighed; the same in both stages."""

    # Cap of the signal-to-noise weight (Hang et al. 2023), usually 5. None: all times weigh the same.
    min_snr_gamma: float | None = setting(None, '> 0')
    # Strength of noise that is constant over each channel; about 0.1 where very dark images are wanted.
    offset_noise: float = setting(0.0, '>= 0')
    # Train the learned variance of models that have one. False freezes that half of their last layer.
    train_variance: bool = True
    # Weight of the variance's bound, which the loss already scales as Nichol & Dhariwal's lambda = 0.001 does: 1 is
    # their hybrid loss.
    variance_weight: float = setting(1.0, '>= 0')
    # Share of examples whose prompt is emptied, for classifier-free guidance; fine-tuning on a few images needs none.
    prompt_dropout: float = setting(0.0, 'in [0, 1]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(Config):
    """How the work is spread over devices, and in which numbers it is done."""

    # 'pmap': every device holds everything and takes its share of the examples; 'fsdp': parameters are sharded as well.
    mode: Literal['pmap', 'fsdp'] = 'pmap'
    # Numbers of the networks' compute; master weights, norms and loss stay float32. 'auto': bfloat16 but on CPU.
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'
    # 'fsdp' shards parameters of at least this many bytes; smaller ones are copied.
    fsdp_min_bytes: int = setting(4 * 2**20, '>= 0')
    # Compute the UNet's activations again in the backward pass instead of keeping them: less memory, a third more time.
    remat: bool = False
    # Optimiser steps in one device call (lax.scan), which saves host time. None: 1 on CPU, where convolutions inside a
    # loop run slowly, else 10.
    steps_per_dispatch: int | None = setting(None, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """What a run can be resumed from."""

    # Steps between checkpoints; the last step always has one. 0: only that.
    every: int = setting(500, '>= 0')
    # Newest checkpoints kept.
    keep: int = setting(2, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig(Config):
    """Images generated while training, to watch it."""

    # Steps between samples; the last step always has some. 0: only those.
    every: int = setting(0, '>= 0')
    # What to generate. Empty: the instance and class prompts (pretraining: nothing).
    prompts: tuple[str, ...] = ()
    # Images per prompt.
    num_images: int = setting(2, '> 0')
    # Denoise steps.
    steps: int = setting(25, '> 0')
    # Classifier-free guidance; 1 is none.
    guidance_scale: float = setting(7.5, '>= 1')
    sampler: Sampler = 'dpmsolver++'
    # Of the samples alone, so that they show the same noise at every step.
    seed: int = setting(0, '>= 0')
